# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm balloon_stats``: how much memory a running VM has, uses and has given back."""

from __future__ import annotations

import time

from crosvm_py.cli.commands.asking import SOCKET, ask_for
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import switch
from crosvm_py.cli.output import write_out
from crosvm_py.control import socket_client as client
from crosvm_py.requests.balloon import PAGE_BYTES, BalloonQuery
from devices.virtio.commands import BalloonState
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

# How often to ask, and how long the guest may take to answer.
POLL_SECONDS: Final = 0.1
ANSWER_SECONDS: Final = 15.0

HINTS: Final = switch(
    "--free-page-hints", "also ask the guest which memory is free, and add its size"
)


def _stats(arguments: Arguments, _settings: GlobalSettings) -> int:
    import json

    from devices.virtio.balloon.stats import STAT_NAMES

    (path,) = arguments.positional
    hint = arguments.has(HINTS)
    state = _fresh_state(path)
    stats: dict[str, int | None] = dict.fromkeys(STAT_NAMES)
    stats |= {STAT_NAMES[tag]: value for tag, value in state.stats if tag < len(STAT_NAMES)}
    told: dict[str, object] = {
        "balloon_actual": state.actual_pages * PAGE_BYTES,
        "balloon_target": state.target_pages * PAGE_BYTES,
        "released_total": state.released_bytes,
        "stats": stats,
    }
    if hint:
        told["free_page_hints"] = _free_page_hints(path)
    write_out(json.dumps({"BalloonStats": told}, indent=2) + "\n")
    return 0


def _fresh_state(path: str) -> BalloonState:
    """Ask the guest for statistics, and wait until it has answered."""
    before = ask_for(path, BalloonQuery(refresh=True, hint=False), BalloonState)
    if not before.has_driver:
        raise client.ControlError(f"{path}: no balloon driver in the guest")
    return _look(path, lambda now: now.updates > before.updates or not now.has_stats)


def _free_page_hints(path: str) -> int:
    """Ask the guest for its free pages; return their size in bytes."""
    ask_for(path, BalloonQuery(refresh=False, hint=True), BalloonState)
    return _look(path, lambda now: now.hint_done).hinted_bytes


def _look(path: str, is_there: Callable[[BalloonState], bool]) -> BalloonState:
    """Ask for the balloon's state again and again until ``is_there`` accepts it."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        state = ask_for(path, BalloonQuery(refresh=False, hint=False), BalloonState)
        if is_there(state):
            return state
        if time.monotonic() > deadline:
            raise client.ControlError(f"{path}: the guest does not answer")
        time.sleep(POLL_SECONDS)


STATS: Final = Command(
    "balloon_stats",
    "print a VM's balloon and memory statistics as JSON",
    (HINTS,),
    (SOCKET,),
    _stats,
)
