// SPDX-License-Identifier: BSD-3-Clause
//! The device's side of a split virtqueue (virtio 1.3 §2.7): the same as
//! `devices/virtio/queue/split_queue.py` in Rust. Each value that the driver wrote is read once and
//! checked, and then our copy is used.
//!
//! A malformed chain stays in the ring: Python takes it, reports what is wrong with it, and returns
//! it to the driver.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use crate::memory::{GuestMemory, Part, Slice};

const DESC_BYTES: usize = 16;
const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;
const MAX_QUEUE_SIZE: u32 = 32768;
/// How many descriptors of an indirect table a chain may use: as many buffers as preadv(2) accepts.
/// In Linux such a chain counts as one descriptor of the queue, so it may be longer than the queue.
const MAX_INDIRECT_CHAIN: usize = 1024;
const MAX_CHAIN_BYTES: u64 = 1 << 32;

const FLAGS: usize = 0;
const IDX: usize = 2;
const RING: usize = 4;

/// The addresses of a queue, its size, and the features that were negotiated.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// The number of descriptors: a power of two.
    pub size: u32,
    /// Whether VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Whether VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

/// The position of a queue: indices that wrap around. It moves between Python's queue and this one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The index of the available chain that is taken next.
    pub next_avail: u16,
    /// The driver's index when it was last read and found valid.
    pub avail_idx: u16,
    /// The index of the used element that is written next.
    pub next_used: u16,
    /// The used index when we last decided whether to send an interrupt.
    pub signalled: u16,
    /// Whether the next such decision is yes in any case.
    pub must_signal: bool,
}

/// What `Ring::pop` found.
#[derive(Debug, PartialEq, Eq)]
pub enum Popped {
    /// No chain: the driver has offered no more.
    Empty,
    /// A chain, which is in `Chain` now.
    Chain,
    /// A malformed chain, which is not taken: Python handles it.
    Malformed,
    /// A broken available ring: nothing is taken. Python will find the same and report it.
    Broken,
}

/// The buffers of one chain, in the order of their descriptors. It is reused for every chain, so
/// that nothing is allocated.
#[derive(Default)]
pub struct Chain {
    /// The index of its first descriptor, which goes into the used ring.
    pub head: u16,
    /// The buffers that the device reads; none is empty.
    pub readable: Vec<Slice>,
    /// The buffers that the device writes; none is empty.
    pub writable: Vec<Slice>,
    /// The size of `readable`.
    pub readable_bytes: u64,
    /// The size of `writable`.
    pub writable_bytes: u64,
}

impl Chain {
    fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.readable_bytes = 0;
        self.writable_bytes = 0;
    }
}

/// An activated split virtqueue.
pub struct Ring {
    memory: Arc<GuestMemory>,
    table: Part,
    avail: Part,
    used: Part,
    size: usize,
    event_idx: bool,
    indirect: bool,
    position: Position,
    published: u16,
}

impl Ring {
    /// Find the three parts of a queue; return `None` if Python would refuse them too.
    pub fn new(memory: Arc<GuestMemory>, layout: &Layout, position: Position) -> Option<Self> {
        if !layout.size.is_power_of_two() || layout.size > MAX_QUEUE_SIZE {
            return None;
        }
        let size = u64::from(layout.size);
        let table = Part::new(&memory, layout.desc_table, 16 * size, 16)?;
        let avail = Part::new(&memory, layout.avail_ring, 6 + 2 * size, 2)?;
        let used = Part::new(&memory, layout.used_ring, 6 + 8 * size, 4)?;
        let mut ring = Self {
            memory,
            table,
            avail,
            used,
            size: layout.size as usize,
            event_idx: layout.event_idx,
            indirect: layout.indirect,
            position,
            published: 0,
        };
        ring.set_position(position);
        Some(ring)
    }

    /// The memory that contains the ring and its buffers.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The position of the queue. The driver sees every used chain.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Continue at another position, after Python has served the queue.
    pub fn set_position(&mut self, position: Position) {
        self.position = position;
        self.published = position.next_used;
    }

    /// Take the next available chain.
    pub fn pop(&mut self, chain: &mut Chain) -> Popped {
        let next = self.position.next_avail;
        if next == self.position.avail_idx {
            let avail_idx = self.avail.load_u16(IDX);
            if avail_idx == next {
                return Popped::Empty;
            }
            if !self.accept(avail_idx) {
                return Popped::Broken;
            }
        }
        let slot = usize::from(next) & (self.size - 1);
        let head = self.avail.load_u16(RING + 2 * slot);
        if usize::from(head) >= self.size {
            return Popped::Broken;
        }
        if self.walk(head, chain).is_none() {
            return Popped::Malformed;
        }
        self.position.next_avail = next.wrapping_add(1);
        Popped::Chain
    }

    /// Undo the last `pop`.
    pub fn unpop(&mut self) {
        self.unpop_all(1);
    }

