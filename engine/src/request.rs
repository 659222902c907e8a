// SPDX-License-Identifier: BSD-3-Clause
//! A request of a disk's driver (virtio 1.3 §5.2.6), if it is one that the engine carries out.

use crate::block::Disk;
use crate::latency::Noted;
use crate::memory::GuestMemory;
use crate::ring::Chain;
use crate::stream::{fill, read_front};
use crate::sys::IoVec;

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 16;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const S_OK: u8 = 0;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read the image.
    Read,
    /// Write the image.
    Write,
    /// Put all earlier writes on stable storage.
    Flush,
}

/// A request that is right and inside the disk.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What it wants.
    pub kind: Kind,
    /// Where in the image.
    pub offset: u64,
    /// How many bytes of the image.
    pub length: u64,
    /// How many bytes of the chain the device reads for it.
    pub taken: u64,
    /// How many bytes of the chain the device writes for it.
    pub written: u64,
    /// Where it is counted when it is done.
    pub noted: Option<Noted>,
}

/// Read the request in `chain`, and put the guest memory for its data into `io_vecs`. `None`: it is
/// for Python.
pub fn parse(
    disk: &Disk,
    memory: &GuestMemory,
    chain: &Chain,
    io_vecs: &mut Vec<IoVec>,
) -> Option<Request> {
    let mut header = [0; HEADER_BYTES];
    if chain.readable_bytes < HEADER_BYTES as u64 || chain.writable_bytes == 0 {
        return None;
    }
    read_front(memory, &chain.readable, &mut header);
    let kind = u32::from_le_bytes(header[..4].try_into().ok()?);
    let sector = u64::from_le_bytes(header[8..].try_into().ok()?);
    let room = chain.writable_bytes - 1; // without the status byte
    match kind {
        T_IN => {
            let offset = offset(disk, sector, room)?;
            fill(memory, io_vecs, &chain.writable, 0, room)?;
            Some(Request {
                kind: Kind::Read,
                offset,
                length: room,
                taken: HEADER_BYTES as u64,
                written: room + 1,
                noted: None,
            })
        }
        T_OUT if !disk.read_only && room == 0 => {
            let length = chain.readable_bytes - HEADER_BYTES as u64;
            let offset = offset(disk, sector, length)?;
            fill(memory, io_vecs, &chain.readable, HEADER_BYTES, length)?;
            Some(Request {
                kind: Kind::Write,
                offset,
                length,
                taken: chain.readable_bytes,
                written: 1,
                noted: None,
            })
        }
        T_FLUSH if room == 0 => Some(Request {
            kind: Kind::Flush,
            offset: 0,
            length: 0,
            taken: HEADER_BYTES as u64,
            written: 1,
            noted: None,
        }),
        _ => None,
    }
}

/// Store the status of a request that succeeded in the last writable byte of its chain.
pub fn store_ok(memory: &GuestMemory, chain: &Chain) {
    if let Some(last) = chain.writable.last() {
        memory.store(&last.after(last.len() - 1), &[S_OK]);
    }
}

/// Return the offset of a sector, if `length` bytes from there are whole sectors inside the disk.
fn offset(disk: &Disk, sector: u64, length: u64) -> Option<u64> {
    let end = sector.checked_add(length / SECTOR_BYTES)?;
    (length % SECTOR_BYTES == 0 && end <= disk.capacity_sectors).then(|| sector * SECTOR_BYTES)
}
