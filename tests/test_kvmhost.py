# SPDX-License-Identifier: BSD-3-Clause
"""The KVM test host's own parts that need no QEMU: its protocol, its client, its fixture."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kvmhost import mended, qemu
from tests.kvmhost.client import Connection, HostGoneError
from tests.kvmhost.fixture import Command
from tests.kvmhost.image import Image
from tests.kvmhost.protocol import (
    MAX_PAYLOAD_BYTES,
    Decoder,
    Frame,
    FrameError,
    Kind,
    RunRequest,
    decode_clock,
    decode_status,
    encode,
    encode_clock,
    encode_status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = RunRequest(["echo", "a b", "\udc80"], "/", "tester", {"A": "1"})


class FakeAgent:
    """The host's end of a port, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def next(self) -> Frame:
        while not self._frames:
            data = self.sock.recv(4096)
            assert data, "the client closed the port"
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self.sock.sendall(encode(kind, payload))


@pytest.fixture
def pair() -> Iterator[tuple[Connection, FakeAgent]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, -1)
    with theirs:
        yield connection, FakeAgent(theirs)
    connection.close()


def test_decoder_bytewise_input_gives_the_same_frames() -> None:
    decoder = Decoder()
    stream = encode(Kind.STDOUT, b"hello") + encode(Kind.EXIT, encode_status(3))
    frames = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert frames == [Frame(Kind.STDOUT, b"hello"), Frame(Kind.EXIT, encode_status(3))]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"\x00\x00\x00\x00\x00", "kind 0, length 0", id="kind-zero"),
        pytest.param(b"\xff\x00\x00\x00\x01x", "kind 255", id="kind-unknown"),
        pytest.param(
            b"\x07" + (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big"), "length 1048577", id="length"
        ),
    ],
)
def test_decoder_other_bytes_raise_and_are_forgotten(data: bytes, reason: str) -> None:
    decoder = Decoder()
    with pytest.raises(FrameError, match=reason):
        decoder.feed(data)
    assert decoder.feed(encode(Kind.EOF)) == [Frame(Kind.EOF, b"")]


def test_run_request_survives_the_wire() -> None:
    assert RunRequest.decode(REQUEST.encode()) == REQUEST


def test_clock_and_status_survive_the_wire() -> None:
    assert decode_clock(encode_clock(1.5, b"noise")) == (1.5, b"noise")
    assert decode_status(encode_status(-2)) == -2


def test_hello_skips_what_an_earlier_client_left(pair: tuple[Connection, FakeAgent]) -> None:
    connection, agent = pair

    def answer() -> None:
        hello = agent.next()
        agent.send(Kind.STDOUT, b"late output")
        agent.send(Kind.EXIT, encode_status(0))
        agent.send(Kind.HELLO, b"of somebody else")
        agent.send(Kind.HELLO, hello.payload)

    thread = threading.Thread(target=answer)
    thread.start()
    connection.hello(timeout=10)
    thread.join()


def test_hello_without_answer_raises(pair: tuple[Connection, FakeAgent]) -> None:
    with pytest.raises(HostGoneError, match="no answer"):
        pair[0].hello(timeout=0.01)


def test_wait_after_timeout_has_the_command_killed(pair: tuple[Connection, FakeAgent]) -> None:
    connection, agent = pair
    with pytest.raises(TimeoutError, match="not finished"):
        connection.wait(lambda kind, data: None, timeout=0.01)
    assert agent.next() == Frame(Kind.SIGNAL, bytes([signal.SIGKILL]))


def test_wait_host_ends_raises(pair: tuple[Connection, FakeAgent]) -> None:
    connection, agent = pair
    agent.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(HostGoneError, match="ended"):
        connection.wait(lambda kind, data: None, timeout=10)


def test_command_collects_output_and_status(pair: tuple[Connection, FakeAgent]) -> None:
    connection, agent = pair
    command = Command(connection, REQUEST)
    assert RunRequest.decode(agent.next().payload) == REQUEST
    agent.send(Kind.STDOUT, b"guest: up 1.2\n")
    assert command.wait_for(r"up (\S+)")[1] == "1.2"
    assert command.status is None
    agent.send(Kind.STDERR, b"warning")
    agent.send(Kind.EXIT, encode_status(32))
    assert command.wait() == 32
    assert (command.stdout, command.stderr) == ("guest: up 1.2\n", "warning")
    command.close()


