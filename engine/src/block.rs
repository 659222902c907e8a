// SPDX-License-Identifier: BSD-3-Clause
//! One turn of a queue of virtio-block (virtio 1.3 §5.2): reads, writes and flushes of whole
//! sectors of a raw image. Any other request stays in the ring, and Python serves it.

use crate::latency::{DiskCells, Noted};
use crate::memory::Slice;
use crate::poll::Window;
use crate::pool::Pool;
use crate::request::{self, Kind, Request};
use crate::ring::{Chain, Popped, Ring};
use crate::sys::{self, IoVec, IOV_MAX};
use crate::transfers::Transfers;

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
    /// Whether the image may be in the page cache: a read of what is not there waits until the host
    /// has begun to read for the requests behind it, too.
    pub cached: bool,
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

/// What is left of the limits of a turn.
struct Left {
    chains: u32,
    bytes: u64,
    looks: u32, // at empty rings: an index that comes and goes must not make a turn endless
    poll_ns: u64,
}

impl Left {
    fn is_spent(&self) -> bool {
        self.chains == 0 || self.bytes == 0
    }
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
    /// Whether the position of the queue is here, not with Python. A turn of another queue of the
    /// disk serves this one too then.
    pub is_held: bool,
    is_served: bool, // by a turn of another queue, now
    kick_fd: i32,
    call_fd: i32,
    window: Window,
    chain: Chain,
    io_vecs: Vec<IoVec>,
    transfers: Transfers,
    knows_misses: bool, // until the host says that it cannot tell what is in the page cache
    /// Where reads and writes are counted, if anywhere.
    pub cells: Option<&'static DiskCells>,
    reads: u32,
    writes: u32,
}

impl BlockQueue {
    /// Serve `ring`. `kick_fd` and `call_fd` are eventfds that Python owns; if `call_fd` is
    /// negative, there are no interrupts.
    pub fn new(ring: Ring, kick_fd: i32, call_fd: i32) -> Self {
        Self {
            ring,
            is_held: false,
            is_served: false,
            kick_fd,
            call_fd,
            window: Window::default(),
            chain: Chain::default(),
            io_vecs: Vec::with_capacity(IOV_MAX),
            transfers: Transfers::default(),
            knows_misses: true,
            cells: None,
            reads: 0,
            writes: 0,
        }
    }

    /// Serve the chains that the driver has offered. They go back to it in their order.
    ///
    /// With a `pool` several reads and writes are under way during this call. Without one only
    /// reads that miss the page cache are, for which the host reads ahead. When this returns, none
    /// is.
    ///
    /// While the ring is watched, `others` are watched and served too: the other queues of the
    /// disk. What one of them has for Python is left to its own turn, for which it is kicked.
    pub fn turn(
        &mut self,
        disk: &Disk,
        limits: &Limits,
        pool: Option<&Pool>,
        others: &mut [&mut Self],
    ) -> Turn {
        let mut turn = Turn::default();
        let mut left = Left {
            chains: limits.chains,
            bytes: limits.bytes,
            looks: limits.chains,
            poll_ns: limits.poll_ns,
        };
        self.is_held = true;
        self.ring.disable_notification();
        loop {
            turn.outcome = self.serve(disk, &mut left, pool, &mut turn);
            if turn.outcome != Outcome::Idle {
                break;
            }
            if left.looks == 0 {
                turn.outcome = Outcome::More;
                break;
            }
            left.looks -= 1;
            if self.watch(disk, &mut left, pool, others, &mut turn) {
                continue;
            }
            if !self.ring.enable_notification() {
                break;
            }
            self.ring.disable_notification();
        }
        for other in others {
            other.let_be();
        }
        turn
    }

    /// Watch all empty rings for a while, and serve the others; return whether this ring has more.
    fn watch(
        &mut self,
        disk: &Disk,
        left: &mut Left,
        pool: Option<&Pool>,
        others: &mut [&mut Self],
        turn: &mut Turn,
    ) -> bool {
        loop {
            let has_more = || self.ring.has_more() || others.iter().any(|one| one.waits());
            if left.looks == 0 || left.is_spent() || !self.window.watch(left.poll_ns, has_more) {
                return self.ring.has_more();
            }
            left.looks -= 1;
            for other in others.iter_mut().filter(|one| one.waits()) {
                other.ring.disable_notification();
                other.is_served = true;
                if other.serve(disk, left, pool, turn) == Outcome::Python {
                    other.is_held = false;
                    sys::signal_eventfd(other.kick_fd);
                }
            }
            if self.ring.has_more() {
                return true;
            }
        }
    }

    /// Whether there is something for a turn of another queue to serve.
    fn waits(&self) -> bool {
        self.is_held && self.ring.has_more()
    }

    /// Ask for kicks again, after the turn of another queue; have a turn for what came meanwhile.
    fn let_be(&mut self) {
        if std::mem::take(&mut self.is_served) && self.ring.enable_notification() {
            sys::signal_eventfd(self.kick_fd);
        }
    }

    /// Serve what there is, until the ring is empty (`Idle`). Nothing is under way then.
    fn serve(
        &mut self,
        disk: &Disk,
        left: &mut Left,
        pool: Option<&Pool>,
        turn: &mut Turn,
    ) -> Outcome {
        let mut outcome = self.take_chains(disk, left, pool, turn);
        if !self.transfers.finish_all(&mut self.ring, pool, turn) {
            outcome = Outcome::Python;
        }
        self.signal(turn);
        outcome
    }

