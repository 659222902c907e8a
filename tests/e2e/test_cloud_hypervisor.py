# SPDX-License-Identifier: BSD-3-Clause
"""cloud-hypervisor and ch-remote with a stock kernel, from its boot to its panic."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Final

from tests.e2e.support import CLOUD_BZIMAGE, GUEST_SECONDS, ROOT_SQUASHFS

if TYPE_CHECKING:
    from tests.e2e.support import Lab

# The guest says when it waits, and the test then acts. A panic resets the VM, which boots again.
SCRIPT: Final = """
echo "cpus=$(nproc)"
echo waits-1
until [ -b /dev/vdb ]; do sleep 0.1; done
echo "size=$(cat /sys/block/vdb/size)"
echo waits-2
while [ -b /dev/vdb ]; do sleep 0.1; done
echo 1 >/proc/sys/kernel/unknown_nmi_panic
echo waits-3
sleep 1000
"""


def test_vm_lives_as_clients_of_cloud_hypervisor_say(lab: Lab) -> None:
    socket, events = f"{lab.folder}/api", f"{lab.folder}/events"
    disk = lab.disk("data.img", 16)

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
        "--cpus": "boot=2",
        "--serial": "tty",
        "--console": "off",
    }
    words = [word for pair in options.items() for word in pair]
    with lab.run("ch", ["ch", *words]) as vm:
        vm.wait_for("waits-1")
        assert vm.wait_for(r"cpus=(\d+)")[1] == "2"
        added = remote("add-disk", f"path={disk},readonly=on,id=test0,image_type=raw")
        assert json.loads(added) == {"id": "test0", "bdf": "0000:00:03.0"}
        vm.wait_for("waits-2")
        assert vm.wait_for(r"size=(\d+)")[1] == str(16 << 11)
        assert json.loads(remote("counters"))["_disk0"]["requests"] > 0
        remote("remove-device", "test0")
        vm.wait_for("waits-3")
        remote("pause")
        assert json.loads(remote("info"))["state"] == "Paused"
        remote("resume")
        remote("nmi")
        vm.wait_for("panic.*NMI")
        vm.wait_for(r"(?s)waits-3.*waits-1")  # it boots again
        remote("shutdown-vmm")
        vm.wait()
        told = lab.shell(f"cat {events}")
    found = [json.loads(text) for text in told.split("\n\n") if text]
    names = [(each["source"], each["event"]) for each in found]
    assert names[:3] == [("vmm", "starting"), ("vm", "booting"), ("vm", "booted")]
    assert ("vm", "device-removed") in names
    assert ("vm", "resumed") in names
    assert ("vm", "rebooting") in names
    assert names[-1] == ("vmm", "shutdown")
