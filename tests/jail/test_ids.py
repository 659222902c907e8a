# SPDX-License-Identifier: BSD-3-Clause
"""Which ids a jailed process has, for every way to be root or not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from jail import ids
from jail.ids import FIRST_DEVICE_UID, IdMap, Ids, choose
from sys_util import linux
from sys_util.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

PID: Final = 77
DEVICE: Final = FIRST_DEVICE_UID + PID
EVERY: Final = "         0          0 4294967295\n"
CONTAINER: Final = "         0     100000      65536\n"
SPLIT: Final = "         0       1000          1\n         1     100000      65536\n"
ONE: Final = "         0       1000          1\n"
BOTH: Final = frozenset({linux.CAP_SETUID, linux.CAP_SETGID})


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ids]:
    """Call ``choose`` as a process with these ids, capabilities and id maps."""

    def choose_as(
        uid: int, text: str = EVERY, held: frozenset[int] = BOTH, gids: str | None = None
    ) -> Ids:
        for name, content in (("uid_map", text), ("gid_map", text if gids is None else gids)):
            (tmp_path / name).write_text(content)
        existing = ids._ids_in_namespace
        monkeypatch.setattr(
            ids, "_ids_in_namespace", lambda path: existing(str(tmp_path / Path(path).name))
        )
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        monkeypatch.setattr(os, "getegid", lambda: uid)
        monkeypatch.setattr(linux, "capabilities", lambda: held)
        return choose()

    return choose_as


def test_root_of_the_host_gives_each_device_ids_of_its_own(chosen: Callable[..., Ids]) -> None:
    found = chosen(0)
    assert found.gives_own
    assert found.of_device(PID) == (DEVICE, DEVICE)
    assert found.of_device().inside() == found.of_device(PID).inside() == (1000, 1000)


@pytest.mark.parametrize("text", [CONTAINER, SPLIT, ONE, ""], ids=["many", "split", "one", "none"])
def test_root_of_a_container_keeps_its_ids_without_a_map(
    chosen: Callable[..., Ids], text: str
) -> None:
    found = chosen(0, text)
    assert not found.gives_own
    assert found.of_device(PID) == (None, None)


def test_groups_may_be_what_is_missing(chosen: Callable[..., Ids]) -> None:
    assert chosen(0, EVERY, gids=CONTAINER).of_device(PID) == (None, None)


@pytest.mark.parametrize("missing", sorted(BOTH))
def test_root_without_a_capability_keeps_its_ids(chosen: Callable[..., Ids], missing: int) -> None:
    found = chosen(0, EVERY, BOTH - {missing})
    assert found.of_device(PID) == found.of_user(IdMap(5, 6)) == (None, None)


@pytest.mark.parametrize("held", [frozenset(), BOTH])
def test_user_keeps_its_ids_with_a_map(chosen: Callable[..., Ids], held: frozenset[int]) -> None:
    found = chosen(1234, EVERY, held)
    assert found.of_device(PID) == found.of_user(IdMap(5, 6)) == (1234, 1234)


@pytest.mark.parametrize(
    ("text", "user", "given"),
    [
        (EVERY, IdMap(5, 6), (5, 6)),
        (EVERY, IdMap(0, 6), (None, 6)),
        (CONTAINER, IdMap(5, 65_535), (5, 65_535)),
        (CONTAINER, IdMap(65_536, 6), (None, 6)),
        (SPLIT, IdMap(65_536, 65_537), (65_536, None)),
        (ONE, IdMap(1, 0), (None, None)),
    ],
)
def test_broker_has_ids_of_the_owner_that_exist_here(
    chosen: Callable[..., Ids], text: str, user: IdMap, given: tuple[int | None, int | None]
) -> None:
    assert chosen(0, text).of_user(user) == given


def test_missing_proc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(linux, "capabilities", lambda: BOTH)

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(HostError, match=r"read /proc/self/uid_map \(mount a proc"):
        choose()
