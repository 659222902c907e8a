// SPDX-License-Identifier: BSD-3-Clause
//! The messages of `crosvm_py/pool/protocol.py`, as msgpack (`sys_util/wire.py`).

/// The most bytes that a message may have.
pub const MAX_BYTES: usize = 64 * 1024;
/// The most descriptors beside a message.
pub const MAX_FDS: usize = 130;

const RUN: u8 = 1;

/// What the pool or a monitor says.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// A monitor runs the VM.
    Started,
    /// Nothing was started, for this reason.
    Declined(String),
    /// The run has ended with this exit status.
    Ended(u8),
    /// This signal killed the monitor.
    Killed(i32),
}

/// Return the order for a run; `None` if it is longer than a message may be.
pub fn order(
    version: &str,
    words: &[Vec<u8>],
    environment: &[Vec<u8>],
    fds: &[i32],
) -> Option<Vec<u8>> {
    let mut out = vec![0x95, RUN, 0xD9, u8::try_from(version.len()).ok()?];
    out.extend_from_slice(version.as_bytes());
    for list in [words, environment] {
        put_array(&mut out, list.len())?;
        for bytes in list {
            out.push(0xC5);
            out.extend_from_slice(&u16::try_from(bytes.len()).ok()?.to_be_bytes());
            out.extend_from_slice(bytes);
        }
    }
    put_array(&mut out, fds.len())?;
    for fd in fds {
        out.push(0xCE);
        out.extend_from_slice(&u32::try_from(*fd).ok()?.to_be_bytes());
    }
    (out.len() <= MAX_BYTES).then_some(out)
}

fn put_array(out: &mut Vec<u8>, length: usize) -> Option<()> {
    out.push(0xDC);
    out.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    Some(())
}

/// Return what a message says; `None` if it makes no sense.
pub fn answer(message: &[u8]) -> Option<Answer> {
    match message {
        [0x91, 2] => Some(Answer::Started),
        [0x92, 3, text @ ..] => Some(Answer::Declined(string(text)?)),
        [0x92, 4, number @ ..] => Some(Answer::Ended(small(number)?)),
        [0x92, 5, number @ ..] => Some(Answer::Killed(small(number)?.into())),
        _ => None,
    }
}

fn small(data: &[u8]) -> Option<u8> {
    match data {
        [value @ 0..=0x7F] | [0xCC, value] => Some(*value),
        _ => None,
    }
}

fn string(data: &[u8]) -> Option<String> {
    let (length, text) = match data {
        [head @ 0xA0..=0xBF, text @ ..] => (usize::from(head - 0xA0), text),
        [0xD9, length, text @ ..] => (usize::from(*length), text),
        [0xDA, high, low, text @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), text),
        _ => return None,
    };
    (length == text.len()).then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_what_python_reads() {
        let made = order("1", &[b"run".to_vec()], &[], &[7]).unwrap();
        let wanted = b"\x95\x01\xd9\x011\xdc\0\x01\xc5\0\x03run\xdc\0\0\xdc\0\x01\xce\0\0\0\x07";
        assert_eq!(made, wanted);
    }

    #[test]
    fn order_has_a_largest_size() {
        assert!(order("1", &[vec![0; 65_000]], &[], &[]).is_some());
        assert!(order("1", &[vec![0; 65_530]], &[], &[]).is_none());
        assert!(order("1", &[vec![0; 70_000]], &[], &[]).is_none());
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(answer(b"\x91\x02"), Some(Answer::Started));
        assert_eq!(answer(b"\x92\x03\xa1x"), Some(Answer::Declined("x".into())));
        assert_eq!(
            answer(b"\x92\x03\xd9\x01x"),
            Some(Answer::Declined("x".into()))
        );
        assert_eq!(answer(b"\x92\x04\x20"), Some(Answer::Ended(32)));
        assert_eq!(answer(b"\x92\x04\xcc\xff"), Some(Answer::Ended(255)));
        assert_eq!(answer(b"\x92\x05\x09"), Some(Answer::Killed(9)));
    }

    #[test]
    fn nonsense_is_refused() {
        for message in [
            &b""[..],
            b"\x91",
            b"\x91\x03",
            b"\x92\x03\xa2x",
            b"\x92\x03\xda\xff\xffx",
            b"\x92\x04\xcd\x01\x00",
            b"\x92\x04\x01\x01",
            b"\x91\x02\x00",
        ] {
            assert_eq!(answer(message), None);
        }
    }
}
