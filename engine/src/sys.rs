// SPDX-License-Identifier: BSD-3-Clause
//! System calls, and the C ABI that `engine/ffi/engine.h` declares.
#![allow(unsafe_code)]

use std::io::{Error, ErrorKind};
use std::slice;
use std::sync::{Arc, OnceLock};

use crate::block::{BlockQueue, Disk, Limits, Turn};
use crate::memory::{GuestMemory, Region};
use crate::net::{NetQueue, NetTurn, Tap};
use crate::net_receive::ReceiveQueue;
use crate::net_transmit::TransmitQueue;
use crate::pool::Pool;
use crate::ring::{Layout, Position, Ring};

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

/// EX_SOFTWARE: every process of ours exits with this status after a bug.
const STATUS_BUG: i32 = 70;
/// The seccomp policies of devices allow no longer write.
const MAX_REPORT_BYTES: usize = 128;
/// msgpack's format of a string whose length follows in two bytes.
const STR_16: u8 = 0xda;

/// Where a panic is reported as a message, beside stderr: a descriptor, and how the message begins.
static REPORT_TO: OnceLock<(i32, Vec<u8>)> = OnceLock::new();

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

/// Make a panic write a report to stderr and end the process with `STATUS_BUG`. Both need only
/// calls that the seccomp policies allow.
#[no_mangle]
pub extern "C" fn crosvm_engine_exit_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let report = format!("engine: {info}");
        write_all_at_once(2, format!("{report}\n").as_bytes());
        if let Some((fd, head)) = REPORT_TO.get() {
            write_all_at_once(*fd, &panic_message(head, &report));
        }
        // SAFETY: it does not return.
        unsafe { _exit(STATUS_BUG) }
    }));
}

/// Return a message of at most `MAX_REPORT_BYTES`; what is not ASCII in the text is replaced.
fn panic_message(head: &[u8], text: &str) -> Vec<u8> {
    let room = MAX_REPORT_BYTES - head.len() - 3;
    let text: Vec<u8> = text
        .chars()
        .take(room)
        .map(|c| if c.is_ascii() { c as u8 } else { b'?' })
        .collect();
    let length = u16::try_from(text.len()).unwrap_or(0).to_be_bytes();
    [head, &[STR_16], &length, &text].concat()
}

/// Write once; a report that is cut off, or lost, is all that can be done.
fn write_all_at_once(fd: i32, data: &[u8]) {
    let data = &data[..data.len().min(MAX_REPORT_BYTES)];
    // SAFETY: the pointer is to as many bytes.
    let _ = unsafe { write(fd, data.as_ptr(), data.len()) };
}

/// Report a panic on `fd`, too, as a msgpack string behind the `len` bytes at `head`. Only the first
/// call in a process counts. `head` is at most 16 bytes long.
///
/// # Safety
///
/// `head` is valid during this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_report_panics(fd: i32, head: *const u8, len: usize) {
    assert!(len <= 16, "a head of {len} bytes");
    // SAFETY: the caller guarantees it.
    let head = unsafe { slice::from_raw_parts(head, len) };
    let _ = REPORT_TO.set((fd, head.to_vec()));
}

/// Make a guest's memory from `count` mapped regions and a dirty bitmap, which may be NULL.
///
/// # Safety
///
/// See `GuestMemory::new`. The caller owns the result and calls `crosvm_engine_free_memory` once.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_memory(
    regions: *const Region,
    count: usize,
    bitmap: *const u64,
    bitmap_words: u64,
) -> *const GuestMemory {
    // SAFETY: the caller guarantees that there are so many regions, and that they stay mapped.
    let memory =
        unsafe { GuestMemory::new(slice::from_raw_parts(regions, count), bitmap, bitmap_words) };
    Arc::into_raw(Arc::new(memory))
}

/// Free memory. If queues use it, it exists until they are freed too.
///
/// # Safety
///
/// `memory` is from `crosvm_engine_memory` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_free_memory(memory: *const GuestMemory) {
    // SAFETY: it was made by `Arc::into_raw`, and is passed to `from_raw` only here, once.
    drop(unsafe { Arc::from_raw(memory) });
}

/// Make a queue of a disk; return NULL if its layout is invalid.
///
/// # Safety
///
/// The pointers are valid during this call, and `memory` is from `crosvm_engine_memory`.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_block_queue(
    memory: *const GuestMemory,
    layout: *const Layout,
    position: *const Position,
    kick_fd: i32,
    call_fd: i32,
) -> *mut BlockQueue {
    // SAFETY: the memory has not been freed, so the queue can become one more owner.
    let memory = unsafe {
        Arc::increment_strong_count(memory);
        Arc::from_raw(memory)
    };
    // SAFETY: the caller guarantees that both are valid.
    let ring = unsafe { Ring::new(memory, &*layout, *position) };
    match ring {
        Some(ring) => Box::into_raw(Box::new(BlockQueue::new(ring, kick_fd, call_fd))),
        None => std::ptr::null_mut(),
    }
}

/// Free a queue.
///
/// # Safety
///
/// `queue` is from `crosvm_engine_block_queue` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_free_block_queue(queue: *mut BlockQueue) {
    // SAFETY: it was made by `Box::into_raw`, and is passed to `from_raw` only here, once.
    drop(unsafe { Box::from_raw(queue) });
}

