// SPDX-License-Identifier: BSD-3-Clause
//! Turns of a queue whose transfers are put off: for a pool, or because they miss the page cache.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use super::*;
use crate::memory::testing::{memory, put};
use crate::memory::GuestMemory;
use crate::ring::{Layout, Position};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADERS: u64 = 0x4000;
const DATA: u64 = 0x8000;
const SIZE: u16 = 64;
const LIMITS: Limits = Limits {
    chains: 256,
    bytes: 1 << 20,
    poll_ns: 0,
};

/// A queue in which request `n`, if it is a read, reads sector `n` to its own place.
struct Rig {
    memory: Arc<GuestMemory>,
    queue: BlockQueue,
    disk: Disk,
    _image: File,
    offered: u16,
}

/// Return an empty file that only its owner knows.
fn unnamed_file() -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("crosvm-engine-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let file = options.open(&path).expect("a file");
    std::fs::remove_file(&path).expect("it is there");
    file
}

impl Rig {
    /// A disk of 16 sectors, each full of its number, whose image has only `sectors`.
    fn new(sectors: u8) -> Self {
        let mut image = unnamed_file();
        for sector in 0..sectors {
            image.write_all(&[sector; 512]).expect("space");
        }
        let (memory, _) = memory(0x40000);
        let layout = Layout {
            desc_table: TABLE,
            avail_ring: AVAIL,
            used_ring: USED,
            size: u32::from(SIZE),
            event_idx: false,
            indirect: false,
        };
        let ring = Ring::new(Arc::clone(&memory), &layout, Position::default());
        Self {
            queue: BlockQueue::new(ring.expect("a ring"), -1, -1),
            disk: Disk {
                fd: image.as_raw_fd(),
                read_only: false,
                writethrough: false,
                cached: false,
                capacity_sectors: 16,
            },
            memory,
            _image: image,
            offered: 0,
        }
    }

    /// Offer a request for a sector; the one of a flush is ignored.
    fn offer(&mut self, kind: u32, sector: u64) {
        let number = u64::from(self.offered);
        let first = (self.offered * 3) % SIZE;
        let header = HEADERS + 32 * number;
        put(&self.memory, header, &kind.to_le_bytes());
        put(&self.memory, header + 8, &sector.to_le_bytes());
        put(&self.memory, header + 16, &[0xEE]);
        let direction = if kind == 0 { 2 } else { 0 };
        let length = if kind == 4 { 0 } else { 512 };
        let data = DATA + 512 * number;
        self.desc(first, header, 16, 1, first + 1);
        self.desc(first + 1, data, length, 1 | direction, first + 2);
        self.desc(first + 2, header + 16, 1, 2, 0);
        put(&self.memory, AVAIL + 4 + 2 * number, &first.to_le_bytes());
        self.offered += 1;
        put(&self.memory, AVAIL + 2, &self.offered.to_le_bytes());
    }

    fn desc(&self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let word = u128::from(addr)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        put(
            &self.memory,
            TABLE + 16 * u64::from(at),
            &word.to_le_bytes(),
        );
    }

    fn byte(&self, gpa: u64) -> u8 {
        let mut byte = [0];
        let slice = self.memory.slice(gpa, 1).expect("inside");
        self.memory.read(&slice, &mut byte);
        byte[0]
    }

    fn turn(&mut self, threads: usize) -> Turn {
        let pool = Pool::start(threads).expect("threads");
        self.queue.turn(&self.disk, &LIMITS, Some(&pool), &mut [])
    }

    /// Have a turn without a pool.
    fn turn_alone(&mut self) -> Turn {
        self.queue.turn(&self.disk, &LIMITS, None, &mut [])
    }

    /// The heads in the used ring, in their order.
    fn used(&self) -> Vec<u16> {
        let count = u16::from_le_bytes([self.byte(USED + 2), self.byte(USED + 3)]);
        (0..u64::from(count))
            .map(|at| u16::from(self.byte(USED + 4 + 8 * at)))
            .collect()
    }
}

