# SPDX-License-Identifier: BSD-3-Clause
"""A stock cloud kernel whose watchdog is fed for a while, and then no more."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.exit_status import VmExit
from tests.e2e.support import CLOUD_BZIMAGE
from tests.guests import debian
from tests.guests.cache import artefact

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.support import Lab

MODULES: Final = ("watchdog", "wdat_wdt")
CARD_RESET: Final = "32"  # WDIOF_CARDRESET

# The program feeds it for longer than its timeout, so the first boot ends only when it is killed.
SCRIPT: Final = """
for module in watchdog wdat_wdt; do insmod /run/$module.ko; done
cd /sys/class/watchdog/watchdog0 || exit 1
fact boot$(cat bootstatus) cat identity state max_timeout
[ $(cat bootstatus) = 0 ] || exit 0
watchdog -F -t 1 -T 10 /dev/watchdog0 &
sleep 12
fact fed cat state timeout
kill -9 $!
sleep 1000
"""


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder of an image, which is an archive of the kernel's modules."""
    package = debian.resolve("linux-image-cloud-amd64")

    def fill(target: Path) -> None:
        unpacked = target / "package"
        debian.unpack(package, unpacked)
        release = package.removeprefix("linux-image-")
        folder = unpacked / f"lib/modules/{release}/kernel/drivers/watchdog"
        names = [f"{name}.ko" for name in MODULES]
        subprocess.run(["tar", "-C", folder, "-cf", target / "modules.tar", *names], check=True)
        subprocess.run(["rm", "-r", unpacked], check=True)

    return artefact("guests", "watchdog", [package, *MODULES], fill) / "modules.tar"


def test_guest_that_feeds_its_watchdog_no_more_boots_again(lab: Lab, modules: Path) -> None:
    path = f"{lab.folder}/modules.tar"
    lab.host.push(modules, path)
    lab.host.shell(f"chmod a+r {path}")
    script = f"tar -C /run -xf /dev/vdb\n{SCRIPT}"
    options = ("--watchdog", "--reboot", "-d", path)
    with lab.start(*options, kernel=CLOUD_BZIMAGE, script=script) as vm:
        vm.wait_for("@fed=.*")
        facts = vm.finish()
        assert facts["boot0"] == "wdat_wdt inactive 3600"
        assert facts["fed"] == "active 10"
        assert facts[f"boot{CARD_RESET}"] == "wdat_wdt inactive 3600"
        assert vm.log.count("the guest did not answer for 10.0 s: it boots again") == 1
        assert vm.wait() == VmExit.STOPPED
