// SPDX-License-Identifier: BSD-3-Clause
//! Threads that wait for the host's storage, so that several transfers of a disk are under way at
//! the same time.
//!
//! They are started before the seccomp filter of the process is loaded, which then holds for them
//! too. They only make transfers that one thread, the owner, has prepared. They allocate no memory.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::sys::{self, IoVec};

/// How many transfers may be under way: enough that no thread waits while the owner works.
pub const MAX_TRANSFERS: usize = 64;

// A thread's own frames need less than 4 KiB. A signal handler, which runs when the seccomp filter
// denies a call, needs the rest: the kernel saves up to 12 KiB of registers there.
const STACK_BYTES: usize = 64 << 10;

/// One preadv(2) or pwritev2(2), and its result.
#[derive(Debug)]
pub struct Transfer {
    /// A number by which the owner knows it.
    pub ticket: u64,
    /// The file.
    pub fd: i32,
    /// Whether it writes the file.
    pub write: bool,
    /// Whether what it writes must be on stable storage before it is done.
    pub stable: bool,
    /// Where in the file.
    pub offset: u64,
    /// Guest memory, which stays mapped until the owner has this back.
    pub io_vecs: Vec<IoVec>,
    /// How many bytes were moved; `None` for an error, and before it was carried out.
    pub moved: Option<u64>,
}

impl Transfer {
    /// Carry it out, and wait for the host.
    pub fn carry_out(&mut self) {
        self.moved = if self.write {
            sys::pwritev(self.fd, &self.io_vecs, self.offset, self.stable)
        } else {
            sys::preadv(self.fd, &self.io_vecs, self.offset)
        };
    }
}

struct State {
    waiting: VecDeque<Transfer>,
    done: Vec<Transfer>,
    started_threads: usize,
    idle_threads: usize,
    awaited: Option<u64>, // the ticket for which the owner sleeps
    is_ending: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    finished: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic ends the process, so no other thread finds a poisoned lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carry out transfers until the pool ends.
    fn serve(&self) {
        self.lock().started_threads += 1;
        self.finished.notify_one();
        let mut last = None;
        while let Some(mut transfer) = self.exchange(last) {
            transfer.carry_out();
            last = Some(transfer);
        }
    }

    /// Give back what was carried out, if anything was, and wait for the next.
    fn exchange(&self, last: Option<Transfer>) -> Option<Transfer> {
        let mut state = self.lock();
        let mut wake_owner = false;
        if let Some(last) = last {
            wake_owner = state.awaited == Some(last.ticket);
            state.done.push(last);
        }
        loop {
            let next = state.waiting.pop_front();
            // Who takes a transfer wakes a thread for the next one. So the owner, which has other
            // work to do, wakes only the first.
            let wake_thread = !state.waiting.is_empty() && state.idle_threads != 0;
            if wake_owner {
                state.awaited = None;
            }
            if next.is_some() || wake_owner {
                drop(state); // so that who is woken does not wait for the lock
                if wake_owner {
                    self.finished.notify_one();
                }
                if wake_thread {
                    self.work.notify_one();
                }
                if next.is_some() {
                    return next;
                }
                wake_owner = false;
                state = self.lock();
                continue;
            }
            if state.is_ending {
                return None;
            }
            state.idle_threads += 1;
            state = wait(&self.work, state);
            state.idle_threads -= 1;
        }
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition
        .wait(state)
        .unwrap_or_else(PoisonError::into_inner)
}

/// The threads, and the transfers that they have.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Start so many threads; return `None` if the host refuses one of them. Without any, the owner
    /// carries out transfers itself when it waits for one, the last one first.
    pub fn start(threads: usize) -> Option<Self> {
        sys::use_one_heap();
        let mut pool = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    waiting: VecDeque::with_capacity(MAX_TRANSFERS),
                    done: Vec::with_capacity(MAX_TRANSFERS),
                    started_threads: 0,
                    idle_threads: 0,
                    awaited: None,
                    is_ending: false,
                }),
                work: Condvar::new(),
                finished: Condvar::new(),
            }),
            threads: Vec::with_capacity(threads),
        };
        for _ in 0..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = Builder::new().stack_size(STACK_BYTES);
            pool.threads
                .push(builder.spawn(move || shared.serve()).ok()?);
        }
        // What a thread does before it serves, such as allocating, is over when the filter is
        // loaded.
        let mut state = pool.shared.lock();
        while state.started_threads != threads {
            state = wait(&pool.shared.finished, state);
        }
        drop(state);
        Some(pool)
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Have all of `transfers` carried out, in any order; there may be `MAX_TRANSFERS` at a time.
    pub fn submit(&self, transfers: &mut VecDeque<Transfer>) {
        if transfers.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        state.waiting.extend(transfers.drain(..));
        let wake_thread = state.idle_threads != 0;
        drop(state);
        if wake_thread {
            self.shared.work.notify_one();
        }
    }

    /// Move what is done into `done`, which is empty. With a `ticket` wait until that one is done.
    pub fn collect(&self, done: &mut Vec<Transfer>, ticket: Option<u64>) {
        let mut state = self.shared.lock();
        if let Some(ticket) = ticket {
            while !state.done.iter().any(|one| one.ticket == ticket) {
                if self.threads.is_empty() {
                    while let Some(mut transfer) = state.waiting.pop_back() {
                        transfer.carry_out();
                        state.done.push(transfer);
                    }
                } else {
                    state.awaited = Some(ticket);
                    state = wait(&self.shared.finished, state);
                }
            }
        }
        std::mem::swap(&mut state.done, done);
    }
}

impl Drop for Pool {
    /// End the threads. In a jail this never happens: the filter does not let a thread end alone.
    fn drop(&mut self) {
        self.shared.lock().is_ending = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfers(tickets: std::ops::Range<u64>) -> VecDeque<Transfer> {
        tickets
            .map(|ticket| Transfer {
                ticket,
                fd: -1,
                write: false,
                stable: false,
                offset: 0,
                io_vecs: Vec::new(),
                moved: Some(1),
            })
            .collect()
    }

    #[test]
    fn every_transfer_comes_back_once() {
        let count = if cfg!(miri) { 64 } else { 640 };
        for threads in [0, 1, 4] {
            let pool = Pool::start(threads).expect("threads");
            let (mut seen, mut done) = (Vec::new(), Vec::new());
            for first in (0..count).step_by(16) {
                pool.submit(&mut transfers(first..first + 16));
                for ticket in first..first + 16 {
                    if !seen.contains(&ticket) {
                        pool.collect(&mut done, Some(ticket));
                        seen.extend(done.drain(..).map(|one| {
                            assert_eq!(one.moved, None); // there is no such file
                            one.ticket
                        }));
                    }
                }
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..count), "{threads} threads");
        }
    }

    #[test]
    fn without_threads_the_last_one_is_first() {
        let pool = Pool::start(0).expect("none");
        pool.submit(&mut transfers(0..3));
        let mut done = Vec::new();
        pool.collect(&mut done, None);
        assert!(done.is_empty());
        pool.collect(&mut done, Some(1));
        assert!(done.iter().map(|one| one.ticket).eq([2, 1, 0]));
    }
}
