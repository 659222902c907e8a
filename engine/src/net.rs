// SPDX-License-Identifier: BSD-3-Clause
//! What both directions of a network card on a TAP have in common (virtio 1.3 §5.1).

use crate::block::{Limits, Outcome};
use crate::net_header::GsoTypes;
use crate::net_receive::ReceiveQueue;
use crate::net_transmit::TransmitQueue;
use crate::ring::{Position, Ring};
use crate::sys;

/// struct virtio_net_hdr, which precedes each frame.
pub const HEADER_BYTES: usize = 12;
/// The length of an Ethernet header.
pub const MIN_FRAME_BYTES: u64 = 14;
/// The largest IP packet with an Ethernet header, rounded up.
pub const MAX_FRAME_BYTES: u64 = 65550;

/// One queue of a TAP, and what the driver of a pair of queues negotiated. Python may change these
/// fields between two turns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tap {
    /// The descriptor of the TAP, which Python owns. It does not block.
    pub fd: i32,
    /// Whether a frame that is received may be divided between several chains.
    pub merge: bool,
    /// Whether the driver may leave a checksum to the host.
    pub host_checksums: bool,
    /// The segments that the driver may leave to the host.
    pub host_gso: GsoTypes,
    /// The flags that the header of a frame from the host may have.
    pub guest_flags: u8,
    /// The segments that the driver can take.
    pub guest_gso: GsoTypes,
    /// A guess at the size of the next frame from the host, in bytes, with its header.
    pub expected: u64,
}

/// What one turn did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NetTurn {
    /// Why it ended. For a queue that receives, `More` also means that the TAP has no more frames.
    pub outcome: Outcome,
    /// How many interrupts were sent.
    pub interrupts: u32,
    /// How many chains were used.
    pub chains: u64,
    /// Bytes that were read from the guest's buffers, including headers.
    pub bytes_from_guest: u64,
    /// Bytes that were written to the guest's buffers, including headers.
    pub bytes_to_guest: u64,
    /// How many frames were passed on.
    pub frames: u64,
    /// How many of these were segments that somebody has to divide (GSO).
    pub large: u64,
    /// The size of a frame that was taken from the TAP and that Python has to deliver; or 0.
    pub frame_bytes: u64,
    /// The error with which the TAP gave no frame, for Python to handle; or 0.
    pub error: i32,
}

/// A queue that receives or transmits.
pub enum NetQueue {
    /// Frames of the host go to the driver.
    Receive(ReceiveQueue),
    /// Frames of the driver go to the host.
    Transmit(TransmitQueue),
}

impl NetQueue {
    /// Move some frames.
    pub fn turn(&mut self, tap: &mut Tap, limits: &Limits) -> NetTurn {
        match self {
            Self::Receive(queue) => queue.turn(tap, limits),
            Self::Transmit(queue) => queue.turn(tap, limits),
        }
    }

    /// The frame that Python has to deliver, if the last turn said so.
    pub fn frame(&self) -> &[u8] {
        match self {
            Self::Receive(queue) => queue.frame(),
            Self::Transmit(_) => &[],
        }
    }

    /// The position of the queue. Nothing is in flight between two turns.
    pub fn position(&self) -> Position {
        match self {
            Self::Receive(queue) => queue.ring.position(),
            Self::Transmit(queue) => queue.ring.position(),
        }
    }

    /// Continue at another position, after Python has served the queue.
    pub fn set_position(&mut self, position: Position) {
        match self {
            Self::Receive(queue) => queue.ring.set_position(position),
            Self::Transmit(queue) => queue.ring.set_position(position),
        }
    }
}

/// Interrupt the driver if it wants that; return how many interrupts were sent.
pub fn signal(ring: &mut Ring, call_fd: i32) -> u32 {
    let wanted = ring.wants_interrupt() && call_fd >= 0;
    if wanted {
        sys::signal_eventfd(call_fd);
    }
    u32::from(wanted)
}
