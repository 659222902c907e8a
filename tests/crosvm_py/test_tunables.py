# SPDX-License-Identifier: BSD-3-Clause
"""Which tunables of the C library a run removes, and that it executes itself again for that."""

from __future__ import annotations

import os
import sys

import pytest

from crosvm_py.tunables import run_without_huge_pages, without_huge_pages


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("", ""),
        ("glibc.malloc.hugetlb=1", ""),
        ("glibc.malloc.hugetlb=2", ""),
        ("glibc.a=3:glibc.malloc.hugetlb=1:glibc.b=0", "glibc.a=3:glibc.b=0"),
        ("glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=2:a=b", "a=b"),
        ("glibc.malloc.arena_max=1", "glibc.malloc.arena_max=1"),
        ("nonsense::", "nonsense::"),
    ],
)
def test_only_huge_pages_are_left_out(value: str, kept: str) -> None:
    assert without_huge_pages(value) == kept


class Executed(Exception):  # noqa: N818 - what a test looks for, no error
    """Raised in place of executing the program again."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], dict[str, str]]]:
    calls: list[tuple[str, list[str], dict[str, str]]] = []

    def execve(path: str, argv: list[str], environment: dict[str, str]) -> None:
        calls.append((path, argv, environment))
        raise Executed

    monkeypatch.setattr(os, "execve", execve)
    return calls


def test_program_is_started_anew_with_its_words_and_the_rest_of_its_environment(
    monkeypatch: pytest.MonkeyPatch, executed: list[tuple[str, list[str], dict[str, str]]]
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2:glibc.malloc.check=1")
    with pytest.raises(Executed):
        run_without_huge_pages()
    environment = dict(os.environ) | {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    assert executed == [(sys.executable, sys.orig_argv, environment)]


def test_nothing_happens_without_such_a_tunable(
    monkeypatch: pytest.MonkeyPatch, executed: list[tuple[str, list[str], dict[str, str]]]
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    run_without_huge_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    run_without_huge_pages()
    assert executed == []
