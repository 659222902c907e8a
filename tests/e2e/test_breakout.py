# SPDX-License-Identifier: BSD-3-Clause
"""Breaking out where there are vhost and TUN, as both users; a device that lies under a guest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.breakout.hijacked import FLOOD, TOLD
from tests.e2e.support import TESTER, Lab, Vm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.kvmhost.fixture import KvmHost

SECONDS: Final = 300.0
DISK_MIB: Final = 2
# Those that only say something; the others end the process that tells them.
HARMLESS: Final = 2

# What the unit tests cannot do: use the kernel's own devices, and be somebody who is not root. What
# needs no host of its own to be tried is left out: there it takes twenty times as long.
ELSEWHERE: Final = ("--without", "ioctl", "--without", "lies to the vmm")
WHAT: Final = {
    "root": ("--device", "net", "--device", "vhost-net", "--device", "vhost-vsock", *ELSEWHERE),
    TESTER: ("--without", "kernel", *ELSEWHERE),
}


@pytest.mark.parametrize("user", WHAT)
def test_nothing_gets_out(kvmhost: KvmHost, user: str) -> None:
    command = ["python3", "-m", "tests.breakout", *WHAT[user]]
    result = kvmhost.run(command, cwd="/project", user=user, timeout=SECONDS)
    assert result.status == 0, result.stdout + result.stderr
    assert re.search(r"^\d{3,} attempts, 0 of \d{3} rows with a hole$", result.stdout, re.MULTILINE)


class HijackedLab(Lab):
    """Starts a crosvm whose rng device was taken over."""

    def run(self, name: str, words: Sequence[str]) -> Vm:
        launch = 'echo $$ >"$0.pid"; exec python3 -m tests.breakout.hijacked "$@"'
        argv = ["sh", "-c", launch, f"{self.folder}/{name}", *words]
        command = self.host.start(argv, cwd="/project", user=self.user)
        return Vm(self.host, command, self.folder, name)


# A process that is doomed may answer some more before it is ended.
REQUESTS: Final = 2 * len(TOLD)

# The entropy device lies at each request, while the disk is read and written all the time.
SCRIPT: Final = f"""
sum() {{ dd if=/dev/vdb bs=64k iflag=direct 2>/dev/null | sha256sum; }}
(while ! [ -e /run/done ]; do sum >>/run/sums; done; sync; touch /run/over) &
n=0
while [ $n -lt {REQUESTS} ]; do
    head -c 256 /dev/hwrng | wc -c >>/run/bytes
    n=$((n + 1))
done
dd if=/dev/vdb of=/dev/vdc bs=64k oflag=direct 2>/dev/null
touch /run/done
while ! [ -e /run/over ]; do sleep 0.1; done
fact random sort -u /run/bytes
fact sums sort -u /run/sums
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def test_device_that_lies_is_ended_alone_and_the_guest_goes_on(kvmhost: KvmHost) -> None:
    lab = HijackedLab(kvmhost, "root")
    copy = lab.disk("copy.img", DISK_MIB)
    noise = lab.shell(f"head -c {DISK_MIB}M /dev/urandom >noise.img; sha256sum <noise.img")
    disks = ("--block", f"{lab.folder}/noise.img,ro", "--rwdisk", copy)
    with lab.start(*disks, script=SCRIPT) as vm:
        facts = vm.finish()
        log = vm.log
    lab.shell("cmp noise.img copy.img")
    lab.close()
    assert facts == {"random": "256", "sums": " ".join(noise.split()), "errors": ""}
    ends = re.findall(r"(\S+) \(pid \d+\): ended by the vmm: (.+)", log)
    assert len(ends) == len(TOLD) - HARMLESS, log
    assert {name for name, _ in ends} == {"rng"}
    assert len(re.findall(r"rng: x{1000}", log)) <= FLOOD
    assert all(line.isprintable() for line in log.splitlines())
