// SPDX-License-Identifier: BSD-3-Clause
//! transmitq: the driver's frames to a TAP (virtio 1.3 §5.1.6.2). The header is copied once and
//! checked; the frame is sent directly from guest memory. A frame with a bad header, and one that
//! the host does not take now, stay in the ring for Python.

use crate::block::{Limits, Outcome};
use crate::net::{signal, NetTurn, Tap, HEADER_BYTES};
use crate::net_header::{accept, GSO_NONE};
use crate::poll::Window;
use crate::ring::{Chain, Popped, Ring};
use crate::stream::{fill, read_front};
use crate::sys::{self, IoVec, IOV_MAX};

/// A queue whose frames go to the host, and buffers that are reused in each turn.
pub struct TransmitQueue {
    /// The ring.
    pub ring: Ring,
    call_fd: i32,
    window: Window,
    chain: Chain,
    io_vecs: Vec<IoVec>,
}

impl TransmitQueue {
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

    /// Send at most `limits.chains` frames, each before the next one is looked at.
    pub fn turn(&mut self, tap: &Tap, limits: &Limits) -> NetTurn {
        let mut turn = NetTurn::default();
        let mut empty_looks = 0; // an index that comes and goes must not make a turn endless
        self.ring.disable_notification();
        turn.outcome = loop {
            if turn.frames >= u64::from(limits.chains) {
                break Outcome::More;
            }
            match self.ring.pop(&mut self.chain) {
                Popped::Chain => {}
                Popped::Malformed | Popped::Broken => break Outcome::Python,
                Popped::Empty => {
                    turn.interrupts += signal(&mut self.ring, self.call_fd);
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
            let Some(gso_type) = self.send(tap) else {
                self.ring.unpop();
                break Outcome::Python;
            };
            self.ring.add_used(self.chain.head, 0);
            turn.chains += 1;
            turn.frames += 1;
            turn.large += u64::from(gso_type != GSO_NONE);
            turn.bytes_from_guest += self.chain.readable_bytes;
        };
        turn.interrupts += signal(&mut self.ring, self.call_fd);
        turn
    }

    /// Send the frame in `chain` and return its GSO type. `None`: nothing was sent.
    fn send(&mut self, tap: &Tap) -> Option<u8> {
        let (chain, memory) = (&self.chain, self.ring.memory());
        let length = chain.readable_bytes.checked_sub(HEADER_BYTES as u64)?;
        let mut header = [0; HEADER_BYTES];
        read_front(memory, &chain.readable, &mut header);
        let header = accept(tap, &header, length)?;
        let slices = &chain.readable;
        fill(memory, &mut self.io_vecs, slices, HEADER_BYTES, length)?;
        if self.io_vecs.len() == IOV_MAX {
            return None; // with the header it is one too many
        }
        // A TAP takes a frame whole or not at all.
        sys::writev(tap.fd, &header, &mut self.io_vecs).ok()?;
        Some(header[1])
    }
}
