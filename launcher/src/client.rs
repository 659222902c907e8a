// SPDX-License-Identifier: BSD-3-Clause
//! The client's side of a run in a pool: hand everything over, then stand in for the monitor.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::order::{environment, open_descriptors};
use crate::sys::{self, Fd, SignalSet};
use crate::wire::{self, Answer};

/// The version of the program: a monitor of another one declines. `setup.py` tells it.
const VERSION: &str = match option_env!("CROSVM_PY_VERSION") {
    Some(version) => version,
    None => "unknown",
};
/// The most time until a monitor has taken over.
const START_MS: i32 = 5000;
/// What a shell adds to the number of the signal that killed a process.
const OF_A_SIGNAL: u8 = 128;

/// There is no monitor for us, for this reason.
pub struct Refused(pub String);

/// Have a monitor of the pool at `path` run the words; return the exit status.
pub fn run(path: &OsStr, words: &[OsString]) -> Result<u8, Refused> {
    let channel = connect(path)?;
    let monitor = hand_over(&channel, words)?;
    Ok(stand_in(&channel, &monitor))
}

fn connect(path: &OsStr) -> Result<Fd, Refused> {
    let (channel, uid) = sys::connect(path)
        .map_err(|error| Refused(format!("no pool to connect to: {}", plain(&error))))?;
    if uid != sys::effective_user() {
        return Err(Refused("the pool belongs to another user".into()));
    }
    Ok(channel)
}

/// Return what the C library says of an error, as Python does.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().into()
}

fn hand_over(channel: &Fd, words: &[OsString]) -> Result<Fd, Refused> {
    let open = open_descriptors().map_err(|error| Refused(format!("/proc: {}", plain(&error))))?;
    let fds: Vec<i32> = open
        .into_iter()
        .filter(|fd| sys::is_inherited(*fd))
        .collect();
    if fds.len() > wire::MAX_FDS {
        let count = fds.len();
        let most = wire::MAX_FDS;
        return Err(Refused(format!(
            "{count} descriptors are open, {most} can be passed"
        )));
    }
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let order = wire::order(VERSION, &words, &environment(), &fds)
        .ok_or_else(|| Refused("the command line is too long".into()))?;
    // A pool that declines may have closed its end by now; then its answer is there.
    let _ = sys::send(channel, &order, &fds);
    if !sys::wait_readable(channel, START_MS) {
        return Err(Refused("no monitor answers in time".into()));
    }
    let (message, monitor) = sys::receive(channel);
    match (wire::answer(&message), monitor) {
        (Some(Answer::Started), Some(monitor)) => Ok(monitor),
        (Some(Answer::Declined(reason)), _) => Err(Refused(printable(&reason))),
        (None, _) if message.is_empty() => Err(Refused("the monitor has ended".into())),
        _ => Err(Refused("its answer makes no sense".into())),
    }
}

/// Return a text without characters that would control a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|each| if each.is_control() { '?' } else { each })
        .collect()
}

/// Pass signals on to the monitor until it ends, then return its status or end as it did.
fn stand_in(channel: &Fd, monitor: &Fd) -> u8 {
    let passed_on = SignalSet::passed_on();
    let signals = passed_on.block_and_open();
    loop {
        let (is_signalled, has_ended) = sys::wait_either(&signals, channel);
        if is_signalled {
            if let Some(number) = sys::next_signal(&signals) {
                pass_on(number, monitor);
            }
        } else if has_ended {
            return end(&sys::receive(channel).0);
        }
    }
}

fn pass_on(number: i32, monitor: &Fd) {
    if !sys::stops(number) {
        sys::signal_process(monitor, number);
        return;
    }
    sys::signal_process(monitor, sys::SIGSTOP);
    sys::stop_by(number);
    sys::signal_process(monitor, sys::SIGCONT);
}

fn end(message: &[u8]) -> u8 {
    match wire::answer(message) {
        Some(Answer::Ended(status)) => status,
        Some(Answer::Killed(number)) => {
            sys::end_by(number);
            OF_A_SIGNAL.saturating_add(u8::try_from(number).unwrap_or_default())
        }
        _ => {
            let told = "the monitor and its pool have ended, and nobody told its status";
            eprintln!("crosvm: --pool: {told}");
            OF_A_SIGNAL + 9
        }
    }
}
