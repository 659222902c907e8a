# SPDX-License-Identifier: BSD-3-Clause
"""What a parent process leaves to a run: variables of the interpreter, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT, Vmm, crosvm
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

END_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parent")


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        pytest.param(["-X", "faulthandler"], {}, id="X-faulthandler"),
        pytest.param(["-X", "dev"], {}, id="X-dev"),
        pytest.param([], {"PYTHONFAULTHANDLER": "1"}, id="faulthandler"),
        pytest.param([], {"PYTHONDEVMODE": "1"}, id="dev-mode"),
        pytest.param([], {"PYTHONTRACEMALLOC": "1"}, id="tracemalloc"),
        pytest.param([], {"PYTHONMALLOCSTATS": "1"}, id="malloc-stats"),
        pytest.param([], {"PYTHONINSPECT": "1"}, id="inspect"),
        pytest.param([], {"LD_DEBUG": "files"}, id="ld-debug"),
    ],
)
def test_exit_status_is_that_of_the_guest(
    guests: Path, options: list[str], environment: dict[str, str]
) -> None:
    """The interpreter and the C library do more at their end then, and the filter knows less."""
    command = [sys.executable, *options, "-m", "crosvm_py", "--extended-status", "run"]
    done = subprocess.run(
        [*command, "-m", "16", build_guest("hello", guests)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == VmExit.RESET, done.stderr


@pytest.mark.parametrize("number", END_SIGNALS)
def test_ignored_signal_stays_ignored(guests: Path, number: signal.Signals) -> None:
    other = signal.SIGTERM if number != signal.SIGTERM else signal.SIGINT

    def ignore() -> None:
        signal.signal(number, signal.SIG_IGN)

    with Vmm(["-m", "16", build_guest("echo", guests)], before=ignore) as vmm:
        vmm.wait_for(b"echo")
        vmm.signal(number)
        vmm.type(b"a")
        vmm.wait_for(b"<61>")
        vmm.signal(other)
        assert vmm.wait() == VmExit.STOPPED
        assert f"ended by {other.name}" in vmm.log()


def ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def block_everything() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@pytest.mark.parametrize("accident", [ignore_children, block_everything])
def test_signal_that_a_run_needs_is_taken_back(
    guests: Path, tmp_path: Path, accident: Callable[[], None]
) -> None:
    control = tmp_path / "vm.sock"
    with Vmm(["-m", "16", "-s", control, build_guest("spin", guests)], before=accident) as vmm:
        vmm.wait_for(b"spin")
        assert crosvm("stop", control).returncode == 0
        assert vmm.wait() == VmExit.STOPPED
        assert "ERROR" not in vmm.log()


@pytest.mark.parametrize("accident", [ignore_children, block_everything])
def test_doctor_takes_it_back_too(accident: Callable[[], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crosvm_py", "doctor"],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        preexec_fn=accident,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_process_of_a_guest_keeps_the_fault_handler(
    guests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises the signal anew; the filter would deny that, and hide how the process ended."""
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    with Vmm(["-m", "16", build_guest("echo", guests)]) as vmm:
        vmm.wait_for(b"echo")
        for pid in vmm.processes().all():
            status = Path(f"/proc/{pid}/status").read_text()
            (caught,) = (line.split()[1] for line in status.splitlines() if "SigCgt" in line)
            assert not int(caught, 16) >> (signal.SIGSEGV - 1) & 1
