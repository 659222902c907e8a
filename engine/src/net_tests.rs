// SPDX-License-Identifier: BSD-3-Clause
//! Both queues of a network card, with a datagram socket in place of a TAP.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use crate::block::{Limits, Outcome};
use crate::memory::testing::{memory, put};
use crate::memory::GuestMemory;
use crate::net::{NetTurn, Tap, HEADER_BYTES};
use crate::net_receive::ReceiveQueue;
use crate::net_transmit::TransmitQueue;
use crate::ring::{Layout, Position, Ring};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x4000;
const SIZE: u32 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const LIMITS: Limits = Limits {
    chains: 64,
    bytes: 0,
    poll_ns: 0,
};

/// A ring whose chain number `n` is its descriptor number `n`, and the host's end of the TAP.
struct Rig {
    memory: Arc<GuestMemory>,
    host: UnixDatagram,
    end: UnixDatagram,
    tap: Tap,
}

impl Rig {
    fn new(merge: bool) -> Self {
        let (host, end) = UnixDatagram::pair().expect("a pair");
        host.set_nonblocking(true).expect("it does not block");
        end.set_nonblocking(true).expect("it does not block");
        let tap = Tap {
            fd: end.as_raw_fd(),
            merge,
            expected: 1,
            ..Tap::default()
        };
        let (memory, _) = memory(0x2_0000);
        Self {
            memory,
            host,
            end,
            tap,
        }
    }

    fn ring(&self) -> Ring {
        let layout = Layout {
            desc_table: TABLE,
            avail_ring: AVAIL,
            used_ring: USED,
            size: SIZE,
            event_idx: false,
            indirect: false,
        };
        Ring::new(Arc::clone(&self.memory), &layout, Position::default()).expect("a ring")
    }

    /// Offer one chain for each buffer, with 0x1000 bytes of memory at most.
    fn offer(&self, lengths: &[u32], flags: u16) {
        for (at, length) in lengths.iter().enumerate() {
            let address = DATA + 0x1000 * at as u64;
            let word = u128::from(address) | u128::from(*length) << 64 | u128::from(flags) << 96;
            put(&self.memory, TABLE + 16 * at as u64, &word.to_le_bytes());
            put(
                &self.memory,
                AVAIL + 4 + 2 * at as u64,
                &(at as u16).to_le_bytes(),
            );
        }
        put(
            &self.memory,
            AVAIL + 2,
            &(lengths.len() as u16).to_le_bytes(),
        );
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let slice = self.memory.slice(address, length as u64).expect("inside");
        self.memory.read(&slice, &mut data);
        data
    }

    /// What was written to each chain in the used ring.
    fn used(&self) -> Vec<u32> {
        let count = u16::from_le_bytes(self.read(USED + 2, 2).try_into().expect("2 bytes"));
        let written = |at: u16| {
            let bytes = self.read(USED + 8 + 8 * u64::from(at), 4);
            u32::from_le_bytes(bytes.try_into().expect("4 bytes"))
        };
        (0..count).map(written).collect()
    }