#[test]
fn transfers_in_any_order_are_published_in_theirs() {
    for threads in [0, 1, 4] {
        let mut rig = Rig::new(16);
        for number in 0..16 {
            rig.offer(0, 15 - number);
        }
        let turn = rig.turn(threads);
        assert_eq!((turn.outcome, turn.requests), (Outcome::Idle, 16));
        assert!(rig.used().into_iter().eq((0..16).map(|at| at * 3)));
        for number in 0..16u8 {
            let data = DATA + 512 * u64::from(number) + 511;
            assert_eq!(rig.byte(data), 15 - number);
        }
    }
}

#[test]
fn failed_transfer_and_all_after_it_are_left_for_python() {
    for threads in [0, 1, 4] {
        let mut rig = Rig::new(8); // the image is shorter than the disk
        for sector in [1, 2, 9, 3] {
            rig.offer(0, sector);
        }
        let turn = rig.turn(threads);
        assert_eq!((turn.outcome, turn.requests), (Outcome::Python, 2));
        assert_eq!(rig.queue.ring.position().next_avail, 2);
        assert_eq!(rig.used(), [0, 3]);
        assert_eq!(rig.byte(HEADERS + 32 * 3 + 16), 0xEE); // no status
    }
}

#[test]
fn flush_waits_for_the_writes_before_it() {
    let mut rig = Rig::new(16);
    // Here writes fail, and a flush does not: if it came first, it would be carried out.
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let image = File::open(manifest).expect("readable");
    rig.disk.fd = image.as_raw_fd();
    rig.offer(1, 0);
    rig.offer(4, 0);
    rig.offer(0, 1);
    let turn = rig.turn(0);
    assert_eq!((turn.outcome, turn.requests), (Outcome::Python, 0));
    assert_eq!(rig.queue.ring.position().next_avail, 0);
    assert_eq!(sys::testing::calls(), ["pwritev2"]);
}

#[test]
fn what_is_pythons_waits_for_the_transfers_before_it() {
    for threads in [0, 4] {
        let mut rig = Rig::new(16);
        rig.offer(0, 1);
        rig.offer(0, 2);
        rig.offer(8, 0); // GET_ID
        rig.offer(0, 3);
        let turn = rig.turn(threads);
        assert_eq!((turn.outcome, turn.requests), (Outcome::Python, 2));
        assert_eq!(rig.queue.ring.position().next_avail, 2);
    }
}

#[test]
fn limit_counts_what_was_started() {
    let mut rig = Rig::new(16);
    for number in 0..16 {
        rig.offer(0, number);
    }
    let limits = Limits {
        chains: 5,
        ..LIMITS
    };
    let pool = Pool::start(2).expect("threads");
    let turn = rig.queue.turn(&rig.disk, &limits, Some(&pool), &mut []);
    assert_eq!((turn.outcome, turn.requests), (Outcome::More, 5));
    assert_eq!(rig.used().len(), 5);
}

/// Give `first` turns until it has watched its ring for a while, which it does not every time.
fn turns_beside(first: &mut Rig, second: &mut Rig) {
    let limits = Limits {
        poll_ns: 100_000,
        ..LIMITS
    };
    for _ in 0..16 {
        let others = &mut [&mut second.queue];
        let turn = first.queue.turn(&first.disk, &limits, None, others);
        assert_eq!(turn.outcome, Outcome::Idle);
    }
}

#[test]
fn who_watches_its_ring_serves_the_others_too() {
    let (mut first, mut second) = (Rig::new(16), Rig::new(16));
    second.queue.is_held = true;
    second.offer(0, 7);
    second.offer(0, 8);
    turns_beside(&mut first, &mut second);
    assert_eq!(second.used(), [0, 3]);
    assert_eq!((second.byte(DATA), second.byte(DATA + 512)), (7, 8));
    assert_eq!(second.byte(USED), 0); // it asks for kicks again
}

#[test]
fn queue_that_is_with_python_is_not_served() {
    let (mut first, mut second) = (Rig::new(16), Rig::new(16));
    second.offer(0, 7);
    turns_beside(&mut first, &mut second);
    assert!(second.used().is_empty());
}

#[test]
fn what_another_queue_has_for_python_is_announced_by_a_kick() {
    let (mut first, mut second) = (Rig::new(16), Rig::new(16));
    let kick = unnamed_file();
    second.queue.kick_fd = kick.as_raw_fd();
    second.queue.is_held = true;
    second.offer(0, 7);
    second.offer(8, 0); // GET_ID
    turns_beside(&mut first, &mut second);
    assert_eq!(second.used(), [0]);
    assert!(!second.queue.is_held);
    assert!(kick.metadata().expect("open").len() >= 8);
}

