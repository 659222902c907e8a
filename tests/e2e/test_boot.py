# SPDX-License-Identifier: BSD-3-Clause
"""Real kernels boot to user space, with few and many processors, with little and much memory."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Final

import pytest

from tests.e2e.support import (
    BUILTIN,
    BUILTIN_BZIMAGE,
    CLOUD,
    CLOUD_BZIMAGE,
    GENERIC_BZIMAGE,
    TESTER,
    Kernel,
    Lab,
)

MIB: Final = 1 << 20
HIGH_MEMORY_MIB: Final = 5 * 1024
# RAM below the PCI hole, and so where in guest memory's file the part above 4 GiB begins.
LOW_BYTES: Final = 0xD000_0000
# Between looks at two clocks: whole seconds, and the rounding of both.
CLOCK_SECONDS: Final = 3
FIRST_HIGH: Final = "100000000-16fffffff : System RAM"

FILLED_MIB: Final = 8
PATTERN: Final = b"above four gigabytes, said page by page\n"

# What Linux reports of a machine that it finds nothing wrong with; /bin/dmesg, not busybox's.
LOOK_AROUND: Final = """
fact rtc cat /sys/class/rtc/rtc0/since_epoch
fact now date +%s
fact cpus nproc
fact memory awk '/MemTotal/ { print $2 }' /proc/meminfo
fact release uname -r
fact errors /bin/dmesg -l emerg,alert,crit,err
fact root awk '$2 == "/" { print $1, $3 }' /proc/mounts
fact clock cat /sys/devices/system/clocksource/clocksource0/current_clocksource
fact rng cat /sys/class/misc/hw_random/rng_current
fact noise sh -c 'head -c 1024 /dev/hwrng | base64 -w 0'
"""

# In the host: how much of the guest's high memory has pages, and whether the pattern is there. With
# huge pages one run of pages may be the whole of high memory; the pattern can be anywhere in it.
INSPECT: Final = """
import json, os, sys
pid, low, pattern = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
folder = f"/proc/{pid}/fd"
paths = [f"{folder}/{name}" for name in os.listdir(folder)]
path = next(path for path in paths if "memfd:crosvm_guest" in os.readlink(path))
with open(path, "rb") as file:
    size, at, present, found = os.fstat(file.fileno()).st_size, low, 0, False
    while at < size:
        try:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        present += at - start
        while start < at and not found:
            found = pattern in os.pread(file.fileno(), min(at - start, 4 << 20), start)
            start += 4 << 20