    fn sent(&self) -> Option<Vec<u8>> {
        let mut data = vec![0; 0x1_0000];
        match self.host.recv(&mut data) {
            Ok(length) => Some(data[..length].to_vec()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }
}

fn whole(length: usize) -> Vec<u8> {
    let mut data: Vec<u8> = (0..HEADER_BYTES + length).map(|at| at as u8).collect();
    data[..HEADER_BYTES].fill(0);
    data
}

fn receive(rig: &mut Rig, queue: &mut ReceiveQueue) -> NetTurn {
    queue.turn(&mut rig.tap, &LIMITS)
}

#[test]
fn frame_is_divided_between_buffers_and_published_at_once() {
    let mut rig = Rig::new(true);
    let mut queue = ReceiveQueue::new(rig.ring(), -1);
    rig.offer(&[100; 4], WRITE);
    rig.host.send(&whole(200)).expect("there is room");
    let turn = receive(&mut rig, &mut queue);
    assert_eq!(
        (turn.outcome, turn.frames, turn.chains),
        (Outcome::More, 1, 3)
    );
    assert_eq!(rig.used(), [100, 100, 12]);
    assert_eq!(rig.read(DATA + 10, 2), [3, 0]);
    assert_eq!(rig.read(DATA + 12, 88), whole(200)[12..100]);
    assert_eq!(rig.read(DATA + 0x1000, 100), whole(200)[100..200]);
    assert_eq!(queue.ring.position().next_avail, 3);
}

#[test]
fn frame_without_enough_buffers_goes_to_python_whole() {
    let mut rig = Rig::new(true);
    let mut queue = ReceiveQueue::new(rig.ring(), -1);
    rig.offer(&[100; 2], WRITE);
    rig.host.send(&whole(300)).expect("there is room");
    let turn = receive(&mut rig, &mut queue);
    assert_eq!((turn.outcome, turn.frame_bytes), (Outcome::Python, 312));
    assert_eq!(queue.frame(), whole(300));
    assert_eq!(rig.tap.expected, 1);
    assert_eq!(queue.ring.position().next_avail, 0);
    assert!(rig.used().is_empty());
}

#[test]
fn frame_that_the_driver_cannot_take_goes_to_python() {
    for (merge, length, header) in [(true, 60, [0, 1]), (true, 60, [1, 0]), (false, 200, [0, 0])] {
        let mut rig = Rig::new(merge);
        let mut queue = ReceiveQueue::new(rig.ring(), -1);
        rig.offer(&[100; 4], WRITE);
        let mut frame = whole(length);
        frame[..2].copy_from_slice(&header);
        rig.host.send(&frame).expect("there is room");
        let turn = receive(&mut rig, &mut queue);
        assert_eq!(turn.outcome, Outcome::Python, "{header:?}");
        assert_eq!(queue.frame(), frame);
        assert!(rig.used().is_empty());
    }
}

#[test]
fn empty_tap_and_empty_ring_are_told_apart() {
    let mut rig = Rig::new(true);
    let mut queue = ReceiveQueue::new(rig.ring(), -1);
    assert_eq!(receive(&mut rig, &mut queue).outcome, Outcome::Idle);
    rig.offer(&[100], WRITE);
    assert_eq!(receive(&mut rig, &mut queue).outcome, Outcome::More);
    assert_eq!(queue.ring.position().next_avail, 0);
}

#[test]
fn error_of_the_tap_is_handed_on() {
    let mut rig = Rig::new(true);
    let mut queue = ReceiveQueue::new(rig.ring(), -1);
    rig.offer(&[100], WRITE);
    rig.tap.fd = -1;
    let turn = receive(&mut rig, &mut queue);
    assert_eq!((turn.outcome, turn.error), (Outcome::Python, 9)); // EBADF
}

#[test]
fn unusable_buffer_is_pythons() {
    for (length, flags) in [(11, WRITE), (100, 0)] {
        let mut rig = Rig::new(true);
        let mut queue = ReceiveQueue::new(rig.ring(), -1);
        rig.offer(&[length], flags);
        assert_eq!(receive(&mut rig, &mut queue).outcome, Outcome::Python);
        assert_eq!(queue.ring.position().next_avail, 0);
    }
}

#[test]
fn frames_are_sent_until_one_is_pythons() {
    let rig = Rig::new(true);
    let mut queue = TransmitQueue::new(rig.ring(), -1);
    rig.offer(&[12 + 60, 12 + 14, 12 + 13, 12 + 60], 0);
    let turn = queue.turn(&rig.tap, &LIMITS);
    assert_eq!((turn.outcome, turn.frames), (Outcome::Python, 2));
    assert_eq!(turn.bytes_from_guest, 72 + 26);
    assert_eq!(rig.sent().map(|data| data.len()), Some(72));
    assert_eq!(rig.sent().map(|data| data.len()), Some(26));
    assert_eq!(rig.sent(), None);
    assert_eq!(rig.used(), [0, 0]);
    assert_eq!(queue.ring.position().next_avail, 2);
}

#[test]
fn frame_that_the_host_does_not_take_stays_in_the_ring() {
    let rig = Rig::new(true);
    let mut queue = TransmitQueue::new(rig.ring(), -1);
    while rig.end.send(&[0]).is_ok() {}
    rig.offer(&[72], 0);
    assert_eq!(queue.turn(&rig.tap, &LIMITS).outcome, Outcome::Python);
    assert!(rig.used().is_empty());
    assert_eq!(queue.ring.position().next_avail, 0);
}

#[test]
fn header_may_lie_in_several_descriptors() {
    let rig = Rig::new(true);
    let mut queue = TransmitQueue::new(rig.ring(), -1);
    rig.offer(&[7, 5 + 60], NEXT);
    put(&rig.memory, TABLE + 14, &1u16.to_le_bytes());
    put(&rig.memory, TABLE + 16 + 12, &0u16.to_le_bytes());
    put(&rig.memory, AVAIL + 2, &1u16.to_le_bytes());
    put(&rig.memory, DATA + 0x1000 + 5, &[9; 60]);
    let turn = queue.turn(&rig.tap, &LIMITS);
    assert_eq!((turn.outcome, turn.frames), (Outcome::Idle, 1));
    assert_eq!(
        rig.sent().map(|data| data[12..].to_vec()),
        Some(vec![9; 60])
    );
}
