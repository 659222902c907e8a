// SPDX-License-Identifier: BSD-3-Clause
//! Serves bulk queues of virtio devices natively, inside their jailed processes.
//!
//! Python builds, negotiates, configures, limits, logs and restarts; it hands a queue to the engine
//! for one turn at a time. Whatever the engine does not know how to do it leaves in the ring, and Python
//! does it. A panic ends the process, as any crash of a device process does.

pub mod block;
pub mod memory;
pub mod poll;
pub mod ring;
pub mod sys;
