# SPDX-License-Identifier: BSD-3-Clause
"""Nothing gets out of the process that reads a kernel, whatever the kernel makes it do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.kernel_parser import process
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from sys_util import linux
from sys_util.errors import VmmError
from tests.breakout import hands, limits
from tests.breakout.attempt import Cell
from tests.breakout.inmate import filters_left_out, outcome
from tests.breakout.prison import World
from tests.breakout.table import ATTEMPTS
from tests.kernel_loader.images import Elf, write
from tests.support.command_line import config_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kernel_loader.source import FileSource

pytestmark = pytest.mark.usefixtures("lines")

# It has no guest memory, and its share of the host is another one: test_kernel_parser.py in
# tests/crosvm_py/vmm.
TRIED: Final = [
    number
    for number, attempt in enumerate(ATTEMPTS)
    if attempt.is_for("rng")
    and not attempt.alone
    and attempt.group not in (limits.MEMORY, limits.SHARE)
]


WALLED: Final = ("files", "network", "processes", "programs")
# What only looks at names and numbers, and two calls whose success says nothing: kill(2) of
# everybody where there is nobody whom it may signal, and who shall get signals of a socket, which
# are sent with the rights of whoever asked.
LOOKS: Final = (
    *("take a file handle", "stat", "test access", "read a link", "read an attribute"),
    *("ask for the", "move to another processor", "signal everybody", "have the kernel signal"),
)


@contextmanager
def bystander() -> Iterator[int]:
    """A process of the same user, which must live on."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.poll() is None
        process.kill()


def outcomes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """Have code in the process make every attempt; return what became of each."""
    sockets: list[int] = []
    world = World(folder, sweep_step=3)
    with bystander() as pid, closing(world):
        someone = SimpleNamespace(pid=pid)
        about = SimpleNamespace(rig=SimpleNamespace(warden=someone), sibling=someone)
        fields = world.fields(about, "rng")  # type: ignore[arg-type]  # all that it needs of one

        def arm(fd: int, _head: bytes) -> None:
            hands.arm()
            sockets.append(fd)

        def act(source: FileSource, unpacked_fd: int) -> None:
            files = (source.fd, unpacked_fd)
            cell = Cell(
                kind="rng",
                channel=sockets[0],
                memory=unpacked_fd,
                guest_at=0,
                files=files,
                fds=(*files, *sockets),
                **fields,  # type: ignore[arg-type]  # of a world's
            )
            found = {ATTEMPTS[number].name: outcome(ATTEMPTS[number], cell) for number in TRIED}
            os.pwrite(unpacked_fd, json.dumps(found).encode(), 0)
            os._exit(0)

        monkeypatch.setattr(linux, "report_denied_calls", arm)
        monkeypatch.setattr(process, "parse_kernel", act)
        path = write(folder, Elf().build())
        with closing(start_kernel_parser(config_of(path))) as parser:
            results = os.dup(parser._unpacked_fd)
            os.waitid(os.P_PID, parser._pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(VmmError):  # for what it says, or for saying nothing
                parser.image()
    with open(results, encoding="ascii") as file:
        file.seek(0)
        found: dict[str, list[object]] = json.load(file)
    assert len(found) > 150
    return found


def test_every_attempt_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(tmp_path, monkeypatch)
    assert {name: became for name, became in found.items() if became == ["out"]} == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user stays who he is")
def test_jail_stops_what_reaches_others_where_the_filter_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Namespaces, of which it has none of its own, are for the filter alone."""
    with filters_left_out():
        found = outcomes(tmp_path, monkeypatch)
    walled = [one for one in ATTEMPTS if one.group in WALLED and one.has_jail("rng")]
    out = {one.name for one in walled if found.get(one.name) == ["out"]}
    assert {name for name in out if not name.startswith(LOOKS)} == set()
