// SPDX-License-Identifier: BSD-3-Clause
//! One turn of a queue of virtio-block (virtio 1.3 §5.2): reads, writes and flushes of whole
//! sectors of a raw image. Any other request stays in the ring, and Python serves it.

use crate::memory::Slice;
use crate::poll::Window;
use crate::ring::{Chain, Popped, Ring};
use crate::stream::{fill, read_front};
use crate::sys::{self, IoVec, IOV_MAX};

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 16;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const S_OK: u8 = 0;

/// The image behind a queue. Python may change these fields between two turns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// The descriptor of the image, which Python owns.
    pub fd: i32,
    /// Whether writes must be refused; Python does that.
    pub read_only: bool,
    /// Whether a write must be on stable storage before it is completed.
    pub writethrough: bool,
    /// The size of the disk in sectors of 512 bytes.
    pub capacity_sectors: u64,
}

/// When a turn must end, so that other queues and messages of the vmm are served too.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After so many chains.
    pub chains: u32,
    /// After so many bytes. The chain that exceeds this limit is finished.
    pub bytes: u64,
    /// How long to watch an empty ring at most, in nanoseconds; 0 for not at all.
    pub poll_ns: u64,
}

/// Why a turn ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The ring is empty, and the driver was asked for a kick.
    #[default]
    Idle = 0,
    /// A limit was reached. The driver will not kick, so there must be another turn.
    More = 1,
    /// Python must serve the next chain, or report that the ring is broken.
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
    /// Bytes that were read from the guest's buffers, including headers.
    pub bytes_from_guest: u64,
    /// Bytes that were written to the guest's buffers, including statuses.
    pub bytes_to_guest: u64,
}

/// A queue of a disk, and buffers that are reused in each turn.
pub struct BlockQueue {
    /// The ring.
    pub ring: Ring,
    call_fd: i32,
    window: Window,
    chain: Chain,
    io_vecs: Vec<IoVec>,
}

impl BlockQueue {
    /// Serve `ring`; `call_fd` is an eventfd that Python owns, or negative for no interrupts.
    pub fn new(ring: Ring, call_fd: i32) -> Self {
        Self {
            ring,
            call_fd,
            window: Window::default(),
            chain: Chain::default(),
            io_vecs: Vec::with_capacity(IOV_MAX),
        }
    }

    /// Serve the chains that the driver has offered, in order; finish each before the next.
    pub fn turn(&mut self, disk: &Disk, limits: &Limits) -> Turn {
        let mut turn = Turn::default();
        let mut bytes_left = limits.bytes;
        let mut empty_looks = 0; // an index that comes and goes must not make a turn endless
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
                    empty_looks += 1;
                    if empty_looks > limits.chains {
                        break Outcome::More;
                    }
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

    /// Carry out the request in `chain`; return how many bytes were taken and written. `None`:
    /// Python must carry it out. If a part has been done already, doing it again is harmless.
    fn execute(&mut self, disk: &Disk) -> Option<(u64, u64)> {
        let (chain, memory) = (&self.chain, self.ring.memory());
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

/// Return the offset of a sector, if `length` bytes from there are whole sectors inside the disk.
fn offset(disk: &Disk, sector: u64, length: u64) -> Option<u64> {
    let end = sector.checked_add(length / SECTOR_BYTES)?;
    (length % SECTOR_BYTES == 0 && end <= disk.capacity_sectors).then(|| sector * SECTOR_BYTES)
}

/// Mark the memory dirty that the kernel may have written for us.
fn mark_all(ring: &Ring, slices: &[Slice]) {
    for slice in slices {
        ring.memory().mark_dirty(slice);
    }
}
