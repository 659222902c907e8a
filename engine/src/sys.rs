// SPDX-License-Identifier: BSD-3-Clause
//! System calls.
#![allow(unsafe_code)]

use std::io::{Error, ErrorKind};

/// UIO_MAXIOV.
pub const IOV_MAX: usize = 1024;

/// The host has no frame, or takes none, now.
pub const EAGAIN: i32 = 11;

const RWF_DSYNC: i32 = 2;
const RWF_NOWAIT: i32 = 8;
const EOPNOTSUPP: i32 = 95;

/// struct iovec (readv(2)).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec {
    base: *mut u8,
    len: usize,
}

// SAFETY: only the kernel uses the pointer, and any thread may ask it to.
unsafe impl Send for IoVec {}

impl IoVec {
    /// Describe memory to the kernel. Only `memory.rs` calls this, with guest memory.
    pub(crate) fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }
}

// Functions of the C library, which Rust's standard library links anyway. These declarations cannot
// be checked against its headers.
#[cfg(not(miri))]
extern "C" {
    fn preadv64(fd: i32, iov: *const IoVec, count: i32, offset: i64) -> isize;
    fn preadv64v2(fd: i32, iov: *const IoVec, count: i32, offset: i64, flags: i32) -> isize;
    fn pwritev64v2(fd: i32, iov: *const IoVec, count: i32, offset: i64, flags: i32) -> isize;
}

#[cfg(miri)]
use miri_calls::{preadv64, preadv64v2, pwritev64v2};

extern "C" {
    #[link_name = "readv"]
    fn c_readv(fd: i32, iov: *const IoVec, count: i32) -> isize;
    #[link_name = "writev"]
    fn c_writev(fd: i32, iov: *const IoVec, count: i32) -> isize;
    #[link_name = "fdatasync"]
    fn c_fdatasync(fd: i32) -> i32;
    fn write(fd: i32, data: *const u8, len: usize) -> isize;
    #[cfg(all(target_env = "gnu", not(miri)))]
    fn mallopt(parameter: i32, value: i32) -> i32;
    fn _exit(status: i32) -> !;
}

/// Read into guest memory; return how many bytes were read, or `None` for an error.
pub fn preadv(fd: i32, io_vecs: &[IoVec], offset: u64) -> Option<u64> {
    let (count, offset) = (
        i32::try_from(io_vecs.len()).ok()?,
        i64::try_from(offset).ok()?,
    );
    // SAFETY: each element describes mapped guest memory; see `IoVec::new`.
    let done = unsafe { preadv64(fd, io_vecs.as_ptr(), count, offset) };
    u64::try_from(done).ok()
}

/// Read into guest memory what is in the page cache, without waiting for the host's storage; it is
/// read into the cache then. Return how many bytes were read, 0 also for an error, or `None` if the
/// host cannot do this for such a file.
pub fn preadv_cached(fd: i32, io_vecs: &[IoVec], offset: u64) -> Option<u64> {
    #[cfg(test)]
    if let Some(answer) = testing::answer(offset) {
        return answer;
    }
    let (count, offset) = (
        i32::try_from(io_vecs.len()).ok()?,
        i64::try_from(offset).ok()?,
    );
    // SAFETY: as in `preadv`.
    let done = unsafe { preadv64v2(fd, io_vecs.as_ptr(), count, offset, RWF_NOWAIT) };
    let cannot = || Error::last_os_error().raw_os_error() == Some(EOPNOTSUPP);
    u64::try_from(done)
        .ok()
        .or_else(|| (!cannot()).then_some(0))
}

/// Write from guest memory; with `stable` it is on stable storage then. Return as `preadv` does.
pub fn pwritev(fd: i32, io_vecs: &[IoVec], offset: u64, stable: bool) -> Option<u64> {
    let (count, offset) = (
        i32::try_from(io_vecs.len()).ok()?,
        i64::try_from(offset).ok()?,
    );
    let flags = if stable { RWF_DSYNC } else { 0 };
    #[cfg(test)]
    testing::note("pwritev2");
    // SAFETY: as in `preadv`.
    let done = unsafe { pwritev64v2(fd, io_vecs.as_ptr(), count, offset, flags) };
    u64::try_from(done).ok()
}

/// Read a frame into guest memory, and what does not fit there into `rest`; return its length, or
/// the error.
pub fn readv(fd: i32, io_vecs: &mut Vec<IoVec>, rest: &mut [u8]) -> Result<u64, i32> {
    io_vecs.push(IoVec::new(rest.as_mut_ptr(), rest.len()));
    let done = until_done(|| {
        // SAFETY: each element describes mapped guest memory (see `IoVec::new`) or `rest`.
        unsafe { c_readv(fd, io_vecs.as_ptr(), io_vecs.len() as i32) }
    });
    io_vecs.pop();
    done
}

