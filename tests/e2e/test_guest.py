# SPDX-License-Identifier: BSD-3-Clause
"""A guest that ``crosvm guest make`` made runs from its folder, and its shell is a shell."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.guest.apt import Source
from crosvm_py.guest.make import GuestOrder, make_guest
from tests.e2e.support import GUEST_SECONDS, TESTER, Lab
from tests.guests.cache import CACHE, artefact, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kvmhost.fixture import KvmHost

PROJECT: Final = Path(__file__).parents[2]
IN_TERMINAL: Final = "/project/tests/e2e/in_terminal.py"


@pytest.fixture(scope="module")
def guest(kvmhost: KvmHost) -> Iterator[str]:
    """The folder of a minimal guest, in the host."""
    inputs: list[str | Path] = [PROJECT / "crosvm_py/guest"]
    order = GuestOrder("minimal", Source())
    made = artefact(
        "guests", "made", inputs, lambda target: make_guest(order, str(target / "guest"), say)
    )
    assert made.is_relative_to(CACHE)
    folder = kvmhost.shell("mktemp -d /scratch/guest.XXXXXX").strip()
    for path in (made / "guest").iterdir():
        kvmhost.push(path, f"{folder}/{path.name}")
    kvmhost.shell(f"chmod -R a+rX {folder}")
    yield folder
    kvmhost.shell(f"rm -r {folder}")


def test_folder_of_a_made_guest_runs(tester_lab: Lab, guest: str) -> None:
    script = "echo kernel $(uname -r); echo root $(mount | grep ' / '); touch /new && echo written"
    encoded = base64.b64encode(script.encode()).decode()
    words = ["-p", f"crosvm.run={encoded} crosvm.end=stay", "-s", "vm.sock", guest]
    with tester_lab.run("vm", ["run", *words]) as vm:
        vm.wait_for(r"guest: exit 0")
        assert tester_lab.shell("crosvm stop vm.sock") == ""
        assert vm.wait() == 0
    assert "-cloud-amd64" in vm.console
    assert "root overlay on / type overlay (rw" in vm.console
    assert "written" in vm.console


def test_shell_ends_with_the_status_of_its_command(tester_lab: Lab, guest: str) -> None:
    """In a user's own network, with an address by DHCP, and no word of the kernel."""
    script = "ip -o -4 addr show eth0 | cut -d' ' -f7; grep -c nameserver /etc/resolv.conf; exit 7"
    words = ["crosvm", "guest", "shell", "--net", "user", "-e", script, guest]
    found = tester_lab.host.run(words, user=TESTER, timeout=GUEST_SECONDS)
    assert found.status == 7, found
    assert found.stdout.split() == ["10.0.2.15/24", "1"]


def test_shell_is_on_the_terminal_with_its_size(lab: Lab, guest: str) -> None:
    words = ["python3", "-I", IN_TERMINAL, "101x31", "crosvm", "guest", "shell", "--net", "none"]
    with lab.host.start([*words, guest]) as command:
        command.wait_for(r"# ", GUEST_SECONDS)
        command.send("stty size; tty\n")
        assert command.wait_for(r"(\d+ \d+)\s+(/dev/\w+)", GUEST_SECONDS)[1] == "31 101"
        command.send("exit 3\n")
        assert command.wait(GUEST_SECONDS) == 3
