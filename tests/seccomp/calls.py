# SPDX-License-Identifier: BSD-3-Clause
"""System calls in the notation of strace(1), for any architecture: ``"ioctl(3, KVM_RUN)"``."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from seccomp.syscalls import get_arch, get_constants

_CALL: Final = re.compile(r"(\w+)\((.*)\)")


class Call(NamedTuple):
    """A call's number and arguments on one architecture."""

    number: int
    args: tuple[int, ...]


def read_call(text: str, arch: str) -> Call:
    """Read one call; constants have the values of the architecture, and ``A|B`` is bitwise or."""
    found = _CALL.fullmatch(text)
    assert found, text
    constants = get_constants(arch)

    def value(word: str) -> int:
        bits = 0
        for part in word.split("|"):
            name = part.strip()
            bits |= constants[name] if name in constants else int(name, 0)
        return bits

    words = [word for word in found[2].split(",") if word.strip()]
    return Call(get_arch(arch).syscalls[found[1]], tuple(value(word) for word in words))


class Calls(NamedTuple):
    """Calls in strace's notation: for both architectures, and for one of them."""

    both: tuple[str, ...] = ()
    x86_64: tuple[str, ...] = ()
    aarch64: tuple[str, ...] = ()

    def on(self, arch: str) -> tuple[str, ...]:
        """Return all for one architecture."""
        own = self.x86_64 if arch == "x86_64" else self.aarch64
        return (*self.both, *own)
