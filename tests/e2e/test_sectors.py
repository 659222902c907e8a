# SPDX-License-Identifier: BSD-3-Clause
"""A disk of the host with sectors of 4096 bytes under a stock guest, which sees 512."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.e2e.support import Lab

USE: Final = """
fact sector blockdev --getss /dev/vdb
fact discard sh -c 'blkdiscard -o 512 -l 512 /dev/vdb && echo yes'
fact made sh -c 'mke2fs -q -F -b 1024 -E lazy_itable_init=0 /dev/vdb >/dev/null && echo yes'
fact sound sh -c 'e2fsck -fn /dev/vdb >/dev/null 2>&1 && echo yes'
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def test_guest_uses_ranges_that_are_no_whole_sectors_of_the_host(lab: Lab) -> None:
    disk = lab.disk("disk.img", 32)
    device = lab.host.shell(f"modprobe loop; losetup --sector-size 4096 -f --show {disk}").strip()
    try:
        with lab.start("--rwdisk", device, script=USE) as vm:
            facts = vm.finish()
    finally:
        lab.host.shell(f"losetup -d {device}")
    assert (facts["sector"], facts["discard"]) == ("512", "yes")
    assert (facts["made"], facts["sound"], facts["errors"]) == ("yes", "yes", "")
