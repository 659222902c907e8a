# SPDX-License-Identifier: BSD-3-Clause
"""A stock kernel that reboots in its VM, by itself and by a client, with a disk plugged in."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.support import CLOUD_BZIMAGE, GUEST_SECONDS, ROOT_SQUASHFS

if TYPE_CHECKING:
    from tests.e2e.support import Lab

# The disk that is plugged in at the first boot counts the boots. The resets after boots 0 to 2 are
# the guest's: by ACPI, the keyboard controller, and a triple fault. The one after boot 3 is a
# client's.
SCRIPT: Final = """
echo waits-disk
until [ -b /dev/vdb ]; do sleep 0.1; done
n=$(dd if=/dev/vdb bs=1 count=1 2>/dev/null | tr -d '\\0')
n=${n:-0}
echo "boot-$n cpus=$(nproc) place=$(readlink -f /sys/block/vdb/device) "\\
"date=$(date +%s) uptime=$(cut -d. -f1 /proc/uptime) "\\
"clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "errors-$n [$(/bin/dmesg -l emerg,alert,crit,err | tr '\\n' ' ')]"
printf %s $((n + 1)) | dd of=/dev/vdb conv=fsync,notrunc 2>/dev/null
case $n in
1) echo kbd >/sys/kernel/reboot/type ;;
2) echo triple >/sys/kernel/reboot/type ;;
3) echo waits-client; sleep 1000 ;;
4) echo done-4; sleep 1000 ;;
esac
reboot -f
"""
LAST: Final = 4


@pytest.mark.parametrize(("cpus", "first"), [(1, 2), (2, 0)])
def test_stock_kernel_boots_again_with_the_disk_at_its_slot(
    lab: Lab, cpus: int, first: int
) -> None:
    socket, events = f"{lab.folder}/api", f"{lab.folder}/events"
    disk = lab.disk("data.img", 4)
    lab.shell(f"printf {first} | dd of=data.img conv=notrunc status=none")

    def remote(*words: str) -> str:
        argv = ["crosvm", "ch-remote", "--api-socket", socket, *words]
        result = lab.host.run(argv, timeout=GUEST_SECONDS)
        assert result.status == 0, result.stderr
        return result.stdout.strip()

    script = base64.b64encode(SCRIPT.encode()).decode()
    options = {
        "--api-socket": socket,
        "--event-monitor": f"path={events}",
        "--kernel": CLOUD_BZIMAGE.path,
        "--initramfs": CLOUD_BZIMAGE.initrd or "",
        "--disk": f"path={ROOT_SQUASHFS},readonly=on,image_type=raw",
        "--cmdline": f"quiet console=ttyS0 root=/dev/vda ro crosvm.run={script} crosvm.end=stay",
        "--cpus": f"boot={cpus}",
        "--serial": "tty",
        "--console": "off",
    }
    words = [word for pair in options.items() for word in pair]
    with lab.run("ch", ["ch", *words]) as vm:
        vm.wait_for("waits-disk")
        pid = json.loads(remote("ping"))["pid"]
        added = remote("add-disk", f"path={disk},id=data,image_type=raw,pci_device_id=6")
        assert json.loads(added)["bdf"] == "0000:00:06.0"
        for number in range(first, LAST):
            vm.wait_for(f"errors-{number} ")  # each boot has the time of one
        vm.wait_for("waits-client")
        remote("reboot")
        vm.wait_for("done-4")
        assert json.loads(remote("ping"))["pid"] == pid
        assert json.loads(remote("info"))["state"] == "Running"
        printed = vm.console
        date = int(lab.shell("date +%s"))
        remote("shutdown-vmm")
        vm.wait()
        told = lab.shell(f"cat {events}")
    found = [json.loads(text)["event"] for text in told.split("\n\n") if text]
    assert found.count("rebooting") == found.count("rebooted") == LAST - first
    boots = re.findall(
        r"boot-(\d) cpus=(\d+) place=(\S+) date=(\d+) uptime=(\d+) clock=(\S+)", printed
    )
    assert [number for number, *_ in boots] == [*map(str, range(first, LAST + 1))]
    for _, seen, place, now, uptime, clock in boots:
        assert (seen, clock) == (str(cpus), "kvm-clock")
        assert "0000:00:06.0" in place
        assert date - GUEST_SECONDS * LAST < int(now) <= date + 1
        assert int(uptime) < GUEST_SECONDS
    assert len({errors for _, errors in re.findall(r"errors-(\d) \[(.*?)\]", printed)}) == 1