    fn take_chains(
        &mut self,
        disk: &Disk,
        left: &mut Left,
        pool: Option<&Pool>,
        turn: &mut Turn,
    ) -> Outcome {
        loop {
            if left.is_spent() {
                return Outcome::More;
            }
            match self.ring.pop(&mut self.chain) {
                Popped::Chain => {}
                Popped::Malformed | Popped::Broken => return Outcome::Python,
                Popped::Empty => {
                    if self.transfers.is_empty() {
                        return Outcome::Idle;
                    }
                    if !self.transfers.finish_first(&mut self.ring, pool, turn) {
                        return Outcome::Python;
                    }
                    self.signal(turn);
                    continue;
                }
            }
            let memory = self.ring.memory();
            let Some(mut request) = request::parse(disk, memory, &self.chain, &mut self.io_vecs)
            else {
                self.ring.unpop();
                return Outcome::Python;
            };
            request.noted = self.note(request.kind);
            let is_room = !self.transfers.is_full()
                || self.transfers.finish_first(&mut self.ring, pool, turn);
            let carried_out = is_room
                && match (request.kind, pool) {
                    // A flush is for all writes before it.
                    (Kind::Flush, _) => {
                        self.transfers.finish_all(&mut self.ring, pool, turn)
                            && self.carry_out(disk, request, turn)
                    }
                    (_, Some(_)) => self.put_off(disk, request),
                    (Kind::Read, None) if disk.cached && self.knows_misses => {
                        self.read_cached(disk, request, turn)
                    }
                    _ => self.carry_out(disk, request, turn),
                };
            if !carried_out {
                self.ring.unpop();
                return Outcome::Python;
            }
            left.chains -= 1;
            left.bytes = left.bytes.saturating_sub(request.taken + request.written);
        }
    }

    /// Begin a request, if it is to be counted.
    fn note(&mut self, kind: Kind) -> Option<Noted> {
        let cells = self.cells?;
        match kind {
            Kind::Read => Some(Noted::begin(&cells.reads, &mut self.reads)),
            Kind::Write => Some(Noted::begin(&cells.writes, &mut self.writes)),
            Kind::Flush => None,
        }
    }

    fn signal(&mut self, turn: &mut Turn) {
        if self.ring.wants_interrupt() && self.call_fd >= 0 {
            sys::signal_eventfd(self.call_fd);
            turn.interrupts += 1;
        }
    }

    /// Have a transfer made later, and return true.
    fn put_off(&mut self, disk: &Disk, request: Request) -> bool {
        self.transfers
            .prepare(disk, request, &mut self.chain, &mut self.io_vecs);
        true
    }

    /// Read what is in the page cache, and put the request off if that is not all: the host reads
    /// the rest meanwhile. Return as `carry_out` does.
    fn read_cached(&mut self, disk: &Disk, request: Request, turn: &mut Turn) -> bool {
        let done = sys::preadv_cached(disk.fd, &self.io_vecs, request.offset);
        mark_all(&self.ring, &self.chain.writable);
        match done {
            Some(count) if count == request.length => {
                self.finish(request, turn);
                true
            }
            Some(_) => self.put_off(disk, request),
            None => {
                self.knows_misses = false;
                self.carry_out(disk, request, turn)
            }
        }
    }

    /// Carry out the request in `chain` and return it to the driver. False: Python must carry it
    /// out. If a part has been done already, doing it again is harmless.
    fn carry_out(&mut self, disk: &Disk, request: Request, turn: &mut Turn) -> bool {
        let done = match request.kind {
            Kind::Read => {
                let done = sys::preadv(disk.fd, &self.io_vecs, request.offset);
                mark_all(&self.ring, &self.chain.writable);
                done
            }
            Kind::Write => sys::pwritev(disk.fd, &self.io_vecs, request.offset, disk.writethrough),
            Kind::Flush if disk.read_only => Some(0),
            Kind::Flush => sys::fdatasync(disk.fd).map(|()| 0),
        };
        if done != Some(request.length) {
            return false;
        }
        self.finish(request, turn);
        true
    }

    /// Return the chain to the driver, after all that were put off before it.
    fn finish(&mut self, request: Request, turn: &mut Turn) {
        if self.transfers.is_empty() {
            give_back(&mut self.ring, &self.chain, &request, turn);
        } else {
            self.transfers.add_done(request, &mut self.chain);
        }
    }
}

/// Return a chain whose request succeeded to the driver, and count it.
pub(crate) fn give_back(ring: &mut Ring, chain: &Chain, request: &Request, turn: &mut Turn) {
    request::store_ok(ring.memory(), chain);
    ring.add_used(chain.head, request.written);
    if let Some(noted) = request.noted {
        noted.end();
    }
    turn.requests += 1;
    turn.bytes_from_guest += request.taken;
    turn.bytes_to_guest += request.written;
}

/// Mark the memory dirty that the kernel may have written for us.
pub(crate) fn mark_all(ring: &Ring, slices: &[Slice]) {
    for slice in slices {
        ring.memory().mark_dirty(slice);
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
