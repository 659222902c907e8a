// SPDX-License-Identifier: BSD-3-Clause
//! Serves bulk queues of virtio devices natively, inside their jailed processes.
//!
//! Python builds, configures, limits and restarts devices, negotiates features and logs. It calls
//! the engine for one turn of a queue at a time. A request that the engine cannot carry out stays
//! in the ring, and Python serves it. A panic ends the process, as any crash of a device does.

pub mod abi;
pub mod block;
pub mod latency;
mod memory;
pub mod net;
pub mod net_header;
pub mod net_receive;
#[cfg(all(test, not(miri)))] // Miri knows no readv
mod net_tests;
pub mod net_transmit;
pub mod panics;
pub mod poll;
pub mod pool;
pub mod request;
pub mod ring;
pub mod stream;
pub mod sys;
pub mod transfers;

#[cfg(test)]
mod guest_tests;
