// SPDX-License-Identifier: BSD-3-Clause
//! struct virtio_net_hdr, and the check of a driver's header for its frame (virtio 1.3 §5.1.6.2):
//! the same as `devices/virtio/net/header.py` in Rust.

use crate::net::{Tap, HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES};

const F_NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_NONE.
pub const GSO_NONE: u8 = 0;
const CSUM_BYTES: u64 = 2;

/// Some GSO types other than GSO_NONE, which fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GsoTypes(pub [u8; 8]);

impl GsoTypes {
    /// Whether segments of this type are allowed.
    pub fn allow(&self, gso_type: u8) -> bool {
        gso_type != GSO_NONE && self.0.contains(&gso_type)
    }
}

/// Return the header to pass on for a frame of `frame_bytes`; `None` if it must not be sent.
///
/// Flags that are unknown, or that only a device may set, are ignored (§5.1.6.2.2).
pub fn accept(
    tap: &Tap,
    header: &[u8; HEADER_BYTES],
    frame_bytes: u64,
) -> Option<[u8; HEADER_BYTES]> {
    if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes) {
        return None;
    }
    let word = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let needs_csum = header[0] & F_NEEDS_CSUM != 0;
    let (hdr_len, gso_size, start, offset) = (word(2), word(4), word(6), word(8));
    if needs_csum && !(tap.host_checksums && start + offset + CSUM_BYTES <= frame_bytes) {
        return None;
    }
    let mut passed = *header;
    passed[0] = header[0] & F_NEEDS_CSUM;
    passed[10..].fill(0); // num_buffers
    if header[1] == GSO_NONE {
        passed[2..6].fill(0); // hdr_len and gso_size
        return Some(passed);
    }
    let allowed = needs_csum && tap.host_gso.allow(header[1]);
    (allowed && gso_size != 0 && hdr_len <= frame_bytes).then_some(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCPV4: u8 = 1;

    fn header(flags: u8, gso_type: u8, words: [u16; 5]) -> [u8; HEADER_BYTES] {
        let mut header = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in words.iter().enumerate() {
            header[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    fn tap() -> Tap {
        Tap {
            host_checksums: true,
            host_gso: GsoTypes([TCPV4, 0, 0, 0, 0, 0, 0, 0]),
            ..Tap::default()
        }
    }

    #[test]
    fn fields_that_mean_nothing_are_cleared() {
        let given = header(0xFE, 0, [7, 8, 9, 10, 11]);
        assert_eq!(
            accept(&tap(), &given, 60),
            Some(header(0, 0, [0, 0, 9, 10, 0]))
        );
    }

    #[test]
    fn frames_of_impossible_lengths_are_not_sent() {
        let plain = [0; HEADER_BYTES];
        for (length, sent) in [(13, false), (14, true), (65550, true), (65551, false)] {
            assert_eq!(accept(&tap(), &plain, length).is_some(), sent, "{length}");
        }
    }

    #[test]
    fn checksum_must_be_inside_the_frame() {
        for (start, offset, sent) in [(40, 18, true), (40, 19, false), (0xFFFF, 0xFFFF, false)] {
            let given = header(1, 0, [0, 0, start, offset, 0]);
            assert_eq!(accept(&tap(), &given, 60).is_some(), sent, "{start}");
        }
        assert!(accept(&Tap::default(), &header(1, 0, [0; 5]), 60).is_none());
    }

    #[test]
    fn segments_must_have_been_negotiated_and_make_sense() {
        for (flags, gso_type, hdr_len, gso_size, sent) in [
            (1, TCPV4, 54, 1448, true),
            (1, TCPV4, 54, 0, false),
            (1, TCPV4, 61, 1448, false),
            (0, TCPV4, 54, 1448, false),
            (1, 4, 54, 1448, false),
            (1, TCPV4 | 0x80, 54, 1448, false),
        ] {
            let given = header(flags, gso_type, [hdr_len, gso_size, 34, 16, 0]);
            assert_eq!(accept(&tap(), &given, 60).is_some(), sent, "{given:?}");
        }
    }
}