def test_command_without_the_pattern_raises_with_its_output(
    pair: tuple[Connection, FakeAgent],
) -> None:
    connection, agent = pair
    command = Command(connection, REQUEST)
    agent.send(Kind.STDERR, b"no such kernel")
    agent.send(Kind.EXIT, encode_status(1))
    with pytest.raises(TimeoutError, match="no such kernel"):
        command.wait_for("guest: up")
    command.close()


def test_command_close_kills_what_still_runs(pair: tuple[Connection, FakeAgent]) -> None:
    connection, agent = pair
    command = Command(connection, REQUEST)
    agent.next()
    closing = threading.Thread(target=command.close)
    closing.start()
    assert agent.next() == Frame(Kind.SIGNAL, bytes([signal.SIGKILL]))
    agent.send(Kind.EXIT, encode_status(137))
    closing.join()
    assert command.status == 137


def test_qemu_command_has_one_processor_and_escaped_paths(tmp_path: Path) -> None:
    disk = tmp_path / "a,b"
    words = qemu.command(Image(disk, disk, disk, disk, disk))
    assert words[words.index("-smp") + 1] == "1"
    assert any(f"{tmp_path}/a,,b," in word for word in words)


def test_is_alive_folder_without_qemu_is_dead(tmp_path: Path) -> None:
    (tmp_path / qemu.ALIVE).touch()
    assert not qemu.is_alive(tmp_path)
    assert not qemu.is_alive(tmp_path / "none")


def test_kill_stale_pid_file_touches_no_other_process(tmp_path: Path) -> None:
    (tmp_path / qemu.PID_FILE).write_text("1\n")
    qemu.kill(tmp_path)
    (tmp_path / qemu.PID_FILE).write_text("nonsense\n")
    qemu.kill(tmp_path)


# The place as it is in QEMU 7.2, between bytes of its neighbours.
INJECTION = bytes.fromhex(
    "4489ab80330000 89b354efffff c7838433000000000000 48c7838833000 0ffffffff"
    "f605ba45b60002 0f856c010000 ba01000000 4889df e8a74f0500".replace(" ", "")
)


def test_mend_takes_out_the_store_alone() -> None:
    mended_program = mended.mend(b"before" + INJECTION + b"after")
    assert mended_program is not None
    differing = [
        index
        for index, (old, new) in enumerate(
            zip(b"before" + INJECTION + b"after", mended_program, strict=True)
        )
        if old != new
    ]
    assert differing == list(range(6 + 7, 6 + 7 + 6))
    assert mended.mend(mended_program) is None


def test_mend_program_that_looks_otherwise_is_left_alone() -> None:
    assert mended.mend(b"") is None
    assert mended.mend(INJECTION.replace(b"\x89\xb3", b"\x89\xb7")) is None
    assert mended.mend(INJECTION + INJECTION) is None


def test_mended_copy_is_the_machines_qemu_but_for_six_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tmp_path / "usr" / "bin" / mended.BINARY
    original.parent.mkdir(parents=True)
    original.write_bytes(b"#!" + INJECTION)
    original.chmod(0o755)
    monkeypatch.setenv("PATH", str(original.parent))
    monkeypatch.setattr("tests.guests.cache.CACHE", tmp_path / "cache")
    copy = Path(mended.binary())
    assert copy.read_bytes() == mended.mend(original.read_bytes())
    assert os.access(copy, os.X_OK)
    assert (copy.parents[1] / "share").readlink() == tmp_path / "usr" / "share"


def test_mended_unknown_program_is_started_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = tmp_path / mended.BINARY
    original.write_bytes(b"#!/bin/sh\n")
    original.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.guests.cache.CACHE", tmp_path / "cache")
    assert mended.binary() == str(original)
    assert "not as known" in capsys.readouterr().err
