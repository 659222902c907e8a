// SPDX-License-Identifier: BSD-3-Clause
//! receiveq: frames of a TAP into the driver's buffers (virtio 1.3 §5.1.6.3, §5.1.6.4), as in
//! `devices/virtio/net/receive.py`.
//!
//! A frame is stored directly in guest memory. Its length is known only afterwards, so chains for
//! about the length of the last frames are held ready, followed by a buffer of ours for the rest of
//! a longer one. A frame that needs more than that (chains that the driver has not offered yet,
//! another checksum, to be dropped) is given to Python as a whole, and Python delivers it as if the
//! TAP had it still.

use std::collections::VecDeque;

use crate::block::{Limits, Outcome};
use crate::memory::Slice;
use crate::net::{signal, NetTurn, Tap, HEADER_BYTES, MAX_FRAME_BYTES};
use crate::net_header::GSO_NONE;
use crate::ring::{Chain, Popped, Ring};
use crate::stream::{read_front, write_at};
use crate::sys::{self, IoVec, EAGAIN, IOV_MAX};

/// How many chains one turn takes at most, for drivers with very small buffers.
const MAX_CHAINS_PER_TURN: u32 = 4096;
/// One vector is our buffer.
const MAX_VECTORS: usize = IOV_MAX - 1;
const NUM_BUFFERS_AT: usize = 10;

/// A queue to which frames of the host go, and buffers that are reused in each turn.
pub struct ReceiveQueue {
    /// The ring.
    pub ring: Ring,
    call_fd: i32,
    kick_wanted: bool,
    held: VecDeque<Chain>, // taken, with nothing stored yet
    held_bytes: u64,
    filled: Vec<Chain>, // with the frame that is being stored
    spare: Vec<Chain>,
    chains_left: u32,
    io_vecs: Vec<IoVec>,
    spill: Vec<u8>,
    frame: Vec<u8>,
}

/// Where a frame went.
enum Received {
    /// To the driver.
    Frame,
    /// There was none.
    Nothing,
    /// Python has to deliver it, or to handle the TAP's error.
    Python,
}

impl ReceiveQueue {
    /// Serve `ring`; `call_fd` is an eventfd that Python owns, or negative for no interrupts.
    pub fn new(ring: Ring, call_fd: i32) -> Self {
        Self {
            ring,
            call_fd,
            kick_wanted: true,
            held: VecDeque::new(),
            held_bytes: 0,
            filled: Vec::new(),
            spare: Vec::new(),
            chains_left: 0,
            io_vecs: Vec::with_capacity(IOV_MAX),
            spill: vec![0; HEADER_BYTES + MAX_FRAME_BYTES as usize],
            frame: Vec::new(),
        }
    }

    /// The frame that Python has to deliver, if the last turn said so.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Deliver at most `limits.chains` frames.
    pub fn turn(&mut self, tap: &mut Tap, limits: &Limits) -> NetTurn {
        let mut turn = NetTurn::default();
        self.chains_left = MAX_CHAINS_PER_TURN;
        turn.outcome = loop {
            if turn.frames >= u64::from(limits.chains) {
                break Outcome::More;
            }
            if let Err(ended) = self.hold(tap, &mut turn) {
                break ended;
            }
            match self.receive(tap, &mut turn) {
                Received::Frame => {}
                Received::Nothing => break Outcome::More,
                Received::Python => break Outcome::Python,
            }
        };
        self.put_back();
        turn.interrupts += signal(&mut self.ring, self.call_fd);
        turn
    }

    /// Hold as many chains as the next frame may need, at least one; or return how the turn ends.
    fn hold(&mut self, tap: &Tap, turn: &mut NetTurn) -> Result<(), Outcome> {
        let mut looks = 0; // an index that comes and goes must not make a turn endless
        while self.held.is_empty() || (tap.merge && self.held_bytes < tap.expected) {
            if self.chains_left == 0 {
                break;
            }
            let mut chain = self.spare.pop().unwrap_or_default();
            match self.ring.pop(&mut chain) {
                Popped::Chain => {}
                Popped::Malformed | Popped::Broken => {
                    self.spare.push(chain);
                    return Err(Outcome::Python);
                }
                Popped::Empty => {
                    self.spare.push(chain);
                    if !self.held.is_empty() {
                        break;
                    }
                    turn.interrupts += signal(&mut self.ring, self.call_fd);
                    looks += 1;
                    if looks > MAX_CHAINS_PER_TURN {
                        return Err(Outcome::More);
                    }
                    if self.ring.enable_notification() {
                        continue;
                    }
                    self.kick_wanted = true;
                    return Err(Outcome::Idle);
                }
            }
            if chain.readable_bytes != 0 || chain.writable_bytes < HEADER_BYTES as u64 {
                self.ring.unpop();
                self.spare.push(chain);
                return Err(Outcome::Python);
            }
            if self.kick_wanted {
                self.kick_wanted = false;
                self.ring.disable_notification();
            }
            self.chains_left -= 1;
            self.held_bytes += chain.writable_bytes;
            self.held.push_back(chain);
        }
        if self.held.is_empty() {
            return Err(Outcome::More);
        }
        Ok(())
    }

