# SPDX-License-Identifier: BSD-3-Clause
"""The control process's part of a core dump: what it asks, whom, and what it is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.dumping import Dumping
from crosvm_py.requests.core_dump import DumpCore, MayDump, WriteCore
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from sys_util.errors import ConfigError, VmmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crosvm_py.requests.protocol import Request, Response

PATH = b"/run/core\xff"
NAME = "/run/core\\xff"


class Others:
    """The vmm and the opener, as the control process knows them."""

    def __init__(self) -> None:
        self.asked: list[tuple[Request, int]] = []
        self.pending: list[Pending] = []
        self.made: list[tuple[bytes, Callable[[str, int], None]]] = []
        self.dumping = Dumping(self.ask, self.make)
        self.answers: list[Response] = []

    def ask(self, request: Request, fds: Sequence[int] = ()) -> Pending:
        self.asked.append((request, len(fds)))
        self.pending.append(Pending())
        return self.pending[-1]

    def make(self, path: bytes, then: Callable[[str, int], None]) -> None:
        self.made.append((path, then))

    def start(self) -> None:
        self.dumping.dump(DumpCore(PATH)).deliver_to(self.answers.append)

    def send_file(self) -> int:
        """Have the opener send a file; return its number, which is closed then."""
        fd = os.open("/dev/null", os.O_WRONLY)
        self.made[-1][1]("", fd)
        return fd


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_file_is_made_when_the_vmm_can_write_it() -> None:
    others = Others()
    others.start()
    assert others.asked == [(MayDump(), 0)]
    assert not others.made
    others.pending[0].complete(Done())
    assert others.made[0][0] == PATH
    fd = others.send_file()
    assert not is_open(fd)
    assert others.asked[1] == (WriteCore(), 1)
    assert not others.answers
    others.pending[1].complete(Done())
    assert others.answers == [Done()]


def test_second_dump_is_refused_until_the_first_is_over() -> None:
    others = Others()
    others.start()
    with pytest.raises(ConfigError, match="another core dump is under way"):
        others.start()
    others.pending[0].complete(Failed("not now"))
    assert others.answers == [Failed("not now")]
    assert not others.made
    others.start()


def test_opener_that_makes_no_file_says_why() -> None:
    others = Others()
    others.start()
    others.pending[0].complete(Done())
    others.made[0][1]("make /run/core: File exists", -1)
    assert others.answers == [Failed("make /run/core: File exists")]
    assert len(others.asked) == 1
    others.start()


def test_file_that_is_left_is_named() -> None:
    others = Others()
    others.start()
    others.pending[0].complete(Done())
    others.send_file()
    others.pending[1].complete(Failed("No space left on device"))
    line = f"{NAME}: No space left on device; the file is left empty"
    assert others.answers == [Failed(line)]


def test_vmm_that_takes_no_more_requests_leaves_no_descriptor() -> None:
    others = Others()
    others.start()
    others.pending[0].complete(Done())

    def refuse(request: Request, fds: Sequence[int] = ()) -> Pending:
        raise VmmError(f"no {type(request).__name__} with {len(fds)}")

    others.dumping._ask = refuse
    assert not is_open(others.send_file())
    assert others.answers == [Failed(f"{NAME}: no WriteCore with 1; the file is left empty")]


@pytest.mark.parametrize("path", [b"core", b"", b"/a/../b", b"/a/", b"/a\0b"])
def test_path_that_is_none_is_refused_before_anybody_is_asked(path: bytes) -> None:
    others = Others()
    with pytest.raises(ConfigError, match="the path of a core file"):
        others.dumping.dump(DumpCore(path))
    assert not others.asked