/// Write `start` and what is in guest memory as one frame; return how much was written, or the
/// error.
pub fn writev(fd: i32, start: &[u8], io_vecs: &mut Vec<IoVec>) -> Result<u64, i32> {
    io_vecs.insert(0, IoVec::new(start.as_ptr().cast_mut(), start.len()));
    let done = until_done(|| {
        // SAFETY: each element describes mapped guest memory or `start`, and is only read.
        unsafe { c_writev(fd, io_vecs.as_ptr(), io_vecs.len() as i32) }
    });
    io_vecs.remove(0);
    done
}

/// Repeat a call that a signal interrupts; return its result or its error.
fn until_done(mut call: impl FnMut() -> isize) -> Result<u64, i32> {
    loop {
        if let Ok(done) = u64::try_from(call()) {
            return Ok(done);
        }
        let error = Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error.raw_os_error().unwrap_or(0));
        }
    }
}

/// Put all earlier writes on stable storage; return `None` for an error.
pub fn fdatasync(fd: i32) -> Option<()> {
    #[cfg(test)]
    testing::note("fdatasync");
    // SAFETY: it accesses no memory.
    (unsafe { c_fdatasync(fd) } == 0).then_some(())
}

/// Let all threads allocate from one heap. For a heap of its own a thread would need calls that the
/// seccomp policies deny, and much address space.
pub fn use_one_heap() {
    #[cfg(all(target_env = "gnu", not(miri)))]
    {
        const M_ARENA_MAX: i32 = -8;
        // SAFETY: it changes a setting of the C library.
        unsafe { mallopt(M_ARENA_MAX, 1) };
    }
}

/// Add one to an eventfd. If it is full, the call fails, but its reader is awake anyway.
pub fn signal_eventfd(fd: i32) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the pointer is to as many bytes.
    let _ = unsafe { write(fd, one.as_ptr(), one.len()) };
}

/// Write once; what is cut off, or lost, is.
pub fn write_once(fd: i32, data: &[u8]) {
    // SAFETY: the pointer is to as many bytes.
    let _ = unsafe { write(fd, data.as_ptr(), data.len()) };
}

/// End the process at once.
pub fn exit(status: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { _exit(status) }
}

#[cfg(miri)]
mod miri_calls {
    //! Vectored calls for Miri, which knows only those with one buffer.

    use super::IoVec;

    extern "C" {
        fn pread64(fd: i32, data: *mut u8, len: usize, offset: i64) -> isize;
        fn pwrite64(fd: i32, data: *const u8, len: usize, offset: i64) -> isize;
    }

    /// Call `one` for each element until a call does less than it was asked for.
    unsafe fn each(
        iov: *const IoVec,
        count: i32,
        offset: i64,
        one: impl Fn(*mut u8, usize, i64) -> isize,
    ) -> isize {
        let mut total = 0;
        if count == 0 {
            return one(std::ptr::dangling_mut(), 0, offset); // which knows whether there is a file
        }
        for at in 0..count as usize {
            // SAFETY: the caller guarantees that there are so many.
            let io_vec = unsafe { *iov.add(at) };
            let done = one(io_vec.base, io_vec.len, offset + total as i64);
            if done < 0 && total == 0 {
                return done;
            }
            total += done.max(0);
            if done != io_vec.len as isize {
                break;
            }
        }
        total
    }

    pub unsafe fn preadv64(fd: i32, iov: *const IoVec, count: i32, offset: i64) -> isize {
        // SAFETY: as with the C library's function.
        unsafe {
            each(iov, count, offset, |data, len, at| {
                pread64(fd, data, len, at)
            })
        }
    }

    pub unsafe fn preadv64v2(fd: i32, iov: *const IoVec, count: i32, at: i64, _: i32) -> isize {
        // SAFETY: as with the C library's function.
        unsafe { preadv64(fd, iov, count, at) }
    }

    pub unsafe fn pwritev64v2(fd: i32, iov: *const IoVec, count: i32, at: i64, _: i32) -> isize {
        // SAFETY: as with the C library's function.
        unsafe { each(iov, count, at, |data, len, at| pwrite64(fd, data, len, at)) }
    }
}

#[cfg(test)]
pub mod testing {
    //! What tests of other files see of the calls of their thread, and answer for the host.

    use std::cell::{Cell, RefCell};

    /// What `preadv_cached` returns for an offset, or `None` to ask the host.
    type Answer = fn(u64) -> Option<Option<u64>>;

    thread_local! {
        static ANSWER: Cell<Answer> = const { Cell::new(|_| None) };
        static CALLS: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    /// Answer reads from the page cache.
    pub fn set_cached(answer: Answer) {
        ANSWER.set(answer);
    }

    /// Return the names of all calls so far that write or flush.
    pub fn calls() -> Vec<&'static str> {
        CALLS.take()
    }

    pub(super) fn answer(offset: u64) -> Option<Option<u64>> {
        ANSWER.get()(offset)
    }

    pub(super) fn note(call: &'static str) {
        CALLS.with_borrow_mut(|calls| calls.push(call));
    }
}