/// Start threads for the transfers of a disk; return NULL if the host refuses one. See `Pool::start`.
#[no_mangle]
pub extern "C" fn crosvm_engine_pool(threads: u32) -> *mut Pool {
    match Pool::start(threads as usize) {
        Some(pool) => Box::into_raw(Box::new(pool)),
        None => std::ptr::null_mut(),
    }
}

/// End the threads of a pool, which a seccomp filter must not prevent.
///
/// # Safety
///
/// `pool` is from `crosvm_engine_pool` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_free_pool(pool: *mut Pool) {
    // SAFETY: it was made by `Box::into_raw`, and is passed to `from_raw` only here, once.
    drop(unsafe { Box::from_raw(pool) });
}

/// Serve one turn of a queue; see `BlockQueue::turn`. `pool` may be NULL.
///
/// # Safety
///
/// The pointers are valid during this call, and no other thread uses what they point to. The
/// `count` `others` are not NULL, and none of them is there twice or is `queue`.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_block_turn(
    queue: *mut BlockQueue,
    others: *mut *mut BlockQueue,
    count: usize,
    disk: *const Disk,
    limits: *const Limits,
    pool: *const Pool,
    turn: *mut Turn,
) {
    // SAFETY: the caller guarantees that there are so many, each valid and another one.
    let others = unsafe { slice::from_raw_parts_mut(others.cast::<&mut BlockQueue>(), count) };
    // SAFETY: the caller guarantees that all of them are valid, or the pool NULL.
    unsafe { *turn = (*queue).turn(&*disk, &*limits, pool.as_ref(), others) };
}

/// Store the position of a queue in `position`, so that Python can continue from there. The queue is
/// not served before its next turn.
///
/// # Safety
///
/// Both pointers are valid during this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_take(queue: *mut BlockQueue, position: *mut Position) {
    // SAFETY: the caller guarantees that both are valid.
    unsafe {
        (*queue).is_held = false;
        *position = (*queue).ring.position();
    }
}

/// Set the position of a queue, after Python has served it.
///
/// # Safety
///
/// Both pointers are valid during this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_give(queue: *mut BlockQueue, position: *const Position) {
    // SAFETY: the caller guarantees that both are valid.
    unsafe { (*queue).ring.set_position(*position) };
}

/// Make a queue of a network card, which receives or transmits; return NULL if its layout is
/// invalid.
///
/// # Safety
///
/// The pointers are valid during this call, and `memory` is from `crosvm_engine_memory`.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_net_queue(
    memory: *const GuestMemory,
    layout: *const Layout,
    position: *const Position,
    call_fd: i32,
    receives: bool,
) -> *mut NetQueue {
    // SAFETY: the memory has not been freed, so the queue can become one more owner.
    let memory = unsafe {
        Arc::increment_strong_count(memory);
        Arc::from_raw(memory)
    };
    // SAFETY: the caller guarantees that both are valid.
    let ring = unsafe { Ring::new(memory, &*layout, *position) };
    let Some(ring) = ring else {
        return std::ptr::null_mut();
    };
    Box::into_raw(Box::new(if receives {
        NetQueue::Receive(ReceiveQueue::new(ring, call_fd))
    } else {
        NetQueue::Transmit(TransmitQueue::new(ring, call_fd))
    }))
}

/// Free a queue.
///
/// # Safety
///
/// `queue` is from `crosvm_engine_net_queue` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_free_net_queue(queue: *mut NetQueue) {
    // SAFETY: it was made by `Box::into_raw`, and is passed to `from_raw` only here, once.
    drop(unsafe { Box::from_raw(queue) });
}

/// Serve one turn of a queue.
///
/// # Safety
///
/// The pointers are valid during this call, and no other thread uses `queue` or `tap` meanwhile.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_net_turn(
    queue: *mut NetQueue,
    tap: *mut Tap,
    limits: *const Limits,
    turn: *mut NetTurn,
) {
    // SAFETY: the caller guarantees that all four are valid.
    unsafe { *turn = (*queue).turn(&mut *tap, &*limits) };
}

/// Return the frame that Python has to deliver after a turn; `NetTurn::frame_bytes` is its size.
///
/// # Safety
///
/// `queue` is valid during this call. The result is valid until the queue is used again.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_net_frame(queue: *const NetQueue) -> *const u8 {
    // SAFETY: the caller guarantees that it is valid.
    unsafe { (*queue).frame().as_ptr() }
}

/// Store the position of a queue in `position`, so that Python can continue from there.
///
/// # Safety
///
/// Both pointers are valid during this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_net_take(queue: *const NetQueue, position: *mut Position) {
    // SAFETY: the caller guarantees that both are valid.
    unsafe { *position = (*queue).position() };
}

/// Set the position of a queue, after Python has served it.
///
/// # Safety
///
/// Both pointers are valid during this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_net_give(queue: *mut NetQueue, position: *const Position) {
    // SAFETY: the caller guarantees that both are valid.
    unsafe { (*queue).set_position(*position) };
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
