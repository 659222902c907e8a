# SPDX-License-Identifier: BSD-3-Clause
"""Every policy under the newer C library and Python: a stock guest uses every device, jailed.

A call that a policy denies ends the process that made it, and is told in the log: so a run in which
every device did its work, and no process ended but those that the test killed, was denied nothing.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.e2e.support import GUEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.support import Lab, Vm
    from tests.kvmhost.fixture import KvmHost

HOST_IP: Final = "10.78.0.1"
TAP: Final = f"host-ip={HOST_IP},netmask=255.255.255.0,mac=52:54:00:78:00:02"
UPLINK_IP: Final = "192.0.2.10"
CID: Final = 79
MEMORY_MIB: Final = 256
BALLOON_MIB: Final = 64
DISK_MIB: Final = 16

# In two parts, between which the vmm is asked for everything that it can do.
USE_EVERYTHING: Final = f"""
set -e
ip link set eth0 up
ip addr add 10.78.0.2/24 dev eth0
head -c 64k /dev/hwrng >/dev/vdb
fact wrote sh -c 'head -c 1m /dev/vdb | sha256sum'
/sbin/blkdiscard -o {8 << 20} -l {1 << 20} /dev/vdb
/sbin/blkdiscard -z -o {9 << 20} -l {1 << 20} /dev/vdb
fact ready echo yes
read word </dev/ttyS0
echo 3 >/proc/sys/vm/drop_caches
fact read_back sh -c 'head -c 1m /dev/vdb | sha256sum'
fact ping sh -c 'ping -c 3 -s 8000 {HOST_IP} | grep packets'
if [ -e /sys/class/net/eth1 ]; then
    ip link set eth1 up
    fact lease udhcpc -i eth1 -s /bin/true -q -n -t 8
fi
fact vsock sh -c 'echo question | socat -t 99 - VSOCK-CONNECT:2:5000'
for port in /sys/class/virtio-ports/*/name; do
    read -r name <$port
    port=${{port%/name}}
    eval "p_${{name#org.}}=/dev/${{port##*/}}"
done
exec 3<>$p_agent
echo to the agent >&3
fact console head -n 1 <&3
fact errors /bin/dmesg -l emerg,alert,crit,err
fact done echo yes
read word </dev/ttyS0
"""


class Datapath(NamedTuple):
    """Who moves frames and packets, we (also through passt) or the host's kernel."""

    nets: tuple[str, ...]
    vsock: str
    answer: str
    policies: frozenset[str]


OURS: Final = Datapath(
    (TAP, "user"),
    "cid={cid},socket={folder}/v",
    "UNIX-LISTEN:{folder}/v_5000",
    frozenset({"net", "vsock"}),
)
KERNEL: Final = Datapath(
    (f"{TAP},vhost-net",), "{cid}", "VSOCK-LISTEN:5000", frozenset({"vhost_net", "vhost_vsock"})
)


@pytest.fixture
def uplink(kvmhost: KvmHost) -> Iterator[None]:
    """A network for the host itself, which has none: what passt gives to the guest."""
    kvmhost.shell(
        "ip link add uplink type dummy; ip link set uplink up\n"
        f"ip addr add {UPLINK_IP}/24 dev uplink; ip route add default via 192.0.2.1 dev uplink"
    )
    yield
    kvmhost.shell("ip link del uplink")


def devices(lab: Lab, vm: Vm) -> dict[str, dict[str, object]]:
    """Return what the vmm tells of every device, by name."""
    listing = lab.host.shell(f"crosvm devices --json {vm.socket}")
    return {str(device["name"]): device for device in json.loads(listing)}


def counters(device: dict[str, object]) -> dict[str, int]:
    """Return a device's counters."""
    found = device["counters"]
    assert isinstance(found, dict)
    return found


def kill_each_device(lab: Lab, vm: Vm) -> None:
    """Kill every device's process, and wait until all go on in others."""
    before = devices(lab, vm)
    lab.host.shell(f"kill -9 {' '.join(str(device['pid']) for device in before.values())}")
    deadline = time.monotonic() + GUEST_SECONDS
    while any(counters(device)["restarts"] != 1 for device in devices(lab, vm).values()):
        assert time.monotonic() < deadline, vm.log
        time.sleep(0.5)


def ask_for_everything(vm: Vm, lab: Lab) -> None:
    """Have the vmm do what it can do while a guest runs."""
    size = f"{BALLOON_MIB}m"
    for words in (
        *(("balloon", "--wait", size), ("balloon_stats",), ("balloon", "--wait", "0")),
        *(("suspend",), ("resume",), ("limit", "block:1", "bw-size=0")),
        *(("disk", "resize", "1", str((DISK_MIB + 1) << 20)), ("devices",)),
    ):
        result = lab.host.run(["crosvm", *words, vm.socket], timeout=60)
        assert result.status == 0, (words, result.stderr, vm.log)


def test_host_is_newer(kvmhost: KvmHost) -> None:
    found = kvmhost.shell("python3 -V; ldd --version | head -n 1; uname -r")
    lines = (re.findall(r"\d+\.\d+", line)[-1] for line in found.splitlines())
    python, libc, kernel = ([int(part) for part in version.split(".")] for version in lines)
    assert python >= [3, 13]
    assert libc >= [2, 41]
    assert kernel >= [6, 12]


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize("datapath", [OURS, KERNEL], ids=["ours", "kernel"])
def test_no_device_is_denied_what_it_needs(lab: Lab, datapath: Datapath) -> None:
    disk = lab.disk("disk.img", DISK_MIB)
    lab.shell("mkfifo fifo; (echo to the guest >fifo) >/dev/null 2>&1 &")
    names = {"cid": CID, "folder": lab.folder}
    console = f"hardware=virtio-console,type=file,path={lab.folder}/agent,num=2,name=org.agent"
    options = (
        *("-c", "2", "-m", str(MEMORY_MIB), "--rwdisk", disk, "--balloon", "0"),
        *(word for net in datapath.nets for word in ("--net", net)),
        *("--vsock", datapath.vsock.format(**names)),
        *("--serial", f"{console},input={lab.folder}/fifo"),
        *("--serial", "type=stdout,console,stdin"),
    )
    answer = ["socat", datapath.answer.format(**names), "SYSTEM:read line; echo answer to $line"]
    with lab.host.start(answer), lab.start(*options, script=USE_EVERYTHING) as vm:
        vm.wait_for("@ready=yes")
        ask_for_everything(vm, lab)
        kill_each_device(lab, vm)
        processes = vm.processes()
        vm.command.send("go\n")
        vm.wait_for("@done=yes")
        after = devices(lab, vm)
        vm.command.send("go\n")
        facts = vm.finish()

    assert facts["read_back"] == facts["wrote"]
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in facts["ping"]
    assert ("user" in datapath.nets) == (f"lease of {UPLINK_IP} obtained" in facts.get("lease", ""))
    assert facts["vsock"] == "answer to question"
    assert facts["console"] == "to the guest"
    assert "to the agent" in lab.shell("cat agent")
    assert facts["errors"] == ""
    assert "seccomp" not in vm.log
    policies = {str(device["policy"]).removesuffix("_device") for device in after.values()}
    assert policies == {"block", "rng", "balloon", "console", *datapath.policies}
    # The keeper reads nothing, and what it executes would inherit its filter.
    unfiltered = [it["name"] for it in processes if it["status"]["Seccomp"] != "2"]
    assert unfiltered == ["crosvm-keeper"]
    assert {counters(device)["restarts"] for device in after.values()} == {1}
