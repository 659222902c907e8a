# SPDX-License-Identifier: BSD-3-Clause
"""The terminal as the guest's console: raw and interactive, and given back however the VM ends."""

from __future__ import annotations

import os
import signal
import termios
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.vmm import Vmm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("console"))


@pytest.fixture
def vmm(echo: Path) -> Iterator[Vmm]:
    """A VM on a terminal, whose guest has started."""
    with Vmm(["-m", "16", "--device-restart=never", echo], terminal=True) as running:
        running.wait_for(b"echo")
        assert running.is_raw()
        running.processes()
        yield running


def test_every_key_goes_to_the_guest_at_once_and_only_there(vmm: Vmm) -> None:
    keys = b"a\r\x03\x04\x1a\x1c\x7f\x1b"
    for key in keys:
        vmm.type(bytes([key]))
        vmm.wait_for(b"<%02x>" % key)
    assert vmm.output.replace(b"\r\n", b"\n") == b"echo\n" + b"".join(b"<%02x>" % k for k in keys)


def test_pasted_text_arrives_whole(vmm: Vmm) -> None:
    text = bytes(ord("A") + n % 26 for n in range(3000))
    vmm.type(text)
    vmm.wait_for(b"".join(b"<%02x>" % key for key in text))


def test_ctrl_a_x_leaves(vmm: Vmm) -> None:
    vmm.type(b"\x01x")
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.is_restored()
    assert vmm.nothing_is_left()
    assert "left by the user" in vmm.log()


def test_ctrl_a_twice_is_one_for_the_guest(vmm: Vmm) -> None:
    vmm.type(b"\x01\x01")
    vmm.wait_for(b"<01>")


def test_ctrl_a_h_helps(vmm: Vmm) -> None:
    vmm.type(b"\x01h")
    vmm.wait_for(b"Ctrl-A x  leave")


def test_terminal_is_restored_when_the_guest_ends(vmm: Vmm) -> None:
    vmm.type(b"q")
    vmm.wait_for(b"bye")
    assert vmm.wait() == VmExit.RESET
    assert vmm.is_restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_terminal_is_restored_on_a_signal(vmm: Vmm, number: int) -> None:
    vmm.signal(number)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.is_restored()


def test_terminal_is_restored_when_the_vmm_is_killed(vmm: Vmm) -> None:
    vmm.signal(signal.SIGKILL)
    assert vmm.wait() == -signal.SIGKILL
    assert vmm.nothing_is_left()
    assert vmm.is_restored()


@pytest.mark.parametrize("who", ["warden", "rng"])
def test_terminal_is_restored_when_another_process_is_killed(vmm: Vmm, who: str) -> None:
    found = vmm.processes()
    os.kill(found.warden if who == "warden" else found.devices[who], signal.SIGKILL)
    assert vmm.wait() == VmExit.CRASH
    assert vmm.is_restored()


def test_closed_terminal_ends_the_vm_in_order(vmm: Vmm) -> None:
    vmm.hang_up()
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert "ended by SIGHUP" in vmm.log()


def test_suspended_terminal_is_raw_again_when_it_is_continued(vmm: Vmm) -> None:
    vmm.signal(signal.SIGSTOP)
    termios.tcsetattr(vmm.program, termios.TCSANOW, vmm.modes)  # as a shell does
    assert not vmm.is_raw()
    vmm.signal(signal.SIGCONT)
    assert eventually(vmm.is_raw)
    vmm.type(b"a")
    vmm.wait_for(b"<61>")


def test_refused_run_leaves_the_terminal_alone(tmp_path: Path) -> None:
    with Vmm([tmp_path / "missing"], terminal=True) as vmm:
        assert vmm.wait() == VmExit.ERROR
        assert vmm.is_restored()


def test_console_without_stdin_leaves_the_terminal_alone(echo: Path) -> None:
    words: list[str | Path] = ["-m", "16", "--serial", "type=stdout,num=1,console", echo]
    with Vmm(words, terminal=True) as vmm:
        vmm.wait_for(b"echo")
        assert not vmm.is_raw()
        assert vmm.is_restored()
        vmm.type(b"\x03")  # which is the terminal's own business then
        assert vmm.wait() == VmExit.STOPPED
