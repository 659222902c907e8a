# SPDX-License-Identifier: BSD-3-Clause
"""Where the vmm's log lines go."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from crosvm_py.log import Syslog, configure
from crosvm_py.vmm.relay import RelayProcess, start_relay
from sys_util import log
from tests.support.sockets import arrived, datagram_sockets


@pytest.fixture(autouse=True)
def _restore_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_sink", log.stderr_sink)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(str(tmp_path / "log"))
        yield sock


def test_configure_with_a_daemon_writes_to_both(
    daemon: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    syslog = configure("my vm", daemon.getsockname())
    log.get_logger("disk").warning("sector %d\n", 7)
    line = daemon.recv(4096).decode()
    assert syslog is not None
    syslog.close()
    pattern = r"<12>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d my vm\[" + str(os.getpid())
    assert re.fullmatch(pattern + r"\]: \[disk\] sector 7\\n", line)
    assert capfd.readouterr().err.endswith(r"WARN  disk] sector 7\n" + "\n")


@pytest.mark.parametrize("tag", [None, "crosvm"])
def test_configure_without_a_daemon_writes_to_stderr_only(
    tag: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert configure(tag, str(tmp_path / "nobody")) is None
    log.get_logger("disk").error("text")
    assert capfd.readouterr().err.endswith("ERROR disk] text\n")


def test_syslog_that_does_not_read_never_blocks(daemon: socket.socket) -> None:
    syslog = configure("crosvm", daemon.getsockname())
    assert syslog is not None
    for _ in range(10_000):
        syslog.write(log.INFO, "disk", "x" * 1000)
    syslog.close()


def test_syslog_that_went_away_is_no_error(daemon: socket.socket) -> None:
    syslog = configure("crosvm", daemon.getsockname())
    assert syslog is not None
    daemon.close()
    syslog.write(log.ERROR, "disk", "text")
    syslog.close()


def relayed(daemon: socket.socket) -> tuple[Syslog, RelayProcess]:
    """Configure syslog as a run does, and start the relay."""
    syslog = configure("crosvm", daemon.getsockname())
    assert syslog is not None
    relay = start_relay([syslog.hand_over()], sandbox=True)
    return syslog, relay


def test_lines_of_a_running_vm_go_through_the_relay(daemon: socket.socket) -> None:
    syslog, relay = relayed(daemon)
    log.get_logger("disk").error("sector %d\n", 7)
    syslog.close()
    relay.end()
    pattern = rf"<11>.* crosvm\[{os.getpid()}\]: \[disk\] sector 7\\n"
    assert re.fullmatch(pattern, daemon.recv(9999).decode())


def test_lines_that_the_daemon_does_not_read_are_counted(daemon: socket.socket) -> None:
    daemon.setblocking(False)
    syslog, relay = relayed(daemon)
    sent = 2000
    for number in range(sent):
        syslog.write(log.INFO, "disk", f"{number} {'x' * 1000}")
    found: list[bytes] = []
    while not any(b"missing here" in line for line in found):
        found += arrived(daemon)
        syslog.write(log.INFO, "disk", "more")
        sent += 1
    counts = [re.search(rb"\] (\d+) lines? (?:is|are) missing here", line) for line in found]
    lost = sum(int(match[1]) for match in counts if match)
    assert 0 < lost < sent
    syslog.close()
    relay.end()


def test_nothing_of_the_log_daemon_stays_with_the_vmm(daemon: socket.socket) -> None:
    syslog, relay = relayed(daemon)
    mode = os.fstat(syslog.pipe_fd).st_mode
    assert stat.S_ISFIFO(mode)
    assert datagram_sockets(os.getpid()) == 1  # the daemon's own
    syslog.close()
    relay.end()


def test_relay_that_was_killed_is_told(daemon: socket.socket, lines: list[str]) -> None:
    syslog, relay = relayed(daemon)
    os.kill(relay.pid, signal.SIGKILL)
    os.waitid(os.P_PID, relay.pid, os.WEXITED | os.WNOWAIT)
    syslog.write(log.ERROR, "disk", "text")
    syslog.close()
    log.set_sink(lambda _level, _module, text: lines.append(text))
    relay.end()
    assert lines == [f"the relay of lines (pid {relay.pid}): killed by signal 9"]


def test_receiver_that_never_reads_does_not_hold_the_end_up(
    daemon: socket.socket, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr("crosvm_py.relay.process.LAST_SECONDS", 0.01)
    syslog, relay = relayed(daemon)
    for _ in range(200):
        syslog.write(log.INFO, "disk", "x" * 1000)
    syslog.close()
    log.set_sink(lambda _level, _module, text: lines.append(text))
    relay.end()
    assert lines == []
