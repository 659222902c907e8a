// SPDX-License-Identifier: BSD-3-Clause
//! The C ABI that `engine/ffi/engine.h` declares.
#![allow(unsafe_code)]

use std::slice;
use std::sync::Arc;

use crate::block::{BlockQueue, Disk, Limits, Turn};
use crate::latency::DiskCells;
use crate::memory::{GuestMemory, Region};
use crate::net::{NetQueue, NetTurn, Tap};
use crate::net_receive::ReceiveQueue;
use crate::net_transmit::TransmitQueue;
use crate::panics;
use crate::pool::Pool;
use crate::ring::{Layout, Position, Ring};

/// See `panics::exit_on_panic`.
#[no_mangle]
pub extern "C" fn crosvm_engine_exit_on_panic() {
    panics::exit_on_panic();
}

/// Report a panic on `fd`, too, behind the `len` bytes at `head`; see `panics::report_to`.
///
/// # Safety
///
/// `head` is valid during this call.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_report_panics(fd: i32, head: *const u8, len: usize) {
    // SAFETY: the caller guarantees it.
    panics::report_to(fd, unsafe { slice::from_raw_parts(head, len) });
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

/// Count the requests of a queue in `cells`.
///
/// # Safety
///
/// `queue` is valid, and so are the cells as long as it is; they are aligned.
#[no_mangle]
pub unsafe extern "C" fn crosvm_engine_count_in(queue: *mut BlockQueue, cells: *const DiskCells) {
    // SAFETY: the caller guarantees that both are valid, the cells as long as the queue, and every
    // value of a cell is one of an AtomicU64.
    unsafe { (*queue).cells = Some(&*cells) };
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
