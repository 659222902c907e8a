// SPDX-License-Identifier: BSD-3-Clause
//! How many reads and writes a disk did, and how long some of them took. The numbers are cells in
//! memory that the vmm reads while they change. `devices/virtio/block/latency.py` has the same.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// One request of so many is timed: to look at the clock for each would cost some percent.
const TIMED: u32 = 8;

/// The cells of one kind of request, in nanoseconds.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Cells {
    count: AtomicU64,
    timed: AtomicU64,
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
}

/// The cells of a disk. Only one thread changes them at a time.
#[repr(C)]
#[derive(Debug, Default)]
pub struct DiskCells {
    /// Those of reads.
    pub reads: Cells,
    /// Those of writes.
    pub writes: Cells,
}

/// A request that is to be counted when it is done.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    cells: &'static Cells,
    begun: Option<Instant>,
}

impl Noted {
    /// Begin a request, the one after `seen` others of its kind.
    pub fn begin(cells: &'static Cells, seen: &mut u32) -> Self {
        let begun = (*seen % TIMED == 0).then(Instant::now);
        *seen = seen.wrapping_add(1);
        Self { cells, begun }
    }

    /// The request is done.
    pub fn end(self) {
        add(&self.cells.count, 1);
        if let Some(begun) = self.begun {
            self.cells
                .take(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

impl Cells {
    fn take(&self, ns: u64) {
        let is_first = self.timed.load(Relaxed) == 0;
        if is_first || ns < self.min.load(Relaxed) {
            self.min.store(ns, Relaxed);
        }
        if is_first || ns > self.max.load(Relaxed) {
            self.max.store(ns, Relaxed);
        }
        add(&self.sum, ns);
        add(&self.timed, 1);
    }
}

fn add(cell: &AtomicU64, amount: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::{add, Cells, Noted, Relaxed, TIMED};

    fn values(cells: &Cells) -> [u64; 5] {
        [
            &cells.count,
            &cells.timed,
            &cells.sum,
            &cells.min,
            &cells.max,
        ]
        .map(|cell| cell.load(Relaxed))
    }

    #[test]
    fn times_have_bounds_and_a_sum() {
        let cells = Cells::default();
        for ns in [30, 10, 20] {
            cells.take(ns);
        }
        assert_eq!(values(&cells), [0, 3, 60, 10, 30]);
    }

    #[test]
    fn every_request_is_counted_and_some_are_timed() {
        let cells: &'static Cells = Box::leak(Box::default());
        let mut seen = 0;
        for _ in 0..=TIMED {
            Noted::begin(cells, &mut seen).end();
        }
        assert_eq!(values(cells)[..2], [u64::from(TIMED) + 1, 2]);
    }

    #[test]
    fn cells_that_somebody_has_filled_wrap() {
        let cells = Cells::default();
        cells.sum.store(u64::MAX, Relaxed);
        cells.take(2);
        assert_eq!(values(&cells), [0, 1, 1, 2, 2]);
        add(&cells.count, u64::MAX);
        add(&cells.count, 2);
        assert_eq!(values(&cells)[0], 1);
    }
}
