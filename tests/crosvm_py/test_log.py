# SPDX-License-Identifier: BSD-3-Clause
"""Where the vmm's log lines go."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from crosvm_py.log import configure
from sys_util import log


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
