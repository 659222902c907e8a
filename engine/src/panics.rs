// SPDX-License-Identifier: BSD-3-Clause
//! What a panic does: it is reported, and ends the process.

use std::sync::OnceLock;

use crate::sys;

/// EX_SOFTWARE: every process of ours exits with this status after a bug.
const STATUS_BUG: i32 = 70;
/// The seccomp policies of devices allow no longer write.
const MAX_REPORT_BYTES: usize = 128;
/// msgpack's format of a string whose length follows in two bytes.
const STR_16: u8 = 0xda;

/// Where a panic is reported as a message, beside stderr: a descriptor, and how the message begins.
static REPORT_TO: OnceLock<(i32, Vec<u8>)> = OnceLock::new();

/// Make a panic write a report to stderr and end the process with `STATUS_BUG`. Both need only
/// calls that the seccomp policies allow.
pub fn exit_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let report = format!("engine: {info}");
        write_all_at_once(2, format!("{report}\n").as_bytes());
        if let Some((fd, head)) = REPORT_TO.get() {
            write_all_at_once(*fd, &panic_message(head, &report));
        }
        sys::exit(STATUS_BUG)
    }));
}

/// Report a panic on `fd`, too, as a msgpack string behind `head`, which is at most 16 bytes long.
/// Only the first call in a process counts.
pub fn report_to(fd: i32, head: &[u8]) {
    assert!(head.len() <= 16, "a head of {} bytes", head.len());
    let _ = REPORT_TO.set((fd, head.to_vec()));
}

/// Return a message of at most `MAX_REPORT_BYTES`; what is not ASCII in the text is replaced.
fn panic_message(head: &[u8], text: &str) -> Vec<u8> {
    let room = MAX_REPORT_BYTES - head.len() - 3;
    let text: Vec<u8> = text
        .chars()
        .take(room)
        .map(|c| if c.is_ascii() { c as u8 } else { b'?' })
        .collect();
    let length = u16::try_from(text.len()).unwrap_or(0).to_be_bytes();
    [head, &[STR_16], &length, &text].concat()
}

/// Write once; a report that is cut off, or lost, is all that can be done.
fn write_all_at_once(fd: i32, data: &[u8]) {
    sys::write_once(fd, &data[..data.len().min(MAX_REPORT_BYTES)]);
}
