// SPDX-License-Identifier: BSD-3-Clause
//! One turn of a queue of virtio-block (virtio 1.3 §5.2): reads, writes and flushes of whole sectors
//! of a raw image. Whatever is not exactly that is left in the ring for Python.

use crate::memory::{GuestMemory, Slice};
use crate::poll::Window;
use crate::ring::{Chain, Popped, Ring};
use crate::sys::{self, IoVec, IOV_MAX};

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 16;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const S_OK: u8 = 0;

/// The image behind a queue. Python changes it between two turns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// The descriptor of the image, which stays Python's.
    pub fd: i32,
    /// Whether writes are refused, which Python does.
    pub read_only: bool,
    /// Whether a write is on stable storage before it is answered.
    pub writethrough: bool,
    /// Sectors of 512 bytes that the guest sees.
    pub capacity_sectors: u64,
}

/// The most that one turn does, so that other queues and messages have theirs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many chains.
    pub chains: u32,
    /// How many bytes, the chain that exceeds them being finished.
    pub bytes: u64,
    /// The longest that an empty ring is watched, in nanoseconds; 0 for not at all.
    pub poll_ns: u64,
}

/// Why a turn ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The ring is empty, and a kick was asked for.
    #[default]
    Idle = 0,
    /// The turn was too short; nobody kicks, so there is to be another one.
    More = 1,
    /// The next chain is Python's: exactly that one, or the end of the ring.
    Python = 2,
}

/// What one turn did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// Why it ended.
    pub outcome: Outcome,
    /// How many interrupts were sent.
    pub interrupts: u32,
    /// How many requests were carried out.
    pub requests: u64,
    /// Bytes that the guest gave, headers too.
    pub bytes_from_guest: u64,
    /// Bytes that the guest got, statuses too.
    pub bytes_to_guest: u64,
}

/// A queue of a disk, with what one turn leaves for the next.
pub struct BlockQueue {
    /// The ring.
    pub ring: Ring,
    call_fd: i32,
    window: Window,
    chain: Chain,
    io_vecs: Vec<IoVec>,
}

impl BlockQueue {
    /// Serve `ring`; `call_fd` is an eventfd of Python's, or negative for no interrupts.
    pub fn new(ring: Ring, call_fd: i32) -> Self {
        Self {
            ring,
            call_fd,
            window: Window::default(),
            chain: Chain::default(),
            io_vecs: Vec::with_capacity(IOV_MAX),
        }
    }

    /// Serve what the driver has offered, in order, each request finished before the next.
    pub fn turn(&mut self, disk: &Disk, limits: &Limits) -> Turn {
        let mut turn = Turn::default();
        let mut bytes_left = limits.bytes;
        self.ring.disable_notification();
        turn.outcome = loop {
            if turn.requests >= u64::from(limits.chains) || bytes_left == 0 {
                break Outcome::More;
            }
            match self.ring.pop(&mut self.chain) {
                Popped::Chain => {}
                Popped::Malformed | Popped::Broken => break Outcome::Python,
                Popped::Empty => {
                    self.signal(&mut turn);
                    if self.window.watch(limits.poll_ns, || self.ring.has_more()) {
                        continue;
                    }
                    if self.ring.enable_notification() {
                        self.ring.disable_notification();
                        continue;
                    }
                    break Outcome::Idle;
                }
            }
            let Some((taken, written)) = self.execute(disk) else {
                self.ring.unpop();
                break Outcome::Python;
            };
            self.ring.add_used(self.chain.head, written);
            turn.requests += 1;
            turn.bytes_from_guest += taken;
            turn.bytes_to_guest += written;
            bytes_left = bytes_left.saturating_sub(taken + written);
        };
        self.signal(&mut turn);
        turn
    }

    fn signal(&mut self, turn: &mut Turn) {
        if self.ring.wants_interrupt() && self.call_fd >= 0 {
            sys::signal_eventfd(self.call_fd);
            turn.interrupts += 1;
        }
    }

    /// Carry out the request in `chain`; return the bytes taken and written, or `None` if it is one
    /// for Python. Nothing that Python would not do again has happened then.
    fn execute(&mut self, disk: &Disk) -> Option<(u64, u64)> {
        let (chain, memory) = (&self.chain, self.ring.memory());
        let mut header = [0; HEADER_BYTES];
        if chain.readable_bytes < HEADER_BYTES as u64 || chain.writable_bytes == 0 {
            return None;
        }
        read_front(memory, &chain.readable, &mut header);
        let kind = u32::from_le_bytes(header[..4].try_into().ok()?);
        let sector = u64::from_le_bytes(header[8..].try_into().ok()?);
        let room = chain.writable_bytes - 1; // all but the status
        match kind {
            T_IN => {
                let offset = offset(disk, sector, room)?;
                fill(memory, &mut self.io_vecs, &chain.writable, 0, room)?;
                let done = sys::preadv(disk.fd, &self.io_vecs, offset)?;
                mark_all(&self.ring, &chain.writable);
                if done != room {
                    return None;
                }
                self.finish(HEADER_BYTES as u64, room + 1)
            }
            T_OUT if !disk.read_only && room == 0 => {
                let length = chain.readable_bytes - HEADER_BYTES as u64;
                let offset = offset(disk, sector, length)?;
                fill(
                    memory,
                    &mut self.io_vecs,
                    &chain.readable,
                    HEADER_BYTES,
                    length,
                )?;
                if sys::pwritev(disk.fd, &self.io_vecs, offset, disk.writethrough)? != length {
                    return None;
                }
                self.finish(chain.readable_bytes, 1)
            }
            T_FLUSH if room == 0 => {
                if !disk.read_only {
                    sys::fdatasync(disk.fd)?;
                }
                self.finish(HEADER_BYTES as u64, 1)
            }
            _ => None,
        }
    }

    /// Store the status in the last writable byte.
    fn finish(&self, taken: u64, written: u64) -> Option<(u64, u64)> {
        let last = self.chain.writable.last()?;
        self.ring
            .memory()
            .store(&last.after(last.len() - 1), &[S_OK]);
        Some((taken, written))
    }
}

/// Return where a sector lies, if so many bytes from there are whole sectors of the disk.
fn offset(disk: &Disk, sector: u64, length: u64) -> Option<u64> {
    let end = sector.checked_add(length / SECTOR_BYTES)?;
    (length % SECTOR_BYTES == 0 && end <= disk.capacity_sectors).then(|| sector * SECTOR_BYTES)
}

/// Copy the first bytes of a stream, which has at least as many.
fn read_front(memory: &GuestMemory, slices: &[Slice], data: &mut [u8]) {
    let mut done = 0;
    for slice in slices {
        let length = slice.len().min(data.len() - done);
        memory.read(slice, &mut data[done..done + length]);
        done += length;
    }
}

/// List `length` bytes of a stream after the first `skip`; `None` if the kernel takes no such list.
fn fill(
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

/// Note what the kernel may have written for us.
fn mark_all(ring: &Ring, slices: &[Slice]) {
    for slice in slices {
        ring.memory().mark_dirty(slice);
    }
}