    /// Undo the last `count` calls of `pop`.
    pub fn unpop_all(&mut self, count: usize) {
        self.position.next_avail = self.position.next_avail.wrapping_sub(count as u16);
    }

    /// Return a chain to the driver, with the number of bytes written, and publish it at once.
    pub fn add_used(&mut self, head: u16, written: u64) {
        self.put_used(head, written);
        self.publish();
    }

    /// Return a chain to the driver, who sees it after `publish`.
    pub fn put_used(&mut self, head: u16, written: u64) {
        let next = self.position.next_used;
        let element = RING + 8 * (usize::from(next) & (self.size - 1));
        self.used.store_u32(element, u32::from(head));
        self.used
            .store_u32(element + 4, u32::try_from(written).unwrap_or(u32::MAX));
        self.position.next_used = next.wrapping_add(1);
    }

    /// Show the driver every chain that was returned.
    pub fn publish(&mut self) {
        self.published = self.position.next_used;
        self.used.store_u16(IDX, self.published);
    }

    /// Tell the driver that it need not kick, because we will look at the ring anyway.
    pub fn disable_notification(&mut self) {
        if !self.event_idx {
            self.used.store_u16(FLAGS, USED_F_NO_NOTIFY);
        }
    }

    /// Ask for a kick; return whether there is a chain that the driver may not kick for, because it
    /// offered the chain before it saw this.
    pub fn enable_notification(&mut self) -> bool {
        if self.event_idx {
            self.used
                .store_u16(RING + 8 * self.size, self.position.next_avail);
        } else {
            self.used.store_u16(FLAGS, 0);
        }
        fence(Ordering::SeqCst);
        self.has_more()
    }

    /// Whether the driver has offered more. This does not check the driver's index; `pop` does.
    pub fn has_more(&self) -> bool {
        self.position.next_avail != self.position.avail_idx
            || self.avail.load_u16(IDX) != self.position.next_avail
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    pub fn wants_interrupt(&mut self) -> bool {
        let old = self.position.signalled;
        let new = self.published;
        self.position.signalled = new;
        if self.position.must_signal {
            self.position.must_signal = false;
            return true;
        }
        if old == new {
            return false;
        }
        fence(Ordering::SeqCst);
        if self.event_idx {
            let used_event = self.avail.load_u16(RING + 2 * self.size);
            return new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        self.avail.load_u16(FLAGS) & AVAIL_F_NO_INTERRUPT == 0
    }

    fn accept(&mut self, avail_idx: u16) -> bool {
        let pending = avail_idx.wrapping_sub(self.position.next_avail);
        if usize::from(pending) > self.size {
            return false;
        }
        self.position.avail_idx = avail_idx;
        true
    }

    /// Follow the chain at `head`. Read each descriptor once, and only a limited number of them.
    fn walk(&self, head: u16, chain: &mut Chain) -> Option<()> {
        chain.clear(head);
        let mut table = *self.table.slice();
        let mut in_indirect = false;
        let (mut at, mut count, mut left) = (usize::from(head), self.size, self.size);
        let mut writing = false;
        loop {
            if at >= count || left == 0 {
                return None;
            }
            left -= 1;
            let desc = Desc::of(self.memory.read_16(&table, at * DESC_BYTES));
            if desc.flags & DESC_F_INDIRECT != 0 {
                if in_indirect {
                    return None;
                }
                table = self.enter_table(&desc)?;
                in_indirect = true;
                (at, count) = (0, table.len() / DESC_BYTES);
                left = self.size.max(MAX_INDIRECT_CHAIN);
                continue;
            }
            let length = u64::from(desc.len);
            if desc.flags & DESC_F_WRITE != 0 {
                writing = true;
                chain.writable_bytes += length;
            } else if writing {
                return None;
            } else {
                chain.readable_bytes += length;
            }
            if length != 0 {
                let slice = self.memory.slice(desc.addr, length)?;
                let list = if writing {
                    &mut chain.writable
                } else {
                    &mut chain.readable
                };
                list.push(slice);
            }
            if desc.flags & DESC_F_NEXT == 0 {
                break;
            }
            at = usize::from(desc.next);
        }
        (chain.readable_bytes + chain.writable_bytes <= MAX_CHAIN_BYTES).then_some(())
    }

    /// Return the indirect table that a descriptor points to (§2.7.5.3).
    fn enter_table(&self, desc: &Desc) -> Option<Slice> {
        let length = desc.len as usize;
        let whole = length != 0 && length % DESC_BYTES == 0;
        let fits = length <= DESC_BYTES * MAX_QUEUE_SIZE as usize;
        if !self.indirect || desc.flags & DESC_F_NEXT != 0 || !whole || !fits {
            return None;
        }
        self.memory.slice(desc.addr, u64::from(desc.len))
    }
}

/// A copy of struct virtq_desc.
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    fn of(bytes: [u8; 16]) -> Self {
        let word = u128::from_le_bytes(bytes);
        Self {
            addr: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
