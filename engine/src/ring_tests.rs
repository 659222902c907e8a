// SPDX-License-Identifier: BSD-3-Clause
//! Rings that a driver has written, well-formed and not.

use super::*;
use crate::memory::testing::{memory, put};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const INDIRECT: u64 = 0x5000;

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let word = u128::from(addr)
        | u128::from(len) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    word.to_le_bytes()
}

fn ring(descs: &[[u8; 16]], event_idx: bool) -> (Ring, Arc<GuestMemory>) {
    let (memory, _) = memory(0x10000);
    for (at, bytes) in descs.iter().enumerate() {
        put(&memory, TABLE + 16 * at as u64, bytes);
    }
    put(&memory, AVAIL + 2, &1u16.to_le_bytes());
    let layout = Layout {
        desc_table: TABLE,
        avail_ring: AVAIL,
        used_ring: USED,
        size: 8,
        event_idx,
        indirect: true,
    };
    let ring = Ring::new(Arc::clone(&memory), &layout, Position::default()).expect("a ring");
    (ring, memory)
}

fn popped(descs: &[[u8; 16]]) -> (Popped, Chain) {
    let mut chain = Chain::default();
    let found = ring(descs, false).0.pop(&mut chain);
    (found, chain)
}

#[test]
fn chain_is_followed_in_order() {
    let (found, chain) = popped(&[
        desc(0x8000, 16, DESC_F_NEXT, 3),
        [0; 16],
        [0; 16],
        desc(0x9000, 512, DESC_F_WRITE, 0),
    ]);
    assert_eq!(found, Popped::Chain);
    assert_eq!((chain.readable_bytes, chain.writable_bytes), (16, 512));
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
}

#[test]
fn malformed_chains_are_left_for_python() {
    for (name, descs) in [
        ("loop", vec![desc(0, 1, DESC_F_NEXT, 0)]),
        ("outside the table", vec![desc(0, 1, DESC_F_NEXT, 8)]),
        ("outside memory", vec![desc(0xFFFF, 2, 0, 0)]),
        (
            "a readable descriptor after an empty writable one",
            vec![desc(0, 0, DESC_F_NEXT | DESC_F_WRITE, 1), desc(0, 1, 0, 0)],
        ),
        (
            "a table whose size is no multiple of 16",
            vec![desc(INDIRECT, 17, DESC_F_INDIRECT, 0)],
        ),
        (
            "an empty table",
            vec![desc(INDIRECT, 0, DESC_F_INDIRECT, 0)],
        ),
        (
            "a table with a next",
            vec![desc(INDIRECT, 16, DESC_F_INDIRECT | DESC_F_NEXT, 1)],
        ),
    ] {
        assert_eq!(popped(&descs).0, Popped::Malformed, "{name}");
    }
}

#[test]
fn table_in_a_table_is_malformed() {
    let (mut ring, memory) = ring(&[desc(INDIRECT, 16, DESC_F_INDIRECT, 0)], false);
    put(&memory, INDIRECT, &desc(INDIRECT, 16, DESC_F_INDIRECT, 0));
    let mut chain = Chain::default();
    assert_eq!(ring.pop(&mut chain), Popped::Malformed);
    put(&memory, INDIRECT, &desc(0x8000, 16, 0, 0));
    assert_eq!(ring.pop(&mut chain), Popped::Chain);
}

#[test]
fn index_too_far_ahead_breaks_the_ring() {
    let (mut ring, memory) = ring(&[desc(0x8000, 16, 0, 0)], false);
    put(&memory, AVAIL + 2, &9u16.to_le_bytes());
    assert_eq!(ring.pop(&mut Chain::default()), Popped::Broken);
    assert_eq!(ring.position(), Position::default());
}

#[test]
fn interrupt_is_wanted_as_the_event_index_says() {
    for (used_event, wanted) in [(0u16, true), (1, false), (0xFFFF, false)] {
        let (mut ring, memory) = ring(&[desc(0x8000, 16, 0, 0)], true);
        put(&memory, AVAIL + 4 + 16, &used_event.to_le_bytes());
        assert_eq!(ring.pop(&mut Chain::default()), Popped::Chain);
        ring.add_used(0, 16);
        assert_eq!(ring.wants_interrupt(), wanted, "{used_event}");
        assert!(!ring.wants_interrupt());
    }
}
