# SPDX-License-Identifier: BSD-3-Clause
"""Payloads of every compression: good ones, damaged ones, and ones with a wrong size."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kernel_loader import payload
from kernel_loader.image import FORMATS, MAX_UNPACKED_BYTES
from kernel_loader.payload import payload_format, unpack_payload
from sys_util.errors import ConfigError, HostError, describe
from tests.kernel_loader.images import COMPRESSORS, MIB

# More than one chunk, more than one lz4 block, not a multiple of either, compressible.
DATA = b"".join(i.to_bytes(4, "little") * 64 for i in range(0x9000)) + b"tail"


class Packed(dict[str, bytes]):
    """The data in each format, packed when it is wanted: every worker imports this file."""

    def __missing__(self, name: str) -> bytes:
        self[name] = COMPRESSORS[name](DATA)
        return self[name]


PACKED = Packed()


@pytest.fixture
def fd() -> Iterator[int]:
    """Return an empty file for an unpacked payload."""
    fd = os.memfd_create("unpacked")
    yield fd
    os.close(fd)


def test_every_format_is_one_that_the_vmm_knows_and_tested_here() -> None:
    assert {name for _, name, _ in payload._FORMATS} == set(COMPRESSORS) == set(FORMATS)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_unpack_payload_returns_what_was_packed(name: str, fd: int) -> None:
    assert len(DATA) > 9 * MIB
    assert payload_format(PACKED[name]) == name
    assert unpack_payload("kernel k", memoryview(PACKED[name]), fd) == len(DATA)
    assert os.pread(fd, len(DATA) + 1, 0) == DATA


def test_unpack_payload_full_file_is_an_error_of_the_host() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(HostError) as caught:
        unpack_payload("kernel k", memoryview(PACKED["zstd"]), full.fileno())
    assert describe(caught.value).startswith("write what is unpacked of kernel k: ")


def test_payload_format_of_lzo_is_unknown() -> None:
    assert payload_format(b"\x89LZO\0\r\n\x1a\n") == ""


@pytest.mark.parametrize("name", COMPRESSORS)
def test_unpack_payload_truncated_is_refused_by_name(name: str, fd: int) -> None:
    packed = PACKED[name]
    cut = packed[: len(packed) // 2] + packed[-4:]
    with pytest.raises(ConfigError, match=f"kernel k: corrupt {name} payload: .+"):
        unpack_payload("kernel k", memoryview(cut), fd)


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("delta", [-1, 1, 0x1000])
def test_unpack_payload_of_another_size_than_claimed_is_refused(
    name: str, delta: int, fd: int
) -> None:
    wrong = PACKED[name][:-4] + (len(DATA) + delta).to_bytes(4, "little")
    with pytest.raises(ConfigError, match=f"corrupt {name} payload"):
        unpack_payload("kernel k", memoryview(wrong), fd)


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("size", [0, MAX_UNPACKED_BYTES + 1, 0xFFFF_FFFF])
def test_unpack_payload_claimed_size_is_bounded(name: str, size: int, fd: int) -> None:
    wrong = PACKED[name][:-4] + size.to_bytes(4, "little")
    with pytest.raises(ConfigError, match=f"{name} payload claims {size:#x} unpacked bytes"):
        unpack_payload("kernel k", memoryview(wrong), fd)


@pytest.mark.parametrize("name", [name for name in PACKED if name not in ("lz4", "lzma", "zstd")])
def test_unpack_payload_flipped_bit_is_refused(name: str, fd: int) -> None:
    # The other three have no checksum, so nobody notices a flipped bit, not even the guest.
    flipped = bytearray(PACKED[name])
    flipped[len(flipped) // 2] ^= 0x10
    with pytest.raises(ConfigError, match=f"corrupt {name} payload"):
        unpack_payload("kernel k", memoryview(flipped), fd)


def test_unpack_payload_lzma_dictionary_beyond_the_limit_is_refused(fd: int) -> None:
    packed = bytearray(PACKED["lzma"])
    packed[1:5] = (0x8000_0000).to_bytes(4, "little")
    with pytest.raises(ConfigError, match="corrupt lzma payload: Memory usage limit"):
        unpack_payload("kernel k", memoryview(packed), fd)


def test_unpack_payload_of_a_magic_alone_is_refused(fd: int) -> None:
    with pytest.raises(ConfigError, match="gzip payload of 0x4 bytes is truncated"):
        unpack_payload("kernel k", memoryview(b"\x1f\x8b\x08\0"), fd)


def test_unpack_payload_lz4_accepts_a_second_frame(fd: int) -> None:
    halves = [DATA[: 8 * MIB], DATA[8 * MIB :]]
    frames = b"".join(COMPRESSORS["lz4"](half)[:-4] for half in halves)
    unpack_payload("kernel k", memoryview(frames + len(DATA).to_bytes(4, "little")), fd)
    assert os.pread(fd, len(DATA) + 1, 0) == DATA