/// Of an image in the page cache, with odd sectors missing there.
fn with_odd_sectors_missing(sectors: u8) -> Rig {
    sys::testing::set_cached(|offset| (offset / 512 % 2 == 1).then_some(Some(0)));
    let mut rig = Rig::new(sectors);
    rig.disk.cached = true;
    rig
}

#[test]
fn reads_that_miss_go_back_in_the_order_of_the_ring() {
    let mut rig = with_odd_sectors_missing(16);
    for sector in [2, 5, 4, 7, 1, 6] {
        rig.offer(0, sector);
    }
    let turn = rig.turn_alone();
    assert_eq!((turn.outcome, turn.requests), (Outcome::Idle, 6));
    assert_eq!(rig.used(), [0, 3, 6, 9, 12, 15]);
    for (at, sector) in [2, 5, 4, 7, 1, 6].into_iter().enumerate() {
        assert_eq!(rig.byte(DATA + 512 * at as u64 + 511), sector);
        assert_eq!(rig.byte(HEADERS + 32 * at as u64 + 16), 0); // its status
    }
}

#[test]
fn read_that_is_cached_in_part_is_made_again() {
    sys::testing::set_cached(|_| Some(Some(100)));
    let mut rig = Rig::new(16);
    rig.disk.cached = true;
    rig.offer(0, 3);
    assert_eq!(rig.turn_alone().requests, 1);
    assert_eq!(rig.byte(DATA + 511), 3);
}

#[test]
fn miss_that_fails_and_all_after_it_are_left_for_python() {
    let mut rig = with_odd_sectors_missing(8); // the image is shorter than the disk
    for sector in [1, 9, 2, 3] {
        rig.offer(0, sector);
    }
    let turn = rig.turn_alone();
    assert_eq!((turn.outcome, turn.requests), (Outcome::Python, 1));
    assert_eq!(rig.queue.ring.position().next_avail, 1);
    assert_eq!(rig.used(), [0]);
    assert_eq!(rig.byte(HEADERS + 32 * 2 + 16), 0xEE); // no status
    let mut position = rig.queue.ring.position();
    position.next_avail = 2; // Python has served it
    rig.queue.ring.set_position(position);
    assert_eq!(rig.turn_alone().requests, 2);
    assert_eq!(rig.byte(DATA + 512 * 3), 3);
}

#[test]
fn what_is_pythons_waits_for_the_misses_before_it() {
    let mut rig = with_odd_sectors_missing(16);
    for (kind, sector) in [(0, 1), (0, 2), (8, 0), (0, 3)] {
        rig.offer(kind, sector);
    }
    let turn = rig.turn_alone();
    assert_eq!((turn.outcome, turn.requests), (Outcome::Python, 2));
    assert_eq!(rig.queue.ring.position().next_avail, 2);
    assert_eq!(rig.used(), [0, 3]);
}

#[test]
fn writes_and_flushes_go_back_after_the_misses_before_them() {
    let mut rig = with_odd_sectors_missing(16);
    for (kind, sector) in [(0, 1), (1, 2), (4, 0), (0, 3), (0, 2)] {
        rig.offer(kind, sector);
    }
    let turn = rig.turn_alone();
    assert_eq!((turn.outcome, turn.requests), (Outcome::Idle, 5));
    assert_eq!(rig.used(), [0, 3, 6, 9, 12]);
    assert_eq!(rig.byte(DATA + 512 * 4), 0); // what was written
}

#[test]
fn host_that_does_not_tell_what_is_cached_is_asked_once() {
    sys::testing::set_cached(|_| Some(None));
    let mut rig = Rig::new(16);
    rig.disk.cached = true;
    rig.offer(0, 3);
    assert_eq!(rig.turn_alone().requests, 1);
    assert!(!rig.queue.knows_misses);
    sys::testing::set_cached(|_| panic!("asked again"));
    rig.offer(0, 4);
    assert_eq!(rig.turn_alone().requests, 1);
    assert_eq!(rig.byte(DATA + 512), 4);
}
