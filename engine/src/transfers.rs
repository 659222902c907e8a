// SPDX-License-Identifier: BSD-3-Clause
//! The transfers of one queue that are put off: started in the order of the ring, and given back to
//! the driver in that order. A pool makes them in any order. Without one they are made one by one,
//! as late as possible: the host reads ahead meanwhile.

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

    /// Give a chain whose request was carried out back after those before it; it is another one
    /// then.
    pub fn add_done(&mut self, request: Request, chain: &mut Chain) {
        let spare = self.spare_chains.pop().unwrap_or_default();
        self.started.push_back(Started {
            chain: std::mem::replace(chain, spare),
            request,
            state: Progress::Done,
        });
    }

    /// Wait until the first transfer is done, and return to the driver all that are done up to one
    /// that is not. False: one has failed, and Python must carry it out and all after it.
    pub fn finish_first(&mut self, ring: &mut Ring, pool: Option<&Pool>, turn: &mut Turn) -> bool {
        self.submit(ring, pool);
        let is_done = self
            .started
            .front()
            .is_none_or(|first| first.state != Progress::UnderWay);
        if let Some(pool) = pool {
            pool.collect(&mut self.done, (!is_done).then_some(self.first_ticket));
            self.note_done(ring);
        }
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
    pub fn finish_all(&mut self, ring: &mut Ring, pool: Option<&Pool>, turn: &mut Turn) -> bool {
        while !self.started.is_empty() {
            if !self.finish_first(ring, pool, turn) {
                return false;
            }
        }
        true
    }

    /// Hand over what was prepared, but carry out the one that goes back first here: it has to be
    /// waited for in any case, and a thread would have to be woken.
    fn submit(&mut self, ring: &Ring, pool: Option<&Pool>) {
        let ticket = self.first_ticket;
        let is_first = |one: &Transfer| one.ticket == ticket;
        let is_here = self.prepared.front().is_some_and(is_first);
        let first = is_here.then(|| self.prepared.pop_front()).flatten();
        if let Some(pool) = pool {
            pool.submit(&mut self.prepared);
        }
        if let Some(mut first) = first {
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
    fn retract(&mut self, ring: &mut Ring, pool: Option<&Pool>) {
        let prepared = self.prepared.drain(..).map(|one| one.io_vecs);
        self.spare_io_vecs.extend(prepared); // there are some only without a pool
        let under_way = |one: &Started| one.state == Progress::UnderWay;
        while let Some((pool, at)) = pool.zip(self.started.iter().position(under_way)) {
            pool.collect(&mut self.done, Some(self.first_ticket + at as u64));
            self.note_done(ring);
        }
        ring.unpop_all(self.started.len());
        self.first_ticket += self.started.len() as u64;
        self.spare_chains
            .extend(self.started.drain(..).map(|one| one.chain));
    }
}
