// SPDX-License-Identifier: BSD-3-Clause
//! A disk's queue beside a guest that runs meanwhile: one that is right, and one that is hostile.
//! How much they do is counted; `CROSVM_ENGINE_ROUNDS=N` makes it N times as much.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::block::{BlockQueue, Disk, Limits, Outcome, Turn};
use crate::memory::testing::{memory, put};
use crate::memory::{GuestMemory, Part, PAGE_BYTES};
use crate::ring::{Chain, Layout, Popped, Position, Ring};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const INDIRECT: u64 = 0x4000;
const HEADERS: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const MEMORY_BYTES: usize = 0x4_0000;
const SIZE: u16 = 16;
const SECTORS: u64 = 64;
const LIMITS: Limits = Limits {
    chains: 64,
    bytes: 1 << 20,
    poll_ns: 2_000,
};
/// Only a wake-up that is lost takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

fn rounds(count: u64) -> u64 {
    let times = std::env::var("CROSVM_ENGINE_ROUNDS").map_or(1, |text| text.parse().expect("N"));
    if cfg!(miri) {
        (count / 1000).max(1)
    } else {
        count * times
    }
}

/// xorshift64: decisions that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % count
    }
}

/// Says that one side is over, also if that is by a panic: the other must not wait for ever.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The driver's side of the queue.
struct Driver {
    memory: Arc<GuestMemory>,
    avail: Part,
    used: Part,
}

impl Driver {
    fn new(memory: &Arc<GuestMemory>) -> Self {
        let size = u64::from(SIZE);
        Self {
            memory: Arc::clone(memory),
            avail: Part::new(memory, AVAIL, 6 + 2 * size, 2).expect("a part"),
            used: Part::new(memory, USED, 6 + 8 * size, 4).expect("a part"),
        }
    }

    fn desc(&self, table: u64, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let word = u128::from(addr)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        put(
            &self.memory,
            table + 16 * u64::from(at),
            &word.to_le_bytes(),
        );
    }

    /// Describe a read of `length` bytes in an indirect table; `slot` is its place and its head.
    fn describe_read(&self, slot: u16, sector: u64, data: u64, length: u32) {
        let header = HEADERS + 32 * u64::from(slot);
        put(&self.memory, header, &0u64.to_le_bytes());
        put(&self.memory, header + 8, &sector.to_le_bytes());
        put(&self.memory, header + 16, &[0xEE]);
        let table = INDIRECT + 48 * u64::from(slot);
        self.desc(table, 0, header, 16, 1, 1);
        self.desc(table, 1, data, length, 3, 2);
        self.desc(table, 2, header + 16, 1, 2, 0);
        self.desc(TABLE, slot, table, 48, 4, 0);
    }

    /// Offer the chain of `slot` as number `at`.
    fn offer(&self, at: u16, slot: u16) {
        self.avail.store_u16(4 + 2 * usize::from(at % SIZE), slot);
        self.avail.store_u16(2, at.wrapping_add(1));
    }

    fn used_idx(&self) -> u16 {
        self.used.load_u16(2)
    }

    /// The head and the length in used element `at`.
    fn element(&self, at: u16) -> (u32, u32) {
        let mut bytes = [0; 8];
        let offset = 4 + 8 * usize::from(at % SIZE);
        self.memory
            .read(&self.used.slice().after(offset), &mut bytes);
        let number = u64::from_le_bytes(bytes);
        (number as u32, (number >> 32) as u32)
    }

    /// Ask for an interrupt when number `at` is used; return whether it is used already.
    fn await_used(&self, at: u16) -> bool {
        self.avail.store_u16(4 + 2 * usize::from(SIZE), at);
        fence(Ordering::SeqCst);
        self.used_idx() != at
    }

    /// Whether the device wants a kick for number `at`, which was just offered.
    fn must_kick(&self, at: u16) -> bool {
        fence(Ordering::SeqCst);
        self.used.load_u16(4 + 8 * usize::from(SIZE)) == at
    }
}

fn layout() -> Layout {
    Layout {
        desc_table: TABLE,
        avail_ring: AVAIL,
        used_ring: USED,
        size: u32::from(SIZE),
        event_idx: true,
        indirect: true,
    }
}

fn ring(memory: &Arc<GuestMemory>) -> Ring {
    Ring::new(Arc::clone(memory), &layout(), Position::default()).expect("a ring")
}

