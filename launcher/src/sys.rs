// SPDX-License-Identifier: BSD-3-Clause
//! System calls.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long, c_uint, c_void, OsStr};
use std::io::{Error, ErrorKind, Result};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};

use crate::c::{
    fcntl, recvmsg, syscall, IoVec, MsgHdr, FD_CLOEXEC, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS,
    SOL_SOCKET,
};
use crate::wire::{MAX_BYTES, MAX_FDS};

/// A descriptor that is closed when it is dropped.
pub type Fd = OwnedFd;

pub const SIGSTOP: i32 = 19;
pub const SIGCONT: i32 = 18;
const SIGTSTP: i32 = 20;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;
/// Faults of this process itself, those that no process can handle, those of children and of
/// pipes, and two of the C library.
const NOT_PASSED_ON: [i32; 13] = [4, 5, 6, 7, 8, 9, 11, 13, 17, 19, 31, 32, 33];
const MAX_SIGNAL: i32 = 64;

const AF_UNIX: u16 = 1;
const SOCK_SEQPACKET: c_int = 5;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
const SOCK_NONBLOCK: c_int = 0o4_000;
const SO_PEERCRED: c_int = 17;
const F_GETFD: c_int = 1;
const SFD_CLOEXEC: c_int = SOCK_CLOEXEC;
const SIG_BLOCK: c_int = 0;
const SIG_UNBLOCK: c_int = 1;
const SIG_IGN: usize = 1;
const POLLIN: i16 = 1;
const RLIMIT_CORE: c_int = 4;
const SYS_PIDFD_SEND_SIGNAL: c_long = 424;
const MAX_PATH: usize = 107;
const SIGNALFD_SIGINFO: usize = 128;

#[repr(C)]
struct SockAddr {
    family: u16,
    path: [u8; 108],
}

#[repr(C)]
struct Ucred {
    pid: i32,
    uid: u32,
    gid: u32,
}

/// struct cmsghdr with room for as many descriptors as a message may have.
#[repr(C)]
struct Rights {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; MAX_FDS],
}

const RIGHTS_HEAD: usize = size_of::<usize>() + 2 * size_of::<c_int>();

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

/// struct sigaction begins with the handler; the rest is not looked at.
#[repr(C)]
struct SigAction {
    handler: usize,
    rest: [u64; 31],
}

// Functions of the C library, which Rust's standard library links anyway. These declarations cannot
// be checked against its headers.
extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    #[link_name = "connect"]
    fn c_connect(fd: c_int, address: *const SockAddr, len: u32) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut Ucred, len: *mut u32) -> c_int;
    fn sendmsg(fd: c_int, message: *const MsgHdr, flags: c_int) -> isize;
    fn poll(fds: *mut PollFd, count: usize, timeout_ms: c_int) -> c_int;
    fn geteuid() -> u32;
    fn sigaction(number: c_int, new: *const SigAction, old: *mut SigAction) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
    fn read(fd: c_int, data: *mut c_void, len: usize) -> isize;
    fn raise(number: c_int) -> c_int;
    fn setrlimit(resource: c_int, limit: *const [usize; 2]) -> c_int;
}

/// Connect to the socket at `path`; return the connection and the user who listens there.
pub fn connect(path: &OsStr) -> Result<(Fd, u32)> {
    let bytes = path.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_PATH {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a socket path has 1 to 107 bytes",
        ));
    }
    let mut address = SockAddr {
        family: AF_UNIX,
        path: [0; 108],
    };
    address.path[..bytes.len()].copy_from_slice(bytes);
    let mut peer = Ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = u32::try_from(size_of::<Ucred>()).unwrap_or_default();
    let kind = SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK;
    // SAFETY: a call without pointers; the address and the credentials outlive the calls after it,
    // and their lengths are those of the structures. The new descriptor has no other owner.
    unsafe {
        let fd = socket(AF_UNIX.into(), kind, 0);
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        let owned = Fd::from_raw_fd(fd);
        let address_len = u32::try_from(size_of::<SockAddr>()).unwrap_or_default();
        if c_connect(fd, &raw const address, address_len) < 0
            || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &raw mut peer, &raw mut len) < 0
        {
            return Err(Error::last_os_error());
        }
        Ok((owned, peer.uid))
    }
}

