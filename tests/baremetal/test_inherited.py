# SPDX-License-Identifier: BSD-3-Clause
"""No process of a running VM holds what its user had in the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from crosvm_py.exit_status import VmExit
from crosvm_py.warden import forge
from sys_util import tap
from tests.baremetal.vmm import Vmm, eventually
from tests.guests.baremetal.build import build_guest

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

SECRET: Final = "an-open-sesame-of-the-user"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="looks into processes of others")


def memory_of(pid: int) -> bytes:
    """Return what a process may write to and no other process shares."""
    found = []
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            low, high = (int(word, 16) for word in span.split("-"))
            if mode == "rw-p":
                memory.seek(low)
                found.append(memory.read(high - low))
    return b"".join(found)


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@needs_root
@pytest.mark.parametrize("tunables", ["", "glibc.malloc.hugetlb=1"])
def test_secret_of_the_environment_is_in_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tunables: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setenv("CROSVM_TEST_SECRET", SECRET)
    guest = build_guest("echo", tmp_path)
    with Vmm(["-m", "16", "--rwdisk", str(disk), "--balloon", "0", str(guest)]) as vmm:
        vmm.wait_for(b"echo")
        found = vmm.processes()
        # Where the forge's loop is built, it is soon a program that was executed without any.
        if Path(forge.LOOP).exists():
            assert eventually(lambda: environment_of(found.forge) == b"")
        for pid in found.all():
            shown = environment_of(pid)
            assert b"PATH=" in shown or pid == found.forge
            assert SECRET.encode() not in shown
            assert memory_of(pid).count(SECRET.encode()) == 0
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


@pytest.mark.skipif(not os.access("/dev/net/tun", os.W_OK), reason="needs a TAP")
def test_tap_that_the_caller_opened_is_the_guests_alone(tmp_path: Path) -> None:
    try:
        fd, _ = tap.open_queue("crosvm%d", multi_queue=False)
    except OSError as error:
        pytest.skip(f"no TAP can be made: {error}")
    guest = build_guest("echo", tmp_path)
    os.set_inheritable(fd, True)
    with Vmm(["-m", "16", "--net", f"tap-fd={fd}", str(guest)], fds=[fd]) as vmm:
        vmm.wait_for(b"echo")
        found = vmm.processes()
        for pid, expected in ((found.devices["net:0"], 1), (found.devices["rng"], 0)):
            links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert links.count("/dev/net/tun") == expected
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET
    os.close(fd)