    /// Take one frame from the TAP into the chains held.
    fn receive(&mut self, tap: &mut Tap, turn: &mut NetTurn) -> Received {
        let room = self.vectors(tap.expected);
        let length = match sys::readv(tap.fd, &mut self.io_vecs, &mut self.spill) {
            Ok(length) => length,
            Err(EAGAIN) => return Received::Nothing,
            Err(error) => {
                turn.error = error;
                return Received::Python;
            }
        };
        let expected = tap.expected;
        tap.expected = length.max(expected - (expected >> 4));
        let gso_type = self.check(tap, length);
        self.count(length.min(room), length <= room);
        let stored = match gso_type {
            Some(_) if length <= room => true,
            Some(_) => self.store_rest(tap, turn, room, length),
            None => false,
        };
        match gso_type {
            Some(gso_type) if stored => {
                turn.large += u64::from(gso_type != GSO_NONE);
                self.finish(turn, length);
                Received::Frame
            }
            _ => {
                tap.expected = expected;
                self.give_to_python(room, length);
                turn.frame_bytes = length;
                Received::Python
            }
        }
    }

    /// Fill `io_vecs` with memory for a frame of the expected length; return its size in bytes.
    fn vectors(&mut self, expected: u64) -> u64 {
        self.io_vecs.clear();
        let memory = self.ring.memory();
        let mut room = 0;
        for chain in &self.held {
            for slice in &chain.writable {
                if self.io_vecs.len() == MAX_VECTORS {
                    return room;
                }
                self.io_vecs.push(memory.io_vec(slice));
                room += slice.len() as u64;
            }
            if room >= expected {
                break;
            }
        }
        room
    }

    /// Return the GSO type of a frame in the chains held; `None` if Python has to look at it.
    fn check(&self, tap: &Tap, length: u64) -> Option<u8> {
        let mut start = [0; 2];
        let first = self.held.front()?;
        read_front(self.ring.memory(), &first.writable, &mut start);
        let [flags, gso_type] = start;
        let whole = length >= HEADER_BYTES as u64 && (tap.merge || length <= self.held_bytes);
        let fits = gso_type == GSO_NONE || tap.guest_gso.allow(gso_type);
        (whole && fits && flags & !tap.guest_flags == 0).then_some(gso_type)
    }

    /// Count `length` bytes as stored in the chains held; if the frame is `whole` now, the last of
    /// them is used though it is not full.
    fn count(&mut self, mut length: u64, whole: bool) {
        while length > 0 {
            let Some(chain) = self.held.front() else {
                return;
            };
            let size = length.min(chain.writable_bytes);
            for slice in stored(&chain.writable, size) {
                self.ring.memory().mark_dirty(&slice);
            }
            length -= size;
            if size < chain.writable_bytes && !whole {
                return; // the number of vectors ended here, and `store_rest` sees that
            }
            self.held_bytes -= chain.writable_bytes;
            self.filled.extend(self.held.pop_front());
        }
    }

    /// Copy the rest of a frame from `spill` into more chains; return whether all of it fits.
    fn store_rest(&mut self, tap: &Tap, turn: &mut NetTurn, room: u64, length: u64) -> bool {
        let full: u64 = self.filled.iter().map(|chain| chain.writable_bytes).sum();
        if full != room {
            return false;
        }
        // Nothing is stored before there are chains for all of it: buffers may overlap, and the
        // frame must still be whole if it is given to Python.
        let first = self.filled.len();
        let mut missing = length - room;
        while missing > 0 {
            if self.hold(tap, turn).is_err() {
                return false;
            }
            let Some(chain) = self.held.pop_front() else {
                return false;
            };
            self.held_bytes -= chain.writable_bytes;
            missing = missing.saturating_sub(chain.writable_bytes);
            self.filled.push(chain);
        }
        let mut rest = &self.spill[..(length - room) as usize];
        for chain in &self.filled[first..] {
            let (now, later) = rest.split_at(rest.len().min(chain.writable_bytes as usize));
            write_at(self.ring.memory(), &chain.writable, 0, now);
            rest = later;
        }
        true
    }

    /// Store the number of the frame's chains in its header, and give them to the driver at once.
    fn finish(&mut self, turn: &mut NetTurn, length: u64) {
        let count = self.filled.len();
        if let Some(first) = self.filled.first() {
            let number = (count as u16).to_le_bytes();
            let memory = self.ring.memory();
            write_at(memory, &first.writable, NUM_BUFFERS_AT, &number);
        }
        let mut left = length;
        for chain in self.filled.drain(..) {
            let size = left.min(chain.writable_bytes);
            self.ring.put_used(chain.head, size);
            left -= size;
            self.spare.push(chain);
        }
        self.ring.publish();
        turn.frames += 1;
        turn.chains += count as u64;
        turn.bytes_to_guest += length;
    }

    /// Copy a frame of which `room` bytes at most are in chains; these go back into the ring.
    fn give_to_python(&mut self, room: u64, length: u64) {
        self.frame.resize(length as usize, 0);
        let memory = self.ring.memory();
        let mut done = 0;
        let in_chains = length.min(room) as usize;
        for chain in self.filled.iter().chain(&self.held) {
            for slice in stored(&chain.writable, (in_chains - done) as u64) {
                memory.read(&slice, &mut self.frame[done..done + slice.len()]);
                done += slice.len();
            }
        }
        let rest = self.frame.len() - in_chains;
        self.frame[in_chains..].copy_from_slice(&self.spill[..rest]);
        self.put_back();
    }

    /// Leave all chains that are not used in the ring.
    fn put_back(&mut self) {
        self.ring.unpop_all(self.held.len() + self.filled.len());
        self.spare.extend(self.held.drain(..));
        self.spare.append(&mut self.filled);
        self.held_bytes = 0;
    }
}

/// Return the parts of `slices` that have their first `length` bytes.
fn stored(slices: &[Slice], length: u64) -> impl Iterator<Item = Slice> + '_ {
    let mut left = length;
    slices.iter().map_while(move |slice| {
        let size = left.min(slice.len() as u64);
        left -= size;
        (size != 0).then(|| slice.first(size as usize))
    })
}
