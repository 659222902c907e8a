# SPDX-License-Identifier: BSD-3-Clause
"""Targets for output: files, sockets and the log daemon, and errors of opening them."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from crosvm_py.console.targets import (
    MAX_LINE_BYTES,
    open_file,
    open_syslog,
    open_unix,
    sink_through_relay,
    sink_to,
    stream_to,
)
from crosvm_py.vmm.relay import start_relay
from sys_util.errors import HostError
from tests.support.sockets import arrived

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crosvm_py.console.output import StreamSink
    from crosvm_py.console.targets import Target
    from crosvm_py.vmm.relay import RelayProcess
    from sys_util.event_loop import EventLoop


def test_file_offset_is_shared_with_the_program_that_gave_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb", buffering=0) as file:
        file.write(b"before ")
        sink = stream_to(file.fileno(), "stdout")
        sink.write(b"guest")
        sink.close()
        file.write(b" after")
    assert path.read_bytes() == b"before guest after"


def test_file_is_created_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "con.log"
    for text in (b"one\n", b"two\n"):
        sink = sink_to(open_file(str(path)))
        sink.write(text)
        sink.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_file_may_name_an_open_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as file:
        sink = sink_to(open_file(f"/proc/self/fd/{file.fileno()}"))
        sink.write(b"x")
        sink.close()
        assert file.tell() == 1


@pytest.mark.parametrize("name", ["proc", "link"])
def test_file_may_name_an_open_socket(tmp_path: Path, name: str) -> None:
    """As /dev/stdout does where the standard streams are sockets, of systemd for example."""
    ours, theirs = socket.socketpair()
    path = f"/proc/self/fd/{theirs.fileno()}"
    (tmp_path / "link").symlink_to(path)
    with ours, theirs:
        sink = sink_to(open_file(path if name == "proc" else str(tmp_path / "link")))
        sink.write(b"x")
        sink.close()
        assert ours.recv(16) == b"x"


def test_fifo_without_a_reader_waits_for_one(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sink = sink_to(open_file(str(path)))
    sink.write(b"early")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 16) == b"early"
    os.close(reader)
    sink.write(b"again")
    sink.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param(".", "Is a directory", id="directory"),
        pytest.param("missing/con.log", "No such file", id="no directory"),
        pytest.param("socket", "No such device or address", id="socket"),
    ],
)
def test_file_that_cannot_be_written_names_the_option(
    tmp_path: Path, name: str, reason: str
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        path = str(tmp_path / name)
        with pytest.raises(HostError, match="open --serial path=") as caught:
            open_file(path)
    assert reason in str(caught.value.__cause__)


def test_full_disk_loses_output_and_goes_on(lines: list[str]) -> None:
    sink = sink_to(open_file("/dev/full"))
    sink.write(b"lost")
    sink.write(b"too")
    sink.close()
    assert lines == [
        "--serial path=/dev/full: 7 bytes dropped: No space left on device",
    ]


def test_closed_descriptor_is_a_host_error() -> None:
    with pytest.raises(HostError, match="write to stdout"):
        stream_to(9999, "stdout")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.setblocking(False)
        yield receiver


def relayed(target: Target) -> tuple[StreamSink, RelayProcess]:
    """Make the sink of a port that is for lines, and start the relay behind it."""
    sink, outlet = sink_through_relay(target)
    relay = start_relay([outlet], sandbox=True)
    return sink, relay


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        pytest.param([b"one\ntwo\n"], [b"one", b"two"], id="lines"),
        pytest.param([b"o", b"ne\r", b"\n"], [b"one"], id="byte by byte"),
        pytest.param([b"\n\n"], [b"", b""], id="empty lines"),
        pytest.param([b"a\rb\n"], [b"a\rb"], id="inner CR"),
        pytest.param([b"tail"], [b"tail"], id="unfinished at the end"),
        pytest.param(
            [b"x" * (2 * MAX_LINE_BYTES + 1) + b"\n"],
            [b"x" * MAX_LINE_BYTES, b"x" * MAX_LINE_BYTES, b"x"],
            id="too long",
        ),
    ],
)
def test_unix_sends_a_datagram_for_each_line(
    tmp_path: Path, receiver: socket.socket, pieces: list[bytes], lines: list[bytes]
) -> None:
    sink, relay = relayed(open_unix(str(tmp_path / "log")))
    for piece in pieces:
        sink.write(piece)
    sink.close()
    relay.end()
    assert arrived(receiver) == lines


def test_unix_connects_to_a_path_longer_than_an_address(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        here = os.open(tmp_path, os.O_RDONLY)
        receiver.bind(f"/proc/self/fd/{here}/{'d' * 60}")
        os.close(here)
        os.rename(tmp_path / ("d" * 60), directory / "log")
        sink, relay = relayed(open_unix(str(directory / "log")))
        sink.write(b"long\n")
        sink.close()
        relay.end()
        assert receiver.recv(16) == b"long"


def test_unix_without_a_receiver_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"type=unix,path=.*nobody \(a datagram socket must be"):
        open_unix(str(tmp_path / "nobody"), wait_seconds=0.0)


def test_slow_receiver_of_datagrams_gets_all_lines(
    tmp_path: Path, receiver: socket.socket, loop: EventLoop
) -> None:
    sink, relay = relayed(open_unix(str(tmp_path / "log")))
    sink.attach(loop, threading.RLock())
    lines = [b"%d%s" % (number, b"." * 100) for number in range(1000)]  # more than fits a pipe
    for line in lines:
        sink.write(line + b"\n")
    found: list[bytes] = []
    while len(found) < len(lines):
        found += arrived(receiver)
        loop.run_once(0)
    assert found == lines
    sink.close()
    relay.end()


def test_receiver_that_went_away_turns_the_sink_into_nothing(
    tmp_path: Path, receiver: socket.socket, lines: list[str]
) -> None:
    sink, relay = relayed(open_unix(str(tmp_path / "log")))
    receiver.close()
    sink.write(b"line\n")
    relay.end()
    sink.write(b"line\n")
    assert lines == [f"{sink.name}: Broken pipe; output goes nowhere from here on"]
    sink.close()


def test_syslog_lines_carry_priority_and_tag(tmp_path: Path, receiver: socket.socket) -> None:
    sink, relay = relayed(open_syslog("crosvm-guest", str(tmp_path / "log")))
    sink.write(b"hello\r\n\n")
    sink.close()
    relay.end()
    assert arrived(receiver) == [b"<14>crosvm-guest[%d]: hello" % os.getpid()]


def test_syslog_without_a_daemon_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"type=syslog to .*is syslog there"):
        open_syslog("crosvm-guest", str(tmp_path / "nobody"))
