# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm guest make``: make a folder for ``crosvm run`` from Debian packages."""

from __future__ import annotations

import re

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Option, Positional, text_option
from crosvm_py.cli.grammar.suggest import suggestion
from crosvm_py.cli.output import write_error, write_out
from crosvm_py.end_signals import reset_inherited_signals
from crosvm_py.guest.apt import MIRROR, SUITE, Source
from crosvm_py.guest.make import KINDS, GuestOrder, make_guest
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

# Debian policy §5.6.1. apt would take a name with a dash at the beginning for an option.
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
_SUITE: Final = re.compile(r"[a-z][a-z0-9.-]{1,39}")
_MIRROR: Final = re.compile(r"https?://[A-Za-z0-9._~:/@%+-]{1,200}")


def _read_packages(option: str, text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.replace(",", " ").split() if name)
    for name in names:
        if not _PACKAGE.fullmatch(name):
            raise UsageError(f"{option}: {name!r:.60} is not the name of a Debian package")
    return names


def _read_suite(option: str, text: str) -> str:
    if not _SUITE.fullmatch(text):
        raise UsageError(f"{option}: {text!r:.60} is not the name of a Debian release")
    return text


def _read_mirror(option: str, text: str) -> str:
    if not _MIRROR.fullmatch(text):
        raise UsageError(f"{option}: {text!r:.80} is not an address http://… or https://…")
    return text.rstrip("/")


PACKAGES: Final = Option(
    "--packages",
    "NAME,NAME…",
    "more Debian packages for a debian guest; with systemd-sysv and udev it starts as an ordinary "
    "Debian does",
    _read_packages,
)
SUITE_OPTION: Final = Option("--suite", "NAME", "release of Debian", _read_suite, default=SUITE)
MIRROR_OPTION: Final = Option(
    "--mirror", "URL", "where Debian is downloaded from", _read_mirror, default=MIRROR
)
OUTPUT: Final = text_option(
    "-o --output", "DIR", "the folder to make, which must not be there yet; else it has KIND's name"
)


def _make(arguments: Arguments, _settings: GlobalSettings) -> int:
    reset_inherited_signals()
    kind = (arguments.positional or ["debian"])[0]
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise UsageError(f"guest make: {kind!r:.40} is none of {known}{suggestion(kind, KINDS)}")
    packages = arguments.get(PACKAGES) or ()
    if packages and kind != "debian":
        raise UsageError(f"guest make: --packages is for debian; {kind} has none")
    source = Source(arguments.get(SUITE_OPTION) or SUITE, arguments.get(MIRROR_OPTION) or MIRROR)
    target = arguments.get(OUTPUT) or kind
    make_guest(GuestOrder(kind, source, packages), target, write_error)
    write_out(f"crosvm run {target}\n")
    return 0


MAKE: Final = Command(
    "guest make",
    "make a guest from Debian packages: a folder that crosvm run starts",
    (PACKAGES, OUTPUT, SUITE_OPTION, MIRROR_OPTION),
    (Positional("KIND", "debian (default) or minimal, which is busybox alone", at_least=0),),
    _make,
    examples=(
        "crosvm guest make minimal ; crosvm run minimal",
        "crosvm guest make debian --packages python3,curl -o work ; crosvm run work",
    ),
    details="The kernel is Debian's for virtual machines, unmodified. No root is needed. The root "
    "image is read-only: what the guest writes stays in its memory and is gone when it ends. What "
    "is downloaded is kept below $XDG_CACHE_HOME/crosvm-py (~/.cache/crosvm-py). guest.conf in the "
    "folder has lines kernel=, initrd=, root= or rwroot= (a writable root), and params=, to be "
    "written by hand for guests of your own.",
)
