# SPDX-License-Identifier: BSD-3-Clause
"""Who starts when, with moulds that do nothing."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.warden.forge_protocol import FROM_MOULD_CODEC
from crosvm_py.warden.forge_proxy import Mould
from crosvm_py.warden.start_queue import StartQueue
from sys_util.channel import Channel, socket_pair

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def moulds() -> Iterator[list[Mould]]:
    pairs: list[tuple[socket.socket, socket.socket]] = [socket_pair() for _ in range(4)]
    yield [Mould(Channel(ours, FROM_MOULD_CODEC), theirs) for ours, theirs in pairs]
    for pair in pairs:
        for end in pair:
            end.close()


def test_as_many_start_as_may_and_the_others_follow_in_order(moulds: list[Mould]) -> None:
    started: list[Mould] = []
    queue = StartQueue(2, started.append)
    for mould in moulds:
        queue.add(mould)
    assert started == moulds[:2]
    queue.leave(moulds[1])
    queue.leave(moulds[1])
    assert started == moulds[:3]
    queue.leave(moulds[0])
    assert started == moulds


def test_one_that_fails_while_it_waits_is_never_started(moulds: list[Mould]) -> None:
    started: list[Mould] = []
    queue = StartQueue(1, started.append)
    for mould in moulds:
        queue.add(mould)
    queue.leave(moulds[1])
    queue.leave(moulds[0])
    assert started == [moulds[0], moulds[2]]


def test_one_that_fails_as_it_starts_makes_room(moulds: list[Mould]) -> None:
    started: list[Mould] = []

    def execute(mould: Mould) -> None:
        started.append(mould)
        if mould is not moulds[-1]:
            queue.leave(mould)

    queue = StartQueue(1, execute)
    for mould in moulds:
        queue.add(mould)
    assert started == moulds
