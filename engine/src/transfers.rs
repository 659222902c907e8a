// SPDX-License-Identifier: BSD-3-Clause
//! The transfers of one queue that a pool makes: started in the order of the ring, made in any
//! order, and given back to the driver in the order of the ring.

use std::collections::VecDeque;

use crate::block::{give_back, mark_all, Disk, Turn};
use crate::pool::{Pool, Transfer, MAX_TRANSFERS};
use crate::request::{Kind, Request};
use crate::ring::{Chain, Ring};
use crate::sys::IoVec;

/// A transfer that was started: the chain goes back to the driver when it and all before it are
/// done.
struct Started {
    chain: Chain,
    request: Request,
    state: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    UnderWay,
    Done,
    Failed,
}

/// What was started and has not gone back yet, and buffers that are reused.
#[derive(Default)]
pub struct Transfers {
    started: VecDeque<Started>,
    first_ticket: u64, // of the first one in `started`
    prepared: VecDeque<Transfer>,
    done: Vec<Transfer>,
    spare_chains: Vec<Chain>,
    spare_io_vecs: Vec<Vec<IoVec>>,
}

impl Transfers {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.started.is_empty()
    }

    /// Whether one must be finished before another can be prepared.
    pub fn is_full(&self) -> bool {
        self.started.len() == MAX_TRANSFERS
    }

    /// Prepare the read or write in `chain`; its buffers are in `io_vecs`. Both are other ones then.
    pub fn prepare(
        &mut self,
        disk: &Disk,
        request: Request,
        chain: &mut Chain,
        io_vecs: &mut Vec<IoVec>,
    ) {
        let spare = self.spare_io_vecs.pop().unwrap_or_default();
        self.prepared.push_back(Transfer {
            ticket: self.first_ticket + self.started.len() as u64,
            fd: disk.fd,
            write: request.kind == Kind::Write,
            stable: disk.writethrough,
            offset: request.offset,
            io_vecs: std::mem::replace(io_vecs, spare),
            moved: None,
        });
        let spare = self.spare_chains.pop().unwrap_or_default();
        self.started.push_back(Started {
            chain: std::mem::replace(chain, spare),
            request,
            state: Progress::UnderWay,
        });
    }

    /// Wait until the first transfer is done, and return to the driver all that are done up to one
    /// that is not. False: one has failed, and Python must carry it out and all after it.
    pub fn finish_first(&mut self, ring: &mut Ring, pool: &Pool, turn: &mut Turn) -> bool {
        self.submit(ring, pool);
        let is_done = self
            .started
            .front()
            .is_none_or(|first| first.state != Progress::UnderWay);
        pool.collect(&mut self.done, (!is_done).then_some(self.first_ticket));
        self.note_done(ring);
        while let Some(first) = self.started.front() {
            match first.state {
                Progress::UnderWay => break,
                Progress::Failed => {
                    self.retract(ring, pool);
                    return false;
                }
                Progress::Done => {}
            }
            let Some(first) = self.started.pop_front() else {
                break;
            };
            self.first_ticket += 1;
            give_back(ring, &first.chain, &first.request, turn);
            self.spare_chains.push(first.chain);
        }
        true
    }

    /// Wait until every transfer is done; return as `finish_first` does.
    pub fn finish_all(&mut self, ring: &mut Ring, pool: &Pool, turn: &mut Turn) -> bool {
        while !self.started.is_empty() {
            if !self.finish_first(ring, pool, turn) {
                return false;
            }
        }
        true
    }

    /// Hand over what was prepared. If nothing is under way, carry out the first one here: it has to
    /// be waited for in any case, and a thread would have to be woken.
    fn submit(&mut self, ring: &Ring, pool: &Pool) {
        let first = (self.prepared.len() == self.started.len()).then(|| self.prepared.pop_front());
        pool.submit(&mut self.prepared);
        if let Some(mut first) = first.flatten() {
            first.carry_out();
            self.done.push(first);
            self.note_done(ring);
        }
    }

    /// Note the result of each transfer in `done`.
    fn note_done(&mut self, ring: &Ring) {
        for transfer in self.done.drain(..) {
            let at = (transfer.ticket - self.first_ticket) as usize;
            let started = &mut self.started[at];
            if started.request.kind == Kind::Read {
                mark_all(ring, &started.chain.writable);
            }
            let whole = transfer.moved == Some(started.request.length);
            started.state = if whole {
                Progress::Done
            } else {
                Progress::Failed
            };
            self.spare_io_vecs.push(transfer.io_vecs);
        }
    }

    /// Wait for what is under way, and put all that was started back into the ring: it was taken
    /// from there last. It will be carried out once more, which is harmless.
    fn retract(&mut self, ring: &mut Ring, pool: &Pool) {
        while let Some(at) = self
            .started
            .iter()
            .position(|one| one.state == Progress::UnderWay)
        {
            pool.collect(&mut self.done, Some(self.first_ticket + at as u64));
            self.note_done(ring);
        }
        ring.unpop_all(self.started.len());
        self.first_ticket += self.started.len() as u64;
        self.spare_chains
            .extend(self.started.drain(..).map(|one| one.chain));
    }
}
