# SPDX-License-Identifier: BSD-3-Clause
"""Whatever a driver sends, offers and commands in whatever order: frames arrive whole or not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.virtio.commands import SetLink
from devices.virtio.net.header import HEADER_BYTES, HeaderRules
from tests.support.net_rig import (
    EVENT_IDX,
    MRG_RXBUF,
    PLAIN,
    Ioctls,
    NetRig,
    frame,
    ip_frame,
    on_wire,
)

RANDOMLY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
QUEUE = 64


pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def _ioctls(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    Ioctls(monkeypatch)


@RANDOMLY
@given(
    features=st.integers(0, (1 << 64) - 1),
    header=st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES),
    length=st.integers(0, 70000),
)
def test_header_is_passed_on_only_in_the_frame(features: int, header: bytes, length: int) -> None:
    passed = HeaderRules(features).accept(header, length)
    if passed is None or passed == PLAIN:
        return
    assert passed[0] in (0, 1)
    assert int.from_bytes(passed[2:4], "little") <= length
    if passed[0]:
        start, offset = (int.from_bytes(passed[at : at + 2], "little") for at in (6, 8))
        assert start + offset + 2 <= length


buffers = st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=3), max_size=12)


@RANDOMLY
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("buffers"), buffers),
            st.tuples(st.just("frame"), st.integers(14, 20000)),
            st.tuples(st.just("pause"), st.none()),
            st.tuples(st.just("link"), st.booleans()),
        ),
        max_size=12,
    ),
    merge=st.booleans(),
)
def test_frames_arrive_whole_and_in_order(
    steps: list[tuple[str, list[list[int]] | int | None]], *, merge: bool
) -> None:
    rig = NetRig(without=EVENT_IDX | (0 if merge else MRG_RXBUF))
    rig.driver.start(size=QUEUE)
    sent: list[bytes] = []
    got: list[bytes] = []
    try:
        for _, argument in steps:
            if isinstance(argument, bool):
                rig.device.command(SetLink(up=argument))
            elif isinstance(argument, int):
                sent.append(frame(argument, len(sent)))
                rig.host.send(PLAIN + sent[-1])
                if rig.listens():
                    rig.driver.context.fire(rig.end_fd)
            elif argument is None:
                rig.driver.worker.pause()
                rig.driver.worker.resume()
                rig.driver.kick(0)
            else:
                _offer(rig, argument)
            _collect(rig, got, merge=merge)
            held = rig.driver.worker.states()[0]
            assert merge or (held.next_avail - held.next_used) & 0xFFFF <= 1
        assert len(got) == rig.device.stats.rx_frames
    finally:
        rig.close()
    assert all(data in sent for data in got)
    assert sorted(got, key=sent.index) == got


def _offer(rig: NetRig, chains: list[list[int]]) -> None:
    queue = rig.driver.queues[0]
    for lengths in chains:
        if sum(len(request.used_descs) for request in queue.requests.values()) < QUEUE - 3:
            queue.submit([], lengths)
    rig.driver.kick(0)


def _collect(rig: NetRig, got: list[bytes], *, merge: bool) -> None:
    """Take what came and join what was merged."""
    pieces = [data for data in rig.received() if data]
    while pieces:
        count = int.from_bytes(pieces[0][10:12], "little")
        assert 1 <= count <= (len(pieces) if merge else 1)
        got.append(b"".join(pieces[:count])[HEADER_BYTES:])
        del pieces[:count]


@RANDOMLY
@given(
    commands=st.lists(
        st.tuples(st.binary(max_size=40), st.integers(0, 3)), min_size=1, max_size=10
    ),
    frames=st.lists(st.binary(max_size=200), max_size=10),
)
def test_nonsense_never_ends_the_card(
    commands: list[tuple[bytes, int]], frames: list[bytes]
) -> None:
    rig = NetRig()
    rig.driver.start(size=QUEUE)
    try:
        for data, ack_bytes in commands:
            rig.driver.queues[2].submit([data] if data else [], [ack_bytes] if ack_bytes else [1])
        for data in frames:
            rig.driver.queues[1].submit([data] if data else [b"x"])
        rig.driver.kick(2)
        rig.driver.kick(1)
        assert len(rig.driver.queues[2].collect()) == len(commands)
        assert len(rig.driver.queues[1].collect()) == len(frames)
        rig.send(PLAIN + frame(60))
        assert rig.sent()[-1:] == [PLAIN + frame(60)]
    finally:
        rig.close()


@RANDOMLY
@given(
    parts=st.lists(
        st.one_of(
            st.tuples(st.just("frame"), st.integers(34, 40000)),
            st.tuples(st.just("length"), st.integers(42, 1514)),
            st.tuples(st.just("length"), st.just(42)),
            st.tuples(st.just("nonsense"), st.binary(min_size=1, max_size=300)),
            st.tuples(st.just("next process"), st.just(0)),
        ),
        max_size=10,
    ),
    cuts=st.lists(st.integers(1, 3000), max_size=10),
)
def test_stream_out_of_step_makes_up_no_frame_and_comes_back(
    parts: list[tuple[str, int | bytes]], cuts: list[int]
) -> None:
    rig = NetRig(tap=False)
    rig.driver.start(0, 1, size=16)
    sent: list[bytes] = []
    got: list[bytes] = []
    try:
        for what, argument in parts:
            wire = argument if isinstance(argument, bytes) else struct.pack(">I", argument)
            if what == "frame" and isinstance(argument, int):
                sent.append(ip_frame(argument, len(sent)))
                wire = on_wire(sent[-1])
            elif what == "next process":
                rig.restart()
                continue
            for cut in [*cuts, len(wire)]:
                rig.host.setblocking(True)
                rig.host.sendall(wire[:cut])
                wire = wire[cut:]
                got += _take_all(rig)
        for seed in range(40):  # a process that ended in nonsense may have 64 KiB of it to skip
            rig.host.sendall(on_wire(ip_frame(2000, 1000 + seed)))
            got += _take_all(rig)
        assert got[-1] == ip_frame(2000, 1000 + seed)
        if {what for what, _ in parts} <= {"frame", "length"}:
            assert got[: len(sent)] == sent
            assert len(got) == len(sent) + 40
        assert rig.config()[1] == 1
    finally:
        rig.close()


def _take_all(rig: NetRig) -> list[bytes]:
    got: list[bytes] = []
    while True:
        missing = 12 - len(rig.driver.queues[0].requests)
        rig.offer(*[70000] * missing)
        if rig.listens():
            rig.driver.context.fire(rig.end_fd)
        more = [data[HEADER_BYTES:] for data in rig.received()]
        got += more
        if not more:
            return got