/// A disk whose sectors are full of their numbers, and its image.
fn disk() -> (Disk, File) {
    let name = format!("crosvm-guest-{:?}", std::thread::current().id());
    let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    let mut image = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("an image");
    std::fs::remove_file(&path).expect("it is there");
    for sector in 0..SECTORS {
        image.write_all(&[sector as u8 + 1; 512]).expect("space");
    }
    let disk = Disk {
        fd: image.as_raw_fd(),
        read_only: false,
        writethrough: false,
        cached: false,
        capacity_sectors: SECTORS,
    };
    (disk, image)
}

fn turn(queue: &mut BlockQueue, disk: &Disk) -> Turn {
    queue.turn(disk, &LIMITS, None, &mut [])
}

/// Take what the engine leaves to Python: return the chain unused.
fn be_python(queue: &mut BlockQueue) {
    let mut position = queue.ring.position();
    position.next_avail = position.next_avail.wrapping_add(1);
    position.next_used = position.next_used.wrapping_add(1);
    queue.ring.set_position(position);
}

#[test]
fn used_element_and_data_are_there_before_the_index() {
    let (memory, _) = memory(MEMORY_BYTES);
    let mut ring = ring(&memory);
    let driver = Driver::new(&memory);
    for slot in 0..SIZE {
        driver.desc(TABLE, slot, DATA + 8 * u64::from(slot), 8, 2, 0);
    }
    let count = rounds(50_000);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut chain = Chain::default();
            for number in 0..count {
                while ring.pop(&mut chain) != Popped::Chain {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    std::hint::spin_loop();
                }
                let buffer = chain.writable[0];
                ring.memory().store(&buffer, &number.to_le_bytes());
                ring.add_used(chain.head, number);
            }
        });
        let _end = End(&is_over);
        for number in 0..count {
            let at = number as u16;
            driver.offer(at, at % SIZE);
            while driver.used_idx() == at {
                std::hint::spin_loop();
            }
            let head = u32::from(at % SIZE);
            assert_eq!(driver.element(at), (head, number as u32));
            let buffer = driver
                .memory
                .slice(DATA + 8 * u64::from(head), 8)
                .expect("inside");
            let mut data = [0; 8];
            driver.memory.read(&buffer, &mut data);
            assert_eq!(u64::from_le_bytes(data), number);
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "timeouts of sockets")]
fn no_wake_up_is_lost() {
    let (memory, _) = memory(MEMORY_BYTES);
    let driver = Driver::new(&memory);
    let (disk, _image) = disk();
    let (kick, mut kicked) = UnixStream::pair().expect("sockets");
    let (call, called) = UnixStream::pair().expect("sockets");
    let mut queue = BlockQueue::new(ring(&memory), -1, call.as_raw_fd());
    let count = rounds(10_000);
    called.set_read_timeout(Some(PATIENCE)).expect("a socket");
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| drive(&driver, count, kick, called));
        let mut byte = [0];
        while kicked.read(&mut byte).expect("a kick") == 1 {
            while turn(&mut queue, &disk).outcome == Outcome::More {}
        }
        let (kicks, interrupts) = guest.join().expect("what it saw");
        let often = count / 1000; // both sides slept often enough to tell
        assert!(kicks > often && interrupts > often, "{kicks} {interrupts}");
    });
}