/// Return our effective user.
pub fn effective_user() -> u32 {
    // SAFETY: it always succeeds and has no argument.
    unsafe { geteuid() }
}

/// Return whether a program that we execute would inherit the descriptor.
pub fn is_inherited(fd: i32) -> bool {
    // SAFETY: a call without pointers; it fails for a number that is not open.
    let flags = unsafe { fcntl(fd, F_GETFD) };
    flags >= 0 && flags & FD_CLOEXEC == 0
}

/// Send one message with descriptors beside it, at most `MAX_FDS`.
pub fn send(channel: &Fd, message: &[u8], fds: &[i32]) -> Result<()> {
    let mut rights = Rights {
        len: RIGHTS_HEAD + size_of_val(fds),
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: [0; MAX_FDS],
    };
    rights.fds[..fds.len()].copy_from_slice(fds);
    let mut iov = IoVec {
        base: message.as_ptr().cast_mut().cast(),
        len: message.len(),
    };
    let align = size_of::<usize>();
    let header = MsgHdr {
        name: null_mut(),
        name_len: 0,
        iov: &raw mut iov,
        iov_len: 1,
        control: (&raw mut rights).cast(),
        control_len: if fds.is_empty() {
            0
        } else {
            rights.len.next_multiple_of(align)
        },
        flags: 0,
    };
    // SAFETY: the header describes memory that outlives the call, which only reads it. `Rights` has
    // room for MAX_FDS, so also for the padding: MAX_FDS descriptors need none.
    let sent = unsafe { sendmsg(channel.as_raw_fd(), &raw const header, MSG_NOSIGNAL) };
    if sent < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

/// Receive one message, and the descriptor beside it if there is one; nothing at the end.
pub fn receive(channel: &Fd) -> (Vec<u8>, Option<Fd>) {
    let mut data = vec![0; MAX_BYTES];
    // SAFETY: numbers alone, for which zero is a value.
    let mut rights: Rights = unsafe { zeroed() };
    let mut iov = IoVec {
        base: data.as_mut_ptr().cast(),
        len: data.len(),
    };
    let mut header = MsgHdr {
        name: null_mut(),
        name_len: 0,
        iov: &raw mut iov,
        iov_len: 1,
        control: (&raw mut rights).cast(),
        control_len: size_of::<Rights>(),
        flags: 0,
    };
    // SAFETY: the header describes memory that outlives the call and is as long as it says.
    let mut got = unsafe { recvmsg(channel.as_raw_fd(), &raw mut header, MSG_CMSG_CLOEXEC) };
    if got < 0 && Error::last_os_error().kind() == ErrorKind::ConnectionReset {
        // The peer has not read all that we sent; what it said comes behind this error.
        header.control_len = size_of::<Rights>();
        // SAFETY: as above.
        got = unsafe { recvmsg(channel.as_raw_fd(), &raw mut header, MSG_CMSG_CLOEXEC) };
    }
    data.truncate(usize::try_from(got).unwrap_or_default());
    let has_one = got >= 0
        && header.control_len >= RIGHTS_HEAD
        && (rights.level, rights.kind) == (SOL_SOCKET, SCM_RIGHTS)
        && rights.len == RIGHTS_HEAD + size_of::<c_int>();
    // SAFETY: the kernel has just made this descriptor for us, so it has no other owner.
    let fd = has_one.then(|| unsafe { Fd::from_raw_fd(rights.fds[0]) });
    (data, fd)
}

/// Wait until the descriptor can be read or has hung up; return whether that is so in time.
pub fn wait_readable(fd: &Fd, timeout_ms: i32) -> bool {
    wait([fd], timeout_ms) != [false]
}

/// Wait until one of two descriptors can be read or has hung up; return which.
pub fn wait_either(first: &Fd, second: &Fd) -> (bool, bool) {
    let [is_first, is_second] = wait([first, second], -1);
    (is_first, is_second)
}

fn wait<const N: usize>(fds: [&Fd; N], timeout_ms: i32) -> [bool; N] {
    let mut polled = fds.map(|fd| PollFd {
        fd: fd.as_raw_fd(),
        events: POLLIN,
        revents: 0,
    });
    // SAFETY: the array outlives the call and has N elements.
    unsafe { poll(polled.as_mut_ptr(), N, timeout_ms) };
    polled.map(|each| each.revents != 0)
}

/// A sigset_t of the C library.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SignalSet([u64; 16]);

impl SignalSet {
    fn of(numbers: impl Iterator<Item = i32>) -> Self {
        let mut bits = 0;
        numbers.for_each(|number| bits |= 1_u64 << (number - 1));
        let mut words = [0; 16];
        words[0] = bits;
        Self(words)
    }

    /// Return all signals that the monitor is to get: those that are not ignored here.
    pub fn passed_on() -> Self {
        Self::of((1..=MAX_SIGNAL).filter(|number| {
            // SAFETY: numbers alone, for which zero is a value.
            let mut old: SigAction = unsafe { zeroed() };
            // SAFETY: the C library writes a structure that is smaller than ours.
            let failed = unsafe { sigaction(*number, null(), &raw mut old) };
            !NOT_PASSED_ON.contains(number) && failed == 0 && old.handler != SIG_IGN
        }))
    }

    /// Block these signals; return a descriptor that they can be read from.
    pub fn block_and_open(&self) -> Fd {
        // SAFETY: the set outlives the calls. The new descriptor has no other owner.
        unsafe {
            pthread_sigmask(SIG_BLOCK, self, null_mut());
            let fd = signalfd(-1, self, SFD_CLOEXEC);
            assert!(fd >= 0, "signalfd: {}", Error::last_os_error());
            Fd::from_raw_fd(fd)
        }
    }
}

/// Return the next signal that came; one has come.
pub fn next_signal(signals: &Fd) -> Option<i32> {
    let mut info = [0_u32; SIGNALFD_SIGINFO / 4];
    // SAFETY: the array outlives the call and is as long as it says.
    let got = unsafe {
        read(
            signals.as_raw_fd(),
            info.as_mut_ptr().cast(),
            SIGNALFD_SIGINFO,
        )
    };
    (usize::try_from(got) == Ok(SIGNALFD_SIGINFO)).then(|| i32::try_from(info[0]).ok())?
}

/// Send a signal to a process; nothing happens if it has ended.
pub fn signal_process(pidfd: &Fd, number: i32) {
    let no_info: *const c_void = null();
    let no_flags: c_uint = 0;
    // SAFETY: the kernel accepts no info.
    unsafe {
        syscall(
            SYS_PIDFD_SEND_SIGNAL,
            pidfd.as_raw_fd(),
            number,
            no_info,
            no_flags,
        )
    };
}

/// Return whether the signal stops a process, as Ctrl-Z does.
pub fn stops(number: i32) -> bool {
    [SIGTSTP, SIGTTIN, SIGTTOU].contains(&number)
}

/// Let a signal that is blocked have its effect here; return when that is over, if it is ever.
pub fn stop_by(number: i32) {
    let set = SignalSet::of(std::iter::once(number));
    // SAFETY: the set outlives the calls.
    unsafe {
        raise(number);
        pthread_sigmask(SIG_UNBLOCK, &raw const set, null_mut());
        pthread_sigmask(SIG_BLOCK, &raw const set, null_mut());
    }
}

/// End as a process does that this signal kills, but without a core dump; return if it kills none.
pub fn end_by(number: i32) {
    let none = [0, 0];
    // SAFETY: the limit outlives the call.
    unsafe { setrlimit(RLIMIT_CORE, &raw const none) };
    if (1..=MAX_SIGNAL).contains(&number) {
        stop_by(number);
    }
}
