# SPDX-License-Identifier: BSD-3-Clause
"""Many Linux guests side by side in the KVM test host: each does its work, none is in the way."""

from __future__ import annotations

import time
from contextlib import ExitStack
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
    wrong: list[str] = []
    lab.shell("truncate -s 4096 go.img")
    with ExitStack() as stack:
        vms = []
        for number in range(count):
            disks = ("--rwdisk", lab.disk(f"disk{number}.img", 1))
            flag = ("--block", f"path={lab.folder}/go.img,ro")
            vm = lab.start("-m", "64", *disks, *flag, script=SCRIPT)
            vms.append(stack.enter_context(vm))
            vm.wait_for("up")
            report(f"{number + 1} of {count} guests are up")
        processes = int(lab.shell("ps ax | grep -c '[c]rosvm --ext'"))
        lab.shell("printf go | dd of=go.img conv=notrunc 2>/dev/null")
        for number, vm in enumerate(vms):
            facts = vm.finish()
            on_disk = lab.shell(f"head -c 65536 disk{number}.img | sha256sum").split()[0]
            if facts["sum"].split()[0] != on_disk or facts["errors"]:
                wrong.append(f"guest {number}: {facts}")
    lab.close()
    return ManyResult(count, time.monotonic() - started, processes, wrong)
