# SPDX-License-Identifier: BSD-3-Clause
"""Start a jailed process in a real group of cgroup v2, with clone3(2) and without it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

from jail.cgroup_site import own_group
from jail.namespaces import clone_into
from sys_util import linux
from sys_util.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may have no group to divide"),
]

NAME: Final = f"crosvm-test-{os.getpid()}"


@pytest.fixture
def group() -> Iterator[int]:
    """Return the directory of a group below our own; it needs no controllers."""
    path = Path(own_group()) / NAME
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)
    path.rmdir()


def start(group: int) -> int:
    pid = clone_into(group)
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def v2_line(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::"))


def refuse(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))


def test_process_begins_in_the_group(group: int) -> None:
    pid = start(group)
    assert v2_line(pid).endswith(f"/{NAME}")
    end(pid)


def test_process_is_moved_where_the_call_is_unknown(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "clone_into_cgroup", lambda *_: refuse(errno.ENOSYS))
    pid = start(group)
    assert v2_line(pid).endswith(f"/{NAME}")
    end(pid)


def test_refusal_is_a_host_error(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "clone_into_cgroup", lambda *_: refuse(errno.EBUSY))
    with pytest.raises(HostError, match="clone namespaces for a device"):
        start(group)


def test_process_that_cannot_be_moved_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    clone = linux.clone

    def clone_and_note(flags: int) -> int:
        started.append(clone(flags))
        return started[-1]

    monkeypatch.setattr(linux, "clone_into_cgroup", lambda *_: refuse(errno.ENOSYS))
    monkeypatch.setattr(linux, "clone", clone_and_note)
    no_group = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with pytest.raises(HostError, match="clone namespaces for a device"):
        start(no_group)
    os.close(no_group)
    assert not Path(f"/proc/{started[0]}").exists()
