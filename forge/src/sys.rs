// SPDX-License-Identifier: BSD-3-Clause
//! System calls, and the places where C and the panics of Rust come in.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_int, c_long, c_uint, c_void, CStr};
use core::mem::size_of;
use core::panic::PanicInfo;
use core::ptr::null;
use core::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use crate::c::{
    fcntl, recvmsg, syscall, IoVec, MsgHdr, FD_CLOEXEC, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS,
    SOL_SOCKET,
};

/// The only message of the warden: Execute.
const EXECUTE: [u8; 2] = [0x91, 1];

const MSG_CTRUNC: c_int = 0x8;
const MSG_TRUNC: c_int = 0x20;
const F_SETFD: c_int = 2;
const PR_SET_PDEATHSIG: c_int = 1;
const PR_SET_NAME: c_int = 15;
const SIGKILL: c_int = 9;
const SIGCHLD: c_long = 17;
const SIGSYS: c_int = 31;
const SA_SIGINFO: c_int = 4;
const SA_NODEFER: c_int = 0x4000_0000;
const CLONE_PARENT: c_long = 0x8000;
const AT_EMPTY_PATH: c_int = 0x1000;
const EINTR: c_int = 4;
const ECONNRESET: c_int = 104;
/// `EXIT_DENIED` of `sys_util/linux.py`.
const EXIT_DENIED: c_int = 128 + SIGSYS;

#[cfg(target_arch = "x86_64")]
const SYS_CLONE: c_long = 56;
#[cfg(target_arch = "x86_64")]
const SYS_EXECVEAT: c_long = 322;
#[cfg(not(target_arch = "x86_64"))]
const SYS_CLONE: c_long = 220;
#[cfg(not(target_arch = "x86_64"))]
const SYS_EXECVEAT: c_long = 281;

/// struct cmsghdr with room for one descriptor, and as much padding as it needs.
#[repr(C)]
struct Rights {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; 2],
}

const RIGHTS_BYTES: usize = size_of::<usize>() + 3 * size_of::<c_int>();

/// struct sigaction of the C library.
#[repr(C)]
struct SigAction {
    handler: extern "C" fn(c_int, *const SigInfo, *const c_void),
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

/// The part of siginfo_t that a denied call fills in; there is more behind it.
#[repr(C)]
struct SigInfo {
    head: [c_int; 3],
    address: usize,
    number: c_uint,
}

// Functions of the C library. These declarations cannot be checked against its headers.
#[link(name = "c")]
extern "C" {
    fn sendto(
        fd: c_int,
        data: *const u8,
        length: usize,
        flags: c_int,
        to: *const c_void,
        to_length: c_uint,
    ) -> isize;
    fn dup2(fd: c_int, to: c_int) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn getpid() -> c_int;
    fn sigaction(number: c_int, new: *const SigAction, old: *mut SigAction) -> c_int;
    fn strerror(number: c_int) -> *const c_char;
    fn __errno_location() -> *const c_int;
    fn abort() -> !;
    fn _exit(status: c_int) -> !;
}

/// What the warden wants.
pub enum Order {
    /// Nothing yet: a signal interrupted the call, or the peer has read our messages late.
    Nothing,
    /// Execute a mould, whose end of its channel this is.
    Execute(Fd),
    /// It has ended.
    End,
    /// Something that it never sends.
    Unknown,
}

/// Why a call failed (errno).
#[derive(Clone, Copy)]
pub struct Error(c_int);

impl Error {
    fn last() -> Self {
        // SAFETY: the C library returns the address of a number of this thread.
        Self(unsafe { *__errno_location() })
    }

    /// Return what people call it.
    pub fn text(self) -> &'static [u8] {
        // SAFETY: a string that stays as it is until the next call. We end after the first.
        unsafe { CStr::from_ptr(strerror(self.0)) }.to_bytes()
    }
}

/// The words of the command line.
pub struct Arguments {
    count: usize,
    words: *const *const c_char,
}

/// Words for a program: an array of C, with a null pointer at its end.
#[derive(Clone, Copy)]
pub struct Words(*const *const c_char);

impl Arguments {
    /// Return the words from this place on, if there is one.
    pub fn words_from(&self, at: usize) -> Option<Words> {
        // SAFETY: the array has `count` words and a null pointer.
        (at < self.count).then(|| Words(unsafe { self.words.add(at) }))
    }

    /// Return the descriptor at this place, which the caller owns.
    pub fn fd(&self, at: usize) -> Option<Fd> {
        let Words(word) = self.words_from(at)?;
        // SAFETY: it points to a pointer to a string.
        let word = unsafe { CStr::from_ptr(*word) };
        Some(Fd(word.to_str().ok()?.parse().ok()?))
    }
}

/// A descriptor that is closed when it is dropped.
pub struct Fd(c_int);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: a call without pointers, and nobody else owns the descriptor.
        unsafe { close(self.0) };
    }
}

impl Fd {
    /// Hide the descriptor from programs that we execute; return whether that was done.
    pub fn close_on_exec(&self) -> bool {
        // SAFETY: a call without pointers.
        unsafe { fcntl(self.0, F_SETFD, FD_CLOEXEC) >= 0 }
    }

    /// Let the number `to` mean this file too; programs inherit it.
    pub fn copy_over(&self, to: &Fd) -> Result<(), Error> {
        // SAFETY: a call without pointers.
        if unsafe { dup2(self.0, to.0) } < 0 {
            return Err(Error::last());
        }
        Ok(())
    }

