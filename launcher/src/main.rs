// SPDX-License-Identifier: BSD-3-Clause
//! `crosvm run --pool PATH` without Python: hand the run over to a monitor of the pool, and stand
//! in for it until it ends. `crosvm_py/pool/client.py` does the same where this was not built.
//!
//! The arguments are the command that starts the program as usual, `--`, and the words that the
//! user typed behind `crosvm`. Where there is no monitor, that command is executed.

#[path = "../../forge/src/c.rs"]
mod c;
mod client;
mod order;
mod sys;
mod wire;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use client::Refused;

/// EX_USAGE: only a mistake in `bin/crosvm` leads to it.
const STATUS_MISUSED: u8 = 64;

fn main() -> ExitCode {
    let mut usual: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some(dashes) = usual.iter().position(|word| word == "--") else {
        return ExitCode::from(STATUS_MISUSED);
    };
    let words = usual.split_off(dashes + 1);
    usual.truncate(dashes);
    if let Some(path) = order::pool_path(&words) {
        match client::run(&path, &words) {
            Ok(status) => return ExitCode::from(status),
            Err(Refused(reason)) => {
                let path = path.to_string_lossy();
                eprintln!("crosvm: --pool {path}: {reason}; starting as usual");
            }
        }
    }
    let Some(program) = usual.first() else {
        return ExitCode::from(STATUS_MISUSED);
    };
    let error = Command::new(program).args(&usual[1..]).args(&words).exec();
    eprintln!("crosvm: {}: {error}", program.to_string_lossy());
    ExitCode::FAILURE
}
