// SPDX-License-Identifier: BSD-3-Clause
//! What the user's command line says of the pool, and what the monitor is to know of this process.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What a run keeps of the environment (`crosvm_py/inherited.py`).
const KEPT: [&str; 5] = ["HOME", "PATH", "TZ", "USER", "XDG_CACHE_HOME"];

/// Return the value of `--pool` in a command line of `run`, without parsing all of it.
pub fn pool_path(words: &[OsString]) -> Option<OsString> {
    let run = words.iter().position(|word| word == "run")?;
    let behind = &words[run + 1..];
    behind.iter().enumerate().find_map(|(at, word)| {
        if word == "--pool" {
            return Some(behind.get(at + 1).cloned().unwrap_or_default());
        }
        let value = word.as_bytes().strip_prefix(b"--pool=")?;
        Some(OsStr::from_bytes(value).to_owned())
    })
}

/// Return the variables that a run keeps, each as NAME=value.
pub fn environment() -> Vec<Vec<u8>> {
    KEPT.iter()
        .filter_map(|name| {
            let value = std::env::var_os(name)?.into_vec();
            Some([name.as_bytes(), b"=", &value].concat())
        })
        .collect()
}

/// Return the numbers of all open descriptors; those that the kernel would close at an exec, too.
pub fn open_descriptors() -> std::io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        if let Some(number) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            found.push(number);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_in(line: &str) -> Option<OsString> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        pool_path(&words)
    }

    #[test]
    fn finds_the_pool_of_a_run() {
        assert_eq!(path_in("run --pool p kernel"), Some("p".into()));
        assert_eq!(
            path_in("--no-syslog run -m 16 --pool=p kernel"),
            Some("p".into())
        );
        assert_eq!(path_in("run kernel --pool"), Some("".into()));
    }

    #[test]
    fn finds_none_elsewhere() {
        assert_eq!(path_in("run kernel"), None);
        assert_eq!(path_in("run -p --pools kernel"), None);
        assert_eq!(path_in("pool --size 2 p"), None);
    }
}
