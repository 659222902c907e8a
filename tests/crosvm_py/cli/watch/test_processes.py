# SPDX-License-Identifier: BSD-3-Clause
"""What /proc tells of a process and its children."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING

from crosvm_py.cli.watch import processes
from crosvm_py.cli.watch.processes import age_seconds, find_processes, thread_seconds

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def entry(proc: Path, pid: int, parent: int, name: str = "x") -> None:
    (proc / str(pid)).mkdir()
    later = " ".join(["0"] * 9 + ["150", "50"] + ["0"] * 6 + ["7"])
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} {later}")
    (proc / str(pid) / "statm").write_text("100 30 10 0 0 0 0")


def test_descendants_follow_their_parents_and_others_are_left_out(tmp_path: Path) -> None:
    for pid, parent in ((40, 1), (41, 40), (43, 41), (42, 40), (50, 1)):
        entry(tmp_path, pid, parent)
    (tmp_path / "self").mkdir()
    found = find_processes(40, str(tmp_path))
    assert [process.pid for process in found] == [40, 41, 43, 42]


def test_name_may_have_brackets_and_blanks(tmp_path: Path) -> None:
    entry(tmp_path, 40, 1, "a) S 1 (b")
    (process,) = find_processes(40, str(tmp_path))
    page = os.sysconf("SC_PAGE_SIZE")
    assert process.name == "a) S 1 (b"
    assert (process.parent, process.began) == (1, 7)
    assert (process.private_bytes, process.shared_bytes) == (20 * page, 10 * page)
    assert process.cpu_seconds == 200 / os.sysconf("SC_CLK_TCK")


def test_process_without_sense_is_none(tmp_path: Path) -> None:
    entry(tmp_path, 40, 1)
    (tmp_path / "40" / "stat").write_text("nonsense")
    assert find_processes(40, str(tmp_path)) == ()


def test_circle_of_parents_ends(tmp_path: Path) -> None:
    entry(tmp_path, 40, 41)
    entry(tmp_path, 41, 40)
    assert {process.pid for process in find_processes(40, str(tmp_path))} == {40, 41}


def test_more_processes_than_a_vm_has_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_PROCESSES", 3)
    for pid in range(40, 50):
        entry(tmp_path, pid, 40 if pid > 40 else 1)
    assert len(find_processes(40, str(tmp_path))) == 3


def test_real_child_is_found_with_its_age() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        found = {process.pid: process for process in find_processes(os.getpid())}
        assert found[child.pid].parent == os.getpid()
        assert age_seconds(found[child.pid]) < age_seconds(found[os.getpid()]) + 1
        child.communicate()


def test_thread_has_its_own_time() -> None:
    assert thread_seconds(os.getpid(), threading.get_native_id()) is not None
    assert thread_seconds(os.getpid(), 1 << 30) is None
