# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm balloon``: change how much memory running VMs have."""

from __future__ import annotations

import os
import time

from crosvm_py.cli.commands.asking import SOCKETS, ask_for
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Option, Positional, switch
from crosvm_py.cli.grammar.scanner import parse_number, parse_size
from crosvm_py.cli.output import write_error
from crosvm_py.control import socket_client as client
from crosvm_py.requests.balloon import (
    PAGE_BYTES,
    BalloonAdjust,
    BalloonQuery,
    BalloonSet,
)
from devices.virtio.commands import BalloonState
from sys_util.errors import UsageError, VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.requests.protocol import Request

MAX_ADJUST_PAGES: Final = 1 << 32

# How often to ask, and how long the balloon may stay the same before we give up.
POLL_SECONDS: Final = 0.1
STALL_SECONDS: Final = 30.0


def _read_pages(option: str, text: str) -> int:
    digits = text[1:] if text[:1] in ("+", "-") else text
    try:
        pages = parse_number(digits)
    except ValueError as error:
        raise UsageError(f"{option}: {text!r}: {error}") from None
    if pages > MAX_ADJUST_PAGES:
        raise UsageError(f"{option}: {text} is more than {MAX_ADJUST_PAGES} pages")
    return -pages if text.startswith("-") else pages


PAGES: Final = Option(
    "--pages",
    "±N",
    "instead of SIZE: N pages of 4 KiB more than now, or less where N is negative",
    _read_pages,
)
WAIT: Final = switch("--wait", "wait until the guest has followed")


def _balloon(arguments: Arguments, _settings: GlobalSettings) -> int:
    request, paths = _target(arguments)
    failed = False
    for path in paths:
        try:
            state = ask_for(path, request, BalloonState)
            if state.clamped:
                size = _mib(state.target_pages)
                write_error(f"balloon: {path}: no such size is possible, it becomes {size} MiB")
            if not state.has_driver:
                write_error(f"balloon: {path}: no driver in the guest yet, the size waits for it")
            if arguments.has(WAIT):
                _wait(path, state)
        except VmmError as error:
            write_error(f"balloon: {describe(error)}")
            failed = True
    return 1 if failed else 0


def _target(arguments: Arguments) -> tuple[Request, list[str]]:
    """Return the request, and the sockets of the VMs."""
    words = arguments.positional
    pages = arguments.get(PAGES)
    if pages is not None:
        return BalloonAdjust(pages), words
    if len(words) < 2:
        raise UsageError("balloon: SIZE or SOCKET is missing")
    try:
        return BalloonSet(parse_size(words[0], 1)), words[1:]
    except ValueError as error:
        raise UsageError(f"balloon: SIZE {words[0]!r}: {error}") from None


def _wait(path: str, state: BalloonState) -> None:
    """Wait until the balloon has its target size; show the progress on a terminal."""
    shown = os.isatty(2)
    size = state.actual_pages
    deadline = time.monotonic() + STALL_SECONDS
    while state.actual_pages != state.target_pages:
        if time.monotonic() > deadline:
            where = f"{_mib(state.actual_pages)} of {_mib(state.target_pages)} MiB"
            raise client.ControlError(f"{path}: the guest goes no further: {where}")
        time.sleep(POLL_SECONDS)
        state = ask_for(path, BalloonQuery(refresh=False, hint=False), BalloonState)
        if state.actual_pages != size:
            size = state.actual_pages
            deadline = time.monotonic() + STALL_SECONDS
        if shown:
            os.write(2, f"\r{_mib(size)} of {_mib(state.target_pages)} MiB ".encode())
    if shown:
        os.write(2, b"\n")


def _mib(pages: int) -> str:
    return f"{pages * PAGE_BYTES / (1 << 20):g}"


BALLOON: Final = Command(
    "balloon",
    "set how much of their memory VMs give back to the host",
    (PAGES, WAIT),
    (
        Positional("SIZE", "how much: bytes, or a number with a suffix k, m, g or t", 0),
        SOCKETS,
    ),
    _balloon,
)
