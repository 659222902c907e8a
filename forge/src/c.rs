// SPDX-License-Identifier: BSD-3-Clause
//! What this crate and the one in `launcher/`, which includes this file, know of C's headers: how a
//! message with descriptors looks. These declarations cannot be checked against the headers.

use core::ffi::{c_int, c_long, c_uint, c_void};

pub const SOL_SOCKET: c_int = 1;
pub const SCM_RIGHTS: c_int = 1;
pub const MSG_NOSIGNAL: c_int = 0x4000;
pub const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
pub const FD_CLOEXEC: c_int = 1;

/// struct iovec (readv(2)).
#[repr(C)]
pub struct IoVec {
    pub base: *mut c_void,
    pub len: usize,
}

/// struct msghdr (sendmsg(2)).
#[repr(C)]
pub struct MsgHdr {
    pub name: *mut c_void,
    pub name_len: c_uint,
    pub iov: *mut IoVec,
    pub iov_len: usize,
    pub control: *mut c_void,
    pub control_len: usize,
    pub flags: c_int,
}

#[link(name = "c")]
extern "C" {
    pub fn recvmsg(fd: c_int, message: *mut MsgHdr, flags: c_int) -> isize;
    pub fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    pub fn syscall(number: c_long, ...) -> c_long;
}