/// Make `count` reads, one at a time; return how many kicks and interrupts that took.
fn drive(driver: &Driver, count: u64, mut kick: UnixStream, mut called: UnixStream) -> (u64, u64) {
    let (mut kicks, mut interrupts) = (0, 0);
    let mut random = Random(0x1234_5678_9ABC_DEF1);
    for number in 0..count {
        let at = number as u16;
        let slot = at % SIZE;
        driver.describe_read(slot, random.below(SECTORS), DATA, 512);
        // Offer it while the device watches, while it goes to sleep, or later.
        for _ in 0..random.below(300) {
            std::hint::spin_loop();
        }
        driver.offer(at, slot);
        if driver.must_kick(at) {
            kicks += 1;
            kick.write_all(&[1]).expect("a socket");
        }
        // Sometimes look long enough to meet the device in any of its states, then sleep.
        for _ in 0..random.below(400) {
            std::hint::spin_loop();
        }
        while !driver.await_used(at) {
            let mut counter = [0; 8];
            called
                .read_exact(&mut counter)
                .unwrap_or_else(|error| panic!("request {number} is lost: {error}"));
            interrupts += 1;
        }
        assert_eq!(driver.element(at).0, u32::from(slot));
    }
    (kicks, interrupts)
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn every_page_that_changes_is_marked_dirty() {
    let mut random = Random(0xFEED_F00D_DEAD_BEEF);
    for _ in 0..rounds(100) {
        let (memory, bitmap) = memory(MEMORY_BYTES);
        let driver = Driver::new(&memory);
        let (disk, _image) = disk();
        let mut queue = BlockQueue::new(ring(&memory), -1, -1);
        for slot in 0..1 + random.below(u64::from(SIZE)) as u16 {
            let sectors = 1 + random.below(16);
            let room = MEMORY_BYTES as u64 - DATA - 512 * sectors;
            let data = DATA + random.below(room);
            let sector = random.below(SECTORS - sectors);
            driver.describe_read(slot, sector, data, 512 * sectors as u32);
            driver.offer(slot, slot);
        }
        let whole = memory.slice(0, MEMORY_BYTES as u64).expect("all");
        let (mut before, mut after) = (vec![0; MEMORY_BYTES], vec![0; MEMORY_BYTES]);
        memory.read(&whole, &mut before);
        for word in bitmap {
            word.store(0, Ordering::Relaxed);
        }
        assert_eq!(turn(&mut queue, &disk).outcome, Outcome::Idle);
        memory.read(&whole, &mut after);
        let pages = before
            .chunks(PAGE_BYTES as usize)
            .zip(after.chunks(PAGE_BYTES as usize));
        for (page, (old, new)) in pages.enumerate() {
            let is_marked = bitmap[page / 64].load(Ordering::Relaxed) >> (page % 64) & 1 == 1;
            assert!(old == new || is_marked, "page {page}");
        }
    }
}

#[test]
fn short_read_is_left_for_python() {
    let (memory, _) = memory(MEMORY_BYTES);
    let driver = Driver::new(&memory);
    let (mut disk, _image) = disk();
    disk.capacity_sectors += 1; // the image is shorter than the disk
    let mut queue = BlockQueue::new(ring(&memory), -1, -1);
    driver.describe_read(0, SECTORS - 1, DATA, 1024);
    driver.offer(0, 0);
    let done = turn(&mut queue, &disk);
    assert_eq!((done.outcome, done.requests), (Outcome::Python, 0));
    assert_eq!(driver.used_idx(), 0);
}

#[test]
#[cfg_attr(miri, ignore = "a race, on purpose")]
fn memory_that_changes_meanwhile_harms_nobody() {
    let (memory, _) = memory(MEMORY_BYTES);
    let driver = Driver::new(&memory);
    let (disk, _image) = disk();
    let mut queue = BlockQueue::new(ring(&memory), -1, -1);
    let is_over = AtomicBool::new(false);
    let (mut served, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(0x0DD0_15EA_5E5A_1AD5);
            while !is_over.load(Ordering::Relaxed) {
                // Bytes of descriptors, tables and headers; a few numbers that matter, and others.
                let place = [TABLE, INDIRECT, HEADERS, AVAIL + 4][random.below(4) as usize];
                let at = place + random.below(16 * u64::from(SIZE));
                let byte = [0, 1, 2, 3, 4, 7, 0x10, 0xFF][random.below(8) as usize];
                put(&driver.memory, at, &[byte]);
            }
        });
        let _end = End(&is_over);
        let mut random = Random(0xC0FF_EE00_C0FF_EE01);
        let mut at = 0u16;
        for _ in 0..rounds(20_000) {
            for _ in 0..random.below(8) {
                let slot = random.below(u64::from(SIZE)) as u16;
                driver.describe_read(slot, random.below(SECTORS), DATA, 512);
                if at.wrapping_sub(queue.ring.position().next_used) < SIZE {
                    driver.offer(at, slot);
                    at = at.wrapping_add(1);
                }
            }
            let done = turn(&mut queue, &disk);
            served += done.requests;
            if done.outcome == Outcome::Python {
                be_python(&mut queue);
                refused += 1;
            }
        }
    });
    assert!(served > 0 && refused > 0, "{served} {refused}");
}
