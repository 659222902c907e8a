# SPDX-License-Identifier: BSD-3-Clause
"""In the KVM test host: an unmodified Linux in crosvm-py and in Debian's QEMU, the same for each.

The first guest instruction is the first ``kvm_entry`` that the host's kernel traces; QEMU's is
in its firmware. User space is there when init prints its first line.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from tests.bench import watch
from tests.bench.monitors import MONITORS, LinuxGuest, linux_command
from tests.bench.results import Metric, Results

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kvmhost.fixture import KvmHost

WATCH: Final = "/tmp/watch"
CROSVM: Final = "/usr/local/bin/crosvm"
DATA: Final = "/tmp/bench-data.img"
DATA_BYTES: Final = 64 << 20
GUEST: Final = LinuxGuest("/guests/builtin/vmlinux", "/guests/root.squashfs", 256)
FIO_GUEST: Final = GUEST._replace(data=DATA)
FIO_SECONDS: Final = 4

LIMIT_MS: Final = 240_000
PATIENCE_SECONDS: Final = LIMIT_MS / 1000

UP: Final = "guest: up"
FIRST_ENTRY: Final = Metric("start to the first guest instruction (kvm_entry)", "ms")
USER_SPACE: Final = Metric("start to the guest's user space", "ms")
GUEST_CLOCK: Final = Metric("the guest's own clock at user space", "ms")
CPU: Final = Metric("processor time of the monitor itself until then", "ms")
MEMORY: Final = Metric("PSS beyond guest memory", "MiB")
FIO: Final = {
    "randread1": Metric("fio 4 KiB random read, depth 1", "requests/s", more_is_better=True),
    "randread32": Metric("fio 4 KiB random read, depth 32", "requests/s", more_is_better=True),
    "read": Metric("fio 1 MiB sequential read", "MiB/s", more_is_better=True),
}

_TRACE: Final = "/sys/kernel/debug/tracing"
_TRACE_ON: Final = f"""
cd {_TRACE}
echo mono >trace_clock
echo >trace
echo traceoff:1 >events/kvm/kvm_entry/trigger
echo 1 >events/kvm/kvm_entry/enable
echo 1 >tracing_on
"""
_TRACE_OFF: Final = f"""
cd {_TRACE}
echo 0 >events/kvm/kvm_entry/enable
echo '!traceoff:1' >events/kvm/kvm_entry/trigger
cat trace
"""

# Of fio's terse line, version 3, field 7 is KiB/s and field 8 requests/s of reads.
_FIO_SCRIPT: Final = f"""
f() {{
fio --name=x --filename=/dev/vdb --direct=1 --runtime={FIO_SECONDS} --time_based --minimal "$@"
}}
echo "fio randread1 $(f --rw=randread --bs=4k --ioengine=psync | cut -d';' -f8)"
echo "fio randread32 $(f --rw=randread --bs=4k --ioengine=libaio --iodepth=32 | cut -d';' -f8)"
echo "fio read $(($(f --rw=read --bs=1m --ioengine=psync | cut -d';' -f7) / 1024))"
"""


def parse_first_entry(trace: str) -> int:
    """Return the nanosecond of the first kvm_entry in a trace with the clock ``mono``.

    Raises:
        WatchError: there is none.
    """
    found = re.search(r"\s(\d+)\.(\d{6}): kvm_entry:", trace)
    if not found:
        raise watch.WatchError("no kvm_entry in the trace")
    return int(found[1]) * 10**9 + int(found[2]) * 1000


def parse_guest_clock(output: str) -> float:
    """Return the milliseconds that init prints of its kernel's uptime.

    Raises:
        WatchError: it prints none.
    """
    found = re.search(r"guest: up (\d+\.\d+)", output)
    if not found:
        raise watch.WatchError(f"the guest is not up: {output[-500:]!r}")
    return float(found[1]) * 1000


def parse_fio(output: str) -> dict[str, float]:
    """Return what the script in the guest printed.

    Raises:
        WatchError: something is missing.
    """
    found = {name: float(value) for name, value in re.findall(r"fio (\w+) (\d+)", output)}
    if found.keys() != FIO.keys():
        raise watch.WatchError(f"fio printed {found} in {output[-500:]!r}")
    return found


class Bench:
    """One session in one test host."""

    def __init__(self, host: KvmHost, directory: Path) -> None:
        self._host = host
        host.push(watch.build(directory), WATCH)
        host.shell(f"chmod 755 {WATCH}; cat /dev/urandom | head -c {DATA_BYTES} >{DATA}")

    def run(self, runs: int, *, fio: bool) -> Results:
        """Measure all monitors in turn, ``runs`` times, after one boot of each to warm up."""
        results = Results("Linux guest in the KVM test host (emulated processor: compare, only)")
        results.note_load()
        for number in range(runs + 1):
            for monitor in MONITORS:
                for metric, value in self._boot(monitor):
                    if number:
                        results.add(metric, monitor, value)
                if number and fio:
                    for name, value in self._fio(monitor).items():
                        results.add(FIO[name], monitor, value)
        results.note_load()
        return results

    def _boot(self, monitor: str) -> list[tuple[Metric, float]]:
        command = linux_command(monitor, CROSVM, GUEST, "true", "stay")
        self._host.shell(_TRACE_ON)
        with self._host.start([WATCH, str(LIMIT_MS), UP, "--", *command]) as running:
            running.wait_for("guest: exit 0", PATIENCE_SECONDS)
            pid = watch.parse_start(running.stderr)
            footprint = self._footprint(pid)
            running.end_input()
            running.wait(PATIENCE_SECONDS)
        first_entry_ns = parse_first_entry(self._host.shell(_TRACE_OFF))
        watched = watch.parse(running.stderr)
        return [
            (FIRST_ENTRY, watched.since_start_ms(first_entry_ns)),
            (USER_SPACE, watched.to_marker_ms(UP)),
            (GUEST_CLOCK, parse_guest_clock(running.stdout)),
            (CPU, footprint["cpu_ms"]),
            (MEMORY, footprint["pss_mib"]),
        ]

    def _footprint(self, pid: int | None) -> dict[str, float]:
        script = "/project/tests/bench/footprint.py"
        command = ["python3", "-I", "-S", script, str(pid), str(GUEST.memory_mib << 20)]
        result = self._host.run(command, timeout=PATIENCE_SECONDS)
        if result.status:
            raise watch.WatchError(result.stderr)
        figures = json.loads(result.stdout)
        return {name: float(figures[name]) for name in ("cpu_ms", "pss_mib")}

    def _fio(self, monitor: str) -> dict[str, float]:
        command = linux_command(monitor, CROSVM, FIO_GUEST, _FIO_SCRIPT, "stay")
        with self._host.start([WATCH, str(LIMIT_MS), "--", *command]) as running:
            running.wait_for("guest: exit", PATIENCE_SECONDS)
            return parse_fio(running.stdout)