print(json.dumps({"present": present, "found": found}))
"""


def host_time(lab: Lab) -> int:
    return int(lab.host.shell("date +%s"))


# Every kernel with every number of processors, every memory size and both users, not all products.
@pytest.mark.parametrize(
    ("kernel", "cpus", "memory_mib", "user"),
    [
        pytest.param(BUILTIN, 1, 128, "root", id="builtin-1cpu-128m-root"),
        pytest.param(BUILTIN_BZIMAGE, 2, 1024, TESTER, id="builtin.bz-2cpu-1g-tester"),
        pytest.param(CLOUD, 4, 128, "root", id="cloud-4cpu-128m-root"),
        pytest.param(CLOUD_BZIMAGE, 1, 128, TESTER, id="cloud.bz-1cpu-128m-tester"),
        pytest.param(CLOUD_BZIMAGE, 2, 1024, "root", id="cloud.bz-2cpu-1g-root"),
    ],
)
def test_guest_boots_to_user_space(
    user_lab: Lab, kernel: Kernel, cpus: int, memory_mib: int
) -> None:
    options = ("-c", str(cpus), "-m", str(memory_mib))
    before = host_time(user_lab)
    with user_lab.start(*options, kernel=kernel, script=LOOK_AROUND) as vm:
        facts = vm.finish()
    after = host_time(user_lab)
    assert facts["cpus"] == str(cpus)
    # The kernel keeps some for itself, its page structures first of all.
    assert memory_mib * 0.7 < int(facts["memory"]) / 1024 <= memory_mib
    assert facts["errors"] == ""
    assert facts["root"].endswith("squashfs")
    for name in ("rtc", "now"):
        assert before - CLOCK_SECONDS <= int(facts[name]) <= after + CLOCK_SECONDS, name
    assert facts["clock"] == "kvm-clock"
    assert facts["rng"].startswith("virtio_rng")
    noise = base64.b64decode(facts["noise"])
    assert len(noise) == 1024
    assert len(set(noise)) > 200


@pytest.mark.parametrize(
    ("kernel", "cpus", "user"),
    [
        pytest.param(BUILTIN, 4, TESTER, id="builtin-4cpu-tester"),
        pytest.param(CLOUD_BZIMAGE, 1, "root", id="cloud.bz-1cpu-root"),
    ],
)
def test_memory_above_4_gib_is_used(user_lab: Lab, kernel: Kernel, cpus: int) -> None:
    data = PATTERN * (FILLED_MIB * MIB // len(PATTERN))
    script = f"""
    fact cpus nproc
    fact high grep -c '{FIRST_HIGH}' /proc/iomem
    fact errors /bin/dmesg -l emerg,alert,crit,err
    yes '{PATTERN.decode().strip()}' | head -c {len(data)} >/tmp/filled
    fact sum sha256sum /tmp/filled
    """
    options = ("-c", str(cpus), "-m", str(HIGH_MEMORY_MIB))
    with user_lab.start(*options, kernel=kernel, script=script, end="stay") as vm:
        vm.wait_ready()
        facts = vm.facts()
        arguments = [str(vm.pid), str(LOW_BYTES), PATTERN.decode()]
        result = user_lab.host.run(["python3", "-I", "-c", INSPECT, *arguments])
        assert result.status == 0, result.stderr
        stopped = vm.control("stop")
        assert (stopped.status, vm.wait()) == (0, 0)
    assert (facts["cpus"], facts["high"], facts["errors"]) == (str(cpus), "1", "")
    assert facts["sum"].split()[0] == hashlib.sha256(data).hexdigest()
    inspected = json.loads(result.stdout)
    assert inspected["found"]
    assert inspected["present"] >= FILLED_MIB * MIB // 2


def test_generic_kernel_with_an_initrd_for_root_and_no_rng(lab: Lab) -> None:
    data, tools = lab.disk("data.img", 1), lab.disk("tools.img", 2)
    script = """
    fact release uname -r
    fact sizes cat /sys/block/vda/size /sys/block/vdb/size
    fact ro cat /sys/block/vda/ro /sys/block/vdb/ro
    fact rng cat /sys/class/misc/hw_random/rng_current
    """
    with lab.start(
        *("--rwdisk", data, "-d", tools, "--no-rng"),
        kernel=GENERIC_BZIMAGE,
        root=None,
        params="quiet root=/dev/ram0",
        script=script,
    ) as vm:
        facts = vm.finish()
    assert facts["release"] == lab.host.shell("cat /guests/generic/release").strip()
    assert (facts["sizes"], facts["ro"]) == ("2048 4096", "0 1")
    assert facts["rng"] == "none"


def test_kernel_alone_panics_for_want_of_a_root(lab: Lab) -> None:
    with lab.run("alone", ["--extended-status", "run", "-p", "quiet", BUILTIN.path]) as vm:
        status = vm.wait()
    assert "Unable to mount root fs" in vm.console
    assert status == 34


# Without --extended-status only a crash and a panic differ from success.
@pytest.mark.parametrize(
    ("end", "extended", "expected", "user"),
    [
        pytest.param("reboot", True, 32, "root", id="reboot-extended"),
        pytest.param("reboot", False, 0, TESTER, id="reboot"),
        pytest.param("panic", True, 34, TESTER, id="panic-extended"),
        pytest.param("panic", False, 1, "root", id="panic"),
    ],
)
def test_end_of_the_guest_gives_its_status(
    user_lab: Lab, end: str, extended: bool, expected: int
) -> None:
    before = ("--extended-status",) if extended else ()
    with user_lab.start(end=end, before=before) as vm:
        assert vm.wait() == expected
        vm.wait_ready()
    leftovers = user_lab.shell("ls *.sock 2>/dev/null || true")
    assert leftovers == ""


@pytest.mark.parametrize(
    ("user", "suspended"),
    [pytest.param("root", False, id="root"), pytest.param(TESTER, True, id="tester-suspended")],
)
def test_stop_ends_every_process_and_gives_status_0(user_lab: Lab, *, suspended: bool) -> None:
    with user_lab.start(end="stay") as vm:
        vm.wait_ready()
        pids = [process["pid"] for process in vm.processes()]
        if suspended:
            assert vm.control("suspend").status == 0
        stopped = vm.control("stop")
        assert (stopped.status, stopped.stderr) == (0, "")
        assert vm.wait() == 0
    alive = user_lab.host.shell(f"ls -d {' '.join(f'/proc/{pid}' for pid in pids)} || true")
    assert alive == ""
    assert user_lab.shell("ls *.sock 2>/dev/null || true") == ""
