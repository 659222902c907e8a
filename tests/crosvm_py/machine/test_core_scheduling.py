# SPDX-License-Identifier: BSD-3-Clause
"""When vCPUs get cores of their own, and the errors when the host cannot do that."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.machine import core_scheduling
from crosvm_py.machine.core_scheduling import separates_cores, take_core
from sys_util import linux
from sys_util.errors import ConfigError, HostError
from tests.support.processes import in_child

if TYPE_CHECKING:
    from collections.abc import Callable

OFFERED: Final = 0


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Put a host in place: what it answers, and whether it says that SMT is on."""

    def put(answer: int, smt: str | None = "1") -> None:
        def core_cookie() -> int:
            if answer:
                raise OSError(answer, os.strerror(answer))
            return 0

        monkeypatch.setattr(linux, "core_cookie", core_cookie)
        monkeypatch.setattr(core_scheduling, "SMT", str(tmp_path / "smt"))
        if smt is not None:
            (tmp_path / "smt").write_text(f"{smt}\n")

    return put


@pytest.mark.parametrize("wanted", [None, True])
def test_host_that_can_separates(host: Callable[..., None], wanted: bool | None) -> None:
    host(OFFERED)
    assert separates_cores(wanted)


def test_nobody_is_asked_where_it_is_not_wanted(host: Callable[..., None]) -> None:
    host(OFFERED)
    assert not separates_cores(False)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL, errno.EPERM])
def test_host_that_cannot_does_without(
    host: Callable[..., None], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    host(number)
    assert not separates_cores(None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("number", "smt"), [(errno.ENODEV, "1"), (errno.EINVAL, "0")])
def test_host_without_siblings_has_nothing_to_separate(
    host: Callable[..., None], number: int, smt: str, capfd: pytest.CaptureFixture[str]
) -> None:
    host(number, smt)
    assert not separates_cores(True)
    assert "--core-scheduling: every core of this host runs one thread" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "smt", "reason"),
    [
        (errno.EINVAL, "1", r"this kernel has none \(Linux 5\.14, CONFIG_SCHED_CORE\); switch SMT"),
        (errno.EINVAL, None, r"this kernel has none"),
        (errno.EPERM, "0", r"this kernel refuses it: Operation not permitted; switch SMT off"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_refused(
    host: Callable[..., None], number: int, smt: str | None, reason: str
) -> None:
    host(number, smt)
    with pytest.raises(ConfigError, match=f"--core-scheduling: {reason}"):
        separates_cores(True)


def test_kernel_that_refuses_a_core_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(linux, "make_core_cookie", refuse)
    with pytest.raises(HostError, match="take a core for vCPUs"):
        take_core()


def test_kernel_gives_a_cookie_or_says_why_not() -> None:
    def ask() -> bool:
        before = linux.core_cookie()
        linux.make_core_cookie()
        return before == 0 and linux.core_cookie() != 0

    assert in_child(ask) in ("True", "ENODEV", "EINVAL")
