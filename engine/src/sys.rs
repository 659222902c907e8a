// SPDX-License-Identifier: BSD-3-Clause
//! System calls, and the C ABI that `engine/ffi/engine.h` declares.
#![allow(unsafe_code)]

use std::slice;
use std::sync::Arc;

use crate::block::{BlockQueue, Disk, Limits, Turn};
use crate::memory::{GuestMemory, Region};
use crate::ring::{Layout, Position, Ring};

/// UIO_MAXIOV.
pub const IOV_MAX: usize = 1024;

const RWF_DSYNC: i32 = 2;

/// struct iovec (readv(2)).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IoVec {
    base: *mut u8,
    len: usize,
}

impl IoVec {
    /// Name memory for the kernel; only `memory.rs` makes these, of guest memory.
    pub(crate) fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }
}

// The C library that the standard library links anyway; its headers are not here to be checked.
extern "C" {
    fn preadv64(fd: i32, iov: *const IoVec, count: i32, offset: i64) -> isize;
    fn pwritev64v2(fd: i32, iov: *const IoVec, count: i32, offset: i64, flags: i32) -> isize;
    #[link_name = "fdatasync"]
    fn c_fdatasync(fd: i32) -> i32;
    fn write(fd: i32, data: *const u8, len: usize) -> isize;
    fn _exit(status: i32) -> !;
}

/// EX_SOFTWARE, as for every bug of ours.
const STATUS_BUG: i32 = 70;
/// The policies of devices allow no longer write.
const MAX_REPORT_BYTES: usize = 128;

/// Read into guest memory; return how many bytes, or `None` for an error.
pub fn preadv(fd: i32, io_vecs: &[IoVec], offset: u64) -> Option<u64> {
    let (count, offset) = (
        i32::try_from(io_vecs.len()).ok()?,
        i64::try_from(offset).ok()?,
    );
    // SAFETY: each element names mapped guest memory, see `IoVec::new`.
    let done = unsafe { preadv64(fd, io_vecs.as_ptr(), count, offset) };
    u64::try_from(done).ok()
}

/// Write from guest memory, with `stable` onto stable storage; return as `preadv` does.
pub fn pwritev(fd: i32, io_vecs: &[IoVec], offset: u64, stable: bool) -> Option<u64> {
    let (count, offset) = (
        i32::try_from(io_vecs.len()).ok()?,
        i64::try_from(offset).ok()?,
    );
    let flags = if stable { RWF_DSYNC } else { 0 };
    // SAFETY: as in `preadv`.
    let done = unsafe { pwritev64v2(fd, io_vecs.as_ptr(), count, offset, flags) };
    u64::try_from(done).ok()
}

/// Put what was written on stable storage; `None` for an error.
pub fn fdatasync(fd: i32) -> Option<()> {
    // SAFETY: no memory is involved.
    (unsafe { c_fdatasync(fd) } == 0).then_some(())
}

/// Add one to an eventfd. One that is full wakes its reader as well.
pub fn signal_eventfd(fd: i32) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes are there to be read.
    let _ = unsafe { write(fd, one.as_ptr(), one.len()) };
}

/// Have a panic say itself on stderr and end the process as a bug, by calls that policies allow.
#[no_mangle]
pub extern "C" fn crosvm_engine_exit_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let report = format!("engine: {info}\n");
        let report = &report.as_bytes()[..report.len().min(MAX_REPORT_BYTES)];
        // SAFETY: the bytes are there to be read; then nothing happens any more.
        unsafe {
            let _ = write(2, report.as_ptr(), report.len());
            _exit(STATUS_BUG);
        }
    }));
}

/// Make the memory of a guest of `count` mapped regions and a dirty bitmap or NULL.
///
/// # Safety
///
/// See `GuestMemory::new`. The result belongs to the caller until `crosvm_engine_free_memory`.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_memory(
    regions: *const Region,
    count: usize,
    bitmap: *const u64,
    bitmap_words: u64,
) -> *const GuestMemory {
    // SAFETY: the caller says that there are so many regions, and that they stay mapped.
    let memory =
        unsafe { GuestMemory::new(slice::from_raw_parts(regions, count), bitmap, bitmap_words) };
    Arc::into_raw(Arc::new(memory))
}

/// Let go of memory; queues that were made of it keep it until they are freed, too.
///
/// # Safety
///
/// `memory` is of `crosvm_engine_memory` and not used again.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_free_memory(memory: *const GuestMemory) {
    // SAFETY: it was made by `Arc::into_raw`, and this is the one time that it is given back.
    drop(unsafe { Arc::from_raw(memory) });
}

/// Make a queue of a disk; NULL where its layout is unusable.
///
/// # Safety
///
/// The pointers are valid for this call, `memory` is of `crosvm_engine_memory`.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_block_queue(
    memory: *const GuestMemory,
    layout: *const Layout,
    position: *const Position,
    call_fd: i32,
) -> *mut BlockQueue {
    // SAFETY: the memory is alive, so counting one more owner is right.
    let memory = unsafe {
        Arc::increment_strong_count(memory);
        Arc::from_raw(memory)
    };
    // SAFETY: both are valid by contract.
    let ring = unsafe { Ring::new(memory, &*layout, *position) };
    match ring {
        Some(ring) => Box::into_raw(Box::new(BlockQueue::new(ring, call_fd))),
        None => std::ptr::null_mut(),
    }
}

/// Free a queue.
///
/// # Safety
///
/// `queue` is of `crosvm_engine_block_queue` and not used again.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_free_block_queue(queue: *mut BlockQueue) {
    // SAFETY: it was made by `Box::into_raw`, and this is the one time that it is given back.
    drop(unsafe { Box::from_raw(queue) });
}

/// Serve one turn.
///
/// # Safety
///
/// The pointers are valid for this call, and no other thread uses `queue` or `disk` during it.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_block_turn(
    queue: *mut BlockQueue,
    disk: *const Disk,
    limits: *const Limits,
    turn: *mut Turn,
) {
    // SAFETY: all four are valid by contract.
    unsafe { *turn = (*queue).turn(&*disk, &*limits) };
}

/// Tell where a queue stands, so that Python's goes on from there.
///
/// # Safety
///
/// Both pointers are valid for this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_take(queue: *const BlockQueue, position: *mut Position) {
    // SAFETY: by contract.
    unsafe { *position = (*queue).ring.position() };
}

/// Have a queue go on from where Python's has come to.
///
/// # Safety
///
/// Both pointers are valid for this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_give(queue: *mut BlockQueue, position: *const Position) {
    // SAFETY: by contract.
    unsafe { (*queue).ring.set_position(*position) };
}
