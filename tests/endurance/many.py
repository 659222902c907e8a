# SPDX-License-Identifier: BSD-3-Clause
"""Many Linux guests side by side in the KVM test host: each does its work, none is in the way."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.e2e.support import Lab
from tests.endurance.progress import report

if TYPE_CHECKING:
    from tests.kvmhost.fixture import KvmHost

# What every guest does, once all of them are up: write its number all over its disk.
SCRIPT: Final = """
    echo up
    until grep -q go /dev/vdc; do sleep 1; blockdev --flushbufs /dev/vdc; done
    yes $(cat /proc/sys/kernel/random/boot_id) | head -c 65536 >/tmp/mine
    dd if=/tmp/mine of=/dev/vdb bs=64k oflag=direct conv=fsync 2>/dev/null
    fact sum sha256sum /tmp/mine
    fact errors /bin/dmesg -l emerg,alert,crit,err
"""

# All processes of all guests but the forges, which are of another program where that is built.
COUNT: Final = """
for process in /proc/[0-9]*; do
    read -r name <$process/comm && [ "$name" = crosvm-forge ] || tr '\\0' ' ' <$process/cmdline
    echo
done 2>/dev/null | grep -c '[c]rosvm --ext'
"""


class ManyResult(NamedTuple):
    """What came of it."""

    guests: int
    seconds: float
    processes_at_once: int
    wrong: list[str]


def run_many(host: KvmHost, count: int) -> ManyResult:
    """Run ``count`` guests at once and say what went wrong."""
    started = time.monotonic()
    lab = Lab(host, "root")
    # The host takes a few commands at a time, so each of these ends and leaves its VM behind.
    lab.launch = 'crosvm "$@" >"$0.out" 2>"$0.err" </dev/null &'
    lab.shell("truncate -s 4096 go.img")
    names = [f"vm{number}" for number in range(1, count + 1)]
    for number, name in enumerate(names, 1):
        disks = ("--rwdisk", lab.disk(f"{name}.img", 1))
        flag = ("--block", f"path={lab.folder}/go.img,ro")
        with lab.start("-m", "64", *disks, *flag, script=SCRIPT) as vm:
            vm.wait()
        lab.shell(f"until grep -q up {name}.out; do sleep 0.2; done")
        report(f"{number} of {count} guests are up")
    processes = int(lab.shell(COUNT))
    lab.shell("printf go | dd of=go.img conv=notrunc 2>/dev/null")
    wrong = [f"{name}: {fault}" for name in names if (fault := _fault(lab, name))]
    lab.close()
    return ManyResult(count, time.monotonic() - started, processes, wrong)


def _fault(lab: Lab, name: str) -> str:
    """Wait for the end of a VM and say what is wrong with it, or nothing."""
    pattern = f"[{name[0]}]{name[1:]}.sock"
    lab.shell(f"while pgrep -f '{pattern}' >/dev/null; do sleep 0.5; done")
    log, console = lab.shell(f"cat {name}.err"), lab.shell(f"cat {name}.out")
    if "the guest powered off" not in log:
        return log
    on_disk = lab.shell(f"head -c 65536 {name}.img | sha256sum").split()[0]
    expected = re.compile(rf"^@sum={on_disk}.*^@errors=\r?$", re.MULTILINE | re.DOTALL)
    return "" if expected.search(console) else console