    /// Send one message. If the warden has ended, so will we.
    pub fn send(&self, message: &[u8]) {
        // SAFETY: the kernel reads the message, which outlives the call, and no address.
        unsafe {
            sendto(
                self.0,
                message.as_ptr(),
                message.len(),
                MSG_NOSIGNAL,
                null(),
                0,
            )
        };
    }

    /// Wait for a message.
    pub fn receive(&self) -> Order {
        let mut data = [0_u8; EXECUTE.len() + 1];
        let mut rights = Rights {
            len: 0,
            level: 0,
            kind: 0,
            fds: [0; 2],
        };
        let mut iov = IoVec {
            base: data.as_mut_ptr().cast(),
            len: data.len(),
        };
        let mut header = MsgHdr {
            name: core::ptr::null_mut(),
            name_len: 0,
            iov: &raw mut iov,
            iov_len: 1,
            control: (&raw mut rights).cast(),
            control_len: size_of::<Rights>(),
            flags: 0,
        };
        // SAFETY: the header describes memory that outlives the call and is as long as it says.
        let got = unsafe { recvmsg(self.0, &raw mut header, MSG_CMSG_CLOEXEC) };
        let Ok(got) = usize::try_from(got) else {
            return match Error::last().0 {
                EINTR | ECONNRESET => Order::Nothing,
                _ => Order::End,
            };
        };
        if got == 0 && header.control_len == 0 {
            return Order::End;
        }
        let is_whole = header.flags & (MSG_TRUNC | MSG_CTRUNC) == 0;
        let has_one =
            (rights.len, rights.level, rights.kind) == (RIGHTS_BYTES, SOL_SOCKET, SCM_RIGHTS);
        if is_whole && has_one && data[..got] == EXECUTE {
            // The kernel has just made this descriptor for us, so it has no other owner.
            return Order::Execute(Fd(rights.fds[0]));
        }
        Order::Unknown
    }
}

static DENIED_FD: AtomicI32 = AtomicI32::new(-1);
static DENIED_TYPE: AtomicU8 = AtomicU8::new(0);

extern "C" fn denied(_signal: c_int, info: *const SigInfo, _context: *const c_void) {
    // SAFETY: the kernel hands the handler of SIGSYS a structure that begins like this.
    let number = unsafe { (*info).number }.to_be_bytes();
    let kind = DENIED_TYPE.load(Ordering::Relaxed);
    let fd = core::mem::ManuallyDrop::new(Fd(DENIED_FD.load(Ordering::Relaxed)));
    fd.send(&[0x92, kind, 0xCE, number[0], number[1], number[2], number[3]]);
    // SAFETY: it does not return.
    unsafe { _exit(EXIT_DENIED) }
}

/// Have a call that the filter denies reported to `channel` in a message of this type, and then end
/// this process. Return whether that was set up. The channel must stay open.
pub fn report_denied_calls(channel: &Fd, kind: u8) -> bool {
    DENIED_FD.store(channel.0, Ordering::Relaxed);
    DENIED_TYPE.store(kind, Ordering::Relaxed);
    let action = SigAction {
        handler: denied,
        mask: [0; 16],
        flags: SA_SIGINFO | SA_NODEFER,
        restorer: 0,
    };
    // SAFETY: the structure outlives the call. The handler has the signature of SA_SIGINFO and does
    // nothing but system calls.
    unsafe { sigaction(SIGSYS, &raw const action, core::ptr::null_mut()) == 0 }
}

/// Name this process.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads a string that outlives the call.
    unsafe { prctl(PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Have the kernel end this process when its parent ends.
pub fn die_with_parent() {
    // SAFETY: a call without pointers.
    unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) };
}

/// Return the number of this process, the most significant byte first.
pub fn own_pid() -> [u8; 4] {
    // SAFETY: a call without pointers.
    unsafe { getpid() }.to_be_bytes()
}

/// Make a process with our own parent; return 0 in it, and its number here.
pub fn clone_sibling() -> Result<c_long, Error> {
    // SAFETY: like fork(2): the new process has a copy of this one's memory, and its only thread.
    let pid = unsafe {
        syscall(
            SYS_CLONE,
            CLONE_PARENT | SIGCHLD,
            0_usize,
            0_usize,
            0_usize,
            0_usize,
        )
    };
    if pid < 0 {
        return Err(Error::last());
    }
    Ok(pid)
}

/// Execute a file with these words and an empty environment; return only if that fails.
pub fn execute(program: &Fd, words: Words) -> Error {
    let no_path: *const c_char = c"".as_ptr();
    let no_environment: [*const c_char; 1] = [null()];
    let environment: *const *const c_char = no_environment.as_ptr();
    // SAFETY: the arrays have a null pointer at their ends, and outlive the call.
    unsafe {
        syscall(
            SYS_EXECVEAT,
            program.0,
            no_path,
            words.0,
            environment,
            AT_EMPTY_PATH,
        )
    };
    Error::last()
}

/// Where the C library starts the program.
#[no_mangle]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or_default();
    crate::run(&Arguments { count, words })
}

#[panic_handler]
fn panicked(_what: &PanicInfo<'_>) -> ! {
    // SAFETY: it does not return.
    unsafe { abort() }
}
