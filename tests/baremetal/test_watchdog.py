# SPDX-License-Identifier: BSD-3-Clause
"""Guests that start their watchdog: they hang, ping, are suspended, or attack it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.socket_client import ask
from crosvm_py.exit_status import VmExit
from crosvm_py.requests.life import Resume, Suspend
from tests.baremetal.test_cloud_hypervisor import config, program
from tests.baremetal.vmm import PATIENCE_SECONDS, Vmm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

FIRST_BOOT = b"control=00000000 countdown=0000012c status=00000000 end\n"
AFTER_EXPIRY = FIRST_BOOT.replace(b"status=00000000", b"status=00000001")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("watchdog", tmp_path_factory.mktemp("watchdog"))


@pytest.mark.parametrize(("key", "status"), [(b"h", VmExit.WATCHDOG), (b"p", VmExit.GUEST_PANIC)])
def test_guest_that_hangs_ends_the_run_with_the_status_of_the_cause(
    guest: Path, key: bytes, status: VmExit
) -> None:
    with Vmm(["-m", "16", "--watchdog", guest]) as vmm:
        vmm.wait_for(FIRST_BOOT)
        vmm.type(key)
        assert vmm.wait() == status
        assert "the watchdog expired: the guest did not answer for 1.0 s" in vmm.log()


def test_guest_that_hangs_boots_again_and_is_told_why(guest: Path) -> None:
    with Vmm(["-m", "16", "--watchdog", "--reboot", guest]) as vmm:
        vmm.wait_for(FIRST_BOOT)
        for key in (b"h", b"h"):
            vmm.output = b""
            vmm.type(key)
            vmm.wait_for(AFTER_EXPIRY)
        vmm.output = b""
        vmm.type(b"q")
        vmm.wait_for(FIRST_BOOT)
        vmm.process.terminate()
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.log().count("did not answer for 1.0 s: it boots again") == 2


def test_time_of_a_suspension_does_not_count_and_pings_fill_no_log(
    guest: Path, tmp_path: Path
) -> None:
    control = tmp_path / "vm.sock"
    with Vmm(["-m", "16", "--watchdog", "-s", control, guest]) as vmm:
        vmm.wait_for(FIRST_BOOT)
        vmm.type(b"f")
        vmm.wait_for(b"pings")
        ask(str(control), Suspend())
        time.sleep(2.5)  # the guest has two seconds
        ask(str(control), Resume())
        vmm.type(b"x")
        vmm.wait_for(b"stopped")
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET
        assert "watchdog" not in vmm.log()


def test_guest_that_attacks_the_registers_stays_what_it_is(guest: Path) -> None:
    with Vmm(["-m", "16", "--watchdog", guest]) as vmm:
        vmm.wait_for(FIRST_BOOT)
        vmm.type(b"a")
        vmm.wait_for(b"attacked")
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_without_the_option_there_is_none(guest: Path) -> None:
    with Vmm(["-m", "16", guest]) as vmm:
        vmm.wait_for(b"control=ffffffff countdown=ffffffff status=ffffffff end\n")
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_cloud_hypervisor_boots_a_guest_that_hangs_again_and_tells(
    guest: Path, tmp_path: Path
) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.create", {**config(guest), "watchdog": True}) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(FIRST_BOOT)
        ch.type(b"h")
        ch.wait_for(AFTER_EXPIRY)
        again = [("vm", "rebooting"), ("vm", "rebooted")]
        assert eventually(lambda: ch.events()[-2:] == again)
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0
