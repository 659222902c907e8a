# SPDX-License-Identifier: BSD-3-Clause
"""Memory goes from real guests back to the host and comes again: the file behind it tells."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.support import BUILTIN, CLOUD, TESTER, Kernel, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.support import Vm
    from tests.kvmhost.fixture import KvmHost, Result

MIB: Final = 1 << 20
MEMORY_MIB: Final = 256
FILL_MIB: Final = 180
PATIENCE_SECONDS: Final = 120.0

# Fill memory, give it up, tell what is there, wait for a word, fill it again, wait for another.
FILL_TWICE: Final = f"""
mount -o remount,size=100% /dev/shm
head -c 4m /dev/urandom >/run/piece
fill() {{
    pieces=$(seq {FILL_MIB // 4} | sed 's:.*:/run/piece:')
    cat $pieces >/dev/shm/filled
}}
fill
fact first sh -c 'tail -c 4m /dev/shm/filled | sha256sum'
rm /dev/shm/filled
fact ready echo yes
read word </dev/ttyS0
fact low sh -c 'head -3 /proc/meminfo'
fact half echo yes
read word </dev/ttyS0
fill
fact second sh -c 'tail -c 4m /dev/shm/filled | sha256sum'
fact errors /bin/dmesg -l emerg,alert,crit,err
fact full echo yes
read word </dev/ttyS0
"""

# tail(1) keeps all of its input, which has no line break, in memory of its own.
EAT: Final = """
fact ready echo yes
read word </dev/ttyS0
head -c 120m /dev/zero | tail -n 1 | wc -c >/tmp/eaten
fact eaten cat /tmp/eaten
fact kills sh -c '/bin/dmesg | grep -c "Out of memory"'
fact done echo yes
read word </dev/ttyS0
"""


@pytest.fixture
def user_lab(kvmhost: KvmHost, user: str) -> Iterator[Lab]:
    lab = Lab(kvmhost, user)
    yield lab
    lab.close()


def crosvm(lab: Lab, *words: str) -> Result:
    return lab.host.run(["crosvm", *words], timeout=PATIENCE_SECONDS, user=lab.user)


def set_balloon(lab: Lab, *words: str) -> None:
    result = crosvm(lab, "balloon", "--wait", *words)
    assert (result.status, result.stderr) == (0, "")


def statistics(lab: Lab, vm: Vm, *options: str) -> dict[str, int]:
    """Return the guest's numbers and the balloon's own in one."""
    result = crosvm(lab, "balloon_stats", *options, vm.socket)
    assert (result.status, result.stderr) == (0, "")
    told: dict[str, dict[str, int]] = json.loads(result.stdout)["BalloonStats"]
    stats = told.pop("stats")
    return {**told, **stats}  # type: ignore[dict-item]  # all the others are numbers


def host_mib(lab: Lab, vm: Vm) -> float:
    """Return how much of the guest's memory the host really holds."""
    script = f"""
    cd /proc/{vm.pid}/fd
    for fd in *; do
        case $(readlink $fd) in */memfd:crosvm_guest*) stat -L -c %b $fd; break ;; esac
    done
    """
    return int(lab.host.shell(script)) * 512 / MIB


def go_on(vm: Vm, until: str) -> None:
    vm.command.send("on\n")
    vm.wait_for(f"@{until}=yes")


def near(value: float, wanted: float, tolerance: float) -> bool:
    return abs(value - wanted) <= tolerance


@pytest.mark.parametrize(
    ("user", "kernel", "cpus"),
    [
        pytest.param(TESTER, BUILTIN, "2", id="builtin-2cpu-tester"),
        pytest.param("root", CLOUD, "1", id="cloud-1cpu-root"),
    ],
)
def test_half_the_memory_goes_to_the_host_and_comes_back(
    user_lab: Lab, kernel: Kernel, cpus: str
) -> None:
    options = ("-m", str(MEMORY_MIB), "--balloon", "0", "-c", cpus)
    with user_lab.start(*options, kernel=kernel, script=FILL_TWICE) as vm:
        vm.wait_for("@ready=yes")
        full = host_mib(user_lab, vm)
        assert full > FILL_MIB
        set_balloon(user_lab, f"{MEMORY_MIB // 2}m", vm.socket)
        half = host_mib(user_lab, vm)
        # Most of what the balloon took was in use before; the rest of the guest kept what it had.
        assert half < MEMORY_MIB / 2 + 5
        assert half < full - FILL_MIB / 3
        stats = statistics(user_lab, vm)
        assert stats["balloon_actual"] == stats["balloon_target"] == MEMORY_MIB // 2 * MIB
        assert stats["released_total"] == MEMORY_MIB // 2 * MIB
        go_on(vm, "half")
        set_balloon(user_lab, "0", vm.socket)
        assert near(host_mib(user_lab, vm), half, 8), "memory comes back when it is used"
        go_on(vm, "full")
        assert host_mib(user_lab, vm) > FILL_MIB
        vm.command.send("end\n")
        facts = vm.finish()
    meminfo = dict(
        zip(facts["low"].split()[::3], map(int, facts["low"].split()[1::3]), strict=True)
    )
    assert near(meminfo["MemTotal:"] * 1024, stats["total_memory"], MIB)
    assert near(meminfo["MemFree:"] * 1024, stats["free_memory"], 8 * MIB)
    assert near(meminfo["MemAvailable:"] * 1024, stats["available_memory"], 8 * MIB)
    assert facts["first"] == facts["second"]
    assert facts["errors"] == ""


def test_guest_without_memory_deflates(lab: Lab) -> None:
    with lab.start("-m", str(MEMORY_MIB), "--balloon", "0", script=EAT) as vm:
        vm.wait_for("@ready=yes")
        set_balloon(lab, "180m", vm.socket)
        go_on(vm, "done")
        actual = statistics(lab, vm)["balloon_actual"]
        vm.command.send("end\n")
        facts = vm.finish()
    assert facts["kills"] == "0"
    assert facts["eaten"] == str(120 * MIB)
    assert actual < 180 * MIB


def test_free_memory_goes_back_by_itself(tester_lab: Lab) -> None:
    options = ("-m", str(MEMORY_MIB), "--balloon-page-reporting")
    with tester_lab.start(*options, script=FILL_TWICE) as vm:
        vm.wait_for("@ready=yes")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (held := host_mib(tester_lab, vm)) > 60:
            assert time.monotonic() < deadline, f"the host still holds {held} MiB"
        stats = statistics(tester_lab, vm, "--free-page-hints")
        assert stats["released_total"] > FILL_MIB / 2 * MIB
        assert stats["balloon_actual"] == 0
        assert stats["free_memory"] / 2 < stats["free_page_hints"] <= stats["free_memory"] + 8 * MIB
        go_on(vm, "half")
        go_on(vm, "full")
        vm.command.send("end\n")
        facts = vm.finish()
    assert facts["first"] == facts["second"]
    assert facts["errors"] == ""


def test_driver_comes_and_goes_twenty_times(lab: Lab) -> None:
    script = """
    cd /sys/bus/virtio/drivers/virtio_balloon
    device=$(basename virtio*)
    fact ready echo yes
    read word </dev/ttyS0
    rounds=0
    while [ $rounds -lt 20 ] && echo $device >unbind && [ ! -e $device ] && echo $device >bind; do
        rounds=$((rounds + 1))
    done
    fact rounds echo $rounds
    fact errors /bin/dmesg -l emerg,alert,crit,err
    fact again echo yes
    read word </dev/ttyS0
    """
    options = ("-m", str(MEMORY_MIB), "--balloon", "16m,free-page-reporting=on")
    with lab.start(*options, script=script) as vm:
        vm.wait_for("@ready=yes")
        go_on(vm, "again")
        set_balloon(lab, "32m", vm.socket)
        stats = statistics(lab, vm, "--free-page-hints")
        assert stats["balloon_actual"] == 32 * MIB
        assert stats["free_page_hints"] > 100 * MIB
        vm.command.send("end\n")
        facts = vm.finish()
    assert (facts["rounds"], facts["errors"]) == ("20", "")


def test_balloon_of_the_start_and_all_that_can_be_wrong(lab: Lab) -> None:
    script = "fact ready echo yes; read word </dev/ttyS0"
    options = ("-m", str(MEMORY_MIB), "--balloon", "size=64m,deflate_on_oom=off")
    with lab.start(*options, script=script) as vm, lab.start(script=script) as without:
        vm.wait_for("@ready=yes")
        set_balloon(lab, "--pages", "-4096", vm.socket)
        assert statistics(lab, vm)["balloon_actual"] == 48 * MIB
        too_much = crosvm(lab, "balloon", "--pages=-100000", vm.socket)
        assert too_much.status == 0
        assert "no such size is possible, it becomes 0 MiB" in too_much.stderr
        without.wait_for("@ready=yes")
        for words in (["balloon", "1m"], ["balloon_stats"], ["balloon", "--pages", "+1"]):
            refused = crosvm(lab, *words, without.socket)
            assert refused.status == 1
            assert "this VM has no balloon" in refused.stderr
        for one in (vm, without):
            one.command.send("end\n")
            one.finish()
