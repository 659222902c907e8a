// SPDX-License-Identifier: BSD-3-Clause
//! The loop of the forge without Python, whose memory it would not let go of. Where this was not
//! built, `crosvm_py/warden/forge.py` does the same.
//!
//! The arguments are two descriptors, the channel to the warden and the file of the interpreter,
//! and then the words that a mould is executed with. `crosvm_py/warden/forge_protocol.py` has the
//! messages. The process that executes this has loaded the filter. Nothing here allocates memory.
#![no_std]
#![no_main]

mod c;
mod sys;

use sys::{Arguments, Error, Fd, Order, Words};

/// `EXIT_HOST` of `crosvm_py/exit_status.py`.
const EXIT_HOST: i32 = 1;
/// EX_USAGE: only a mistake in `forge.py` leads to it.
const EXIT_MISUSED: i32 = 64;

const BEGUN: u8 = 32;
const FAILED: u8 = 34;
const CALL_DENIED: u8 = 36;
const FORGE_DENIED: u8 = 37;

/// Less than `MAX_REASON_CHARS`.
const MAX_REASON_BYTES: usize = 256;

fn run(arguments: &Arguments) -> i32 {
    let (Some(channel), Some(program), Some(words)) =
        (arguments.fd(1), arguments.fd(2), arguments.words_from(3))
    else {
        return EXIT_MISUSED;
    };
    sys::set_name(c"crosvm-forge");
    if !(sys::report_denied_calls(&channel, FORGE_DENIED) && program.close_on_exec()) {
        return EXIT_HOST;
    }
    loop {
        match channel.receive() {
            Order::Nothing => {}
            Order::Execute(its_end) => match sys::clone_sibling() {
                Ok(0) => return be_mould(&channel, &its_end, &program, words),
                Ok(_) => {}
                Err(error) => say_failed(&its_end, b"clone", error),
            },
            Order::End => return 0,
            Order::Unknown => return EXIT_HOST,
        }
    }
}

/// Execute the interpreter in this process, a new child of the warden; return only if that fails.
///
/// The mould's end of its channel gets the number of our channel, which is in its words.
fn be_mould(channel: &Fd, its_end: &Fd, program: &Fd, words: Words) -> i32 {
    sys::die_with_parent();
    let pid = sys::own_pid();
    its_end.send(&[0x92, BEGUN, 0xCE, pid[0], pid[1], pid[2], pid[3]]);
    if let Err(error) = its_end.copy_over(channel) {
        say_failed(its_end, b"dup2", error);
    } else if sys::report_denied_calls(channel, CALL_DENIED) {
        say_failed(
            channel,
            b"execute the interpreter",
            sys::execute(program, words),
        );
    }
    EXIT_HOST
}

/// Tell the warden through the channel of a mould what failed, and why.
fn say_failed(channel: &Fd, what: &[u8], error: Error) {
    let mut message = [0; 5 + MAX_REASON_BYTES];
    let (head, room) = message.split_at_mut(5);
    let mut length: u16 = 0;
    let reason = what.iter().chain(b": ").chain(error.text());
    for (to, byte) in room.iter_mut().zip(reason) {
        *to = *byte;
        length += 1;
    }
    let [high, low] = length.to_be_bytes();
    head.copy_from_slice(&[0x92, FAILED, 0xDA, high, low]);
    channel.send(&message[..5 + usize::from(length)]);
}
