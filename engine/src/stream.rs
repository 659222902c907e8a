// SPDX-License-Identifier: BSD-3-Clause
//! The bytes of a chain as one stream: how the driver divides them into buffers means nothing.

use crate::memory::{GuestMemory, Slice};
use crate::sys::{IoVec, IOV_MAX};

/// Copy the first bytes of a stream into `data`. The stream must have enough bytes.
pub fn read_front(memory: &GuestMemory, slices: &[Slice], data: &mut [u8]) {
    let mut done = 0;
    for slice in slices {
        let length = slice.len().min(data.len() - done);
        memory.read(&slice.first(length), &mut data[done..done + length]);
        done += length;
    }
}

/// Store `data` in a stream, after its first `skip` bytes; what does not fit is not stored.
pub fn write_at(memory: &GuestMemory, slices: &[Slice], mut skip: usize, mut data: &[u8]) {
    for slice in slices {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        let rest = slice.after(skipped);
        let (now, later) = data.split_at(rest.len().min(data.len()));
        memory.store(&rest, now);
        data = later;
    }
}

/// Put `length` bytes of a stream, after the first `skip`, into `io_vecs`; return `None` if they
/// need more elements than the kernel accepts.
pub fn fill(
    memory: &GuestMemory,
    io_vecs: &mut Vec<IoVec>,
    slices: &[Slice],
    mut skip: usize,
    length: u64,
) -> Option<()> {
    io_vecs.clear();
    let mut left = length;
    for slice in slices {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        let rest = slice.after(skipped);
        let part = left.min(rest.len() as u64);
        if part == 0 {
            continue;
        }
        if io_vecs.len() == IOV_MAX {
            return None;
        }
        io_vecs.push(memory.io_vec(&rest.first(part as usize)));
        left -= part;
    }
    (left == 0).then_some(())
}
