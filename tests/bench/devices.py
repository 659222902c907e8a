# SPDX-License-Identifier: BSD-3-Clause
"""In the KVM test host: network, vsock and balloon of crosvm-py and of QEMU, the same guest.

The peer of every transfer is in the host. The guest measures, so that what a monitor costs to
start or to control has no part in it.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tests.bench.monitors import Q35, LinuxGuest, linux_command
from tests.bench.results import OURS, Metric, Results
from tests.bench.testhost import CROSVM
from tests.bench.watch import WatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kvmhost.fixture import Command, KvmHost

MONITORS: Final = (OURS, Q35)
DEFAULT_RUNS: Final = 3
MEMORY_MIB: Final = 512
GUEST: Final = LinuxGuest("/guests/builtin/vmlinux", "/guests/root.squashfs", MEMORY_MIB)
PATIENCE_SECONDS: Final = 120.0

TAP: Final = "benchtap"
HOST_IP: Final = "10.78.0.1"
GUEST_IP: Final = "10.78.0.2"
SECONDS: Final = 3
PINGS: Final = 20
UDP_BYTES: Final = 22  # and 42 of headers

CID: Final = 78
VSOCK_MIB: Final = 64
SOURCE_PORT: Final = 5001
SINK_PORT: Final = 5002

FOLDER: Final = "/tmp/bench-devices"
MONITOR: Final = f"{FOLDER}/monitor"
VSOCK: Final = f"{FOLDER}/vsock"

# Half of the memory, but the first and the last bit: those are for seeing that it goes on.
BALLOON_MIB: Final = MEMORY_MIB // 2
BALLOON_BEGUN_KIB: Final = 8 << 10
BALLOON_DONE_KIB: Final = (BALLOON_MIB - 8) << 10
READY: Final = "bench ready"

# Where the queues of network and vsock are served.
DATAPATHS: Final = {False: "monitor", True: "vhost"}

_MBIT: Final = "Mbit/s"
_MIB: Final = "MiB/s"
FIGURES: Final = {
    "send": ("TCP from the guest", _MBIT, True),
    "receive": ("TCP to the guest", _MBIT, True),
    "udp": (f"UDP from the guest, {UDP_BYTES + 42} byte frames", "packets/s", True),
    "ping": ("ping from the guest, mean", "ms", False),
    "vsend": ("vsock from the guest", _MIB, True),
    "vreceive": ("vsock to the guest", _MIB, True),
    "balloon": (f"balloon takes {BALLOON_MIB} of {MEMORY_MIB} MiB", _MIB, True),
}

_CLOCK: Final = "now() { read up idle </proc/uptime; }\n"
_NET: Final = f"""
ip link set eth0 up
ip addr add {GUEST_IP}/24 dev eth0
ping -q -c 2 {HOST_IP} >/dev/null
echo "bench ping $(ping -q -c {PINGS} -i 0.1 {HOST_IP} | grep round)"
p() {{ n=$1; shift; echo "bench $n $(iperf3 -c {HOST_IP} -t {SECONDS} -f m $* | grep receiver)"; }}
p send -O 1
p receive -O 1 -R
p udp -u -l {UDP_BYTES} -b 0
"""
_VSOCK: Final = f"""
v() {{ n=$1; shift; now; a=$up; socat -u -b 65536 $* || return; now; echo "bench $n $a $up"; }}
v vsend OPEN:/dev/zero,readbytes={VSOCK_MIB << 20} VSOCK-CONNECT:2:{SINK_PORT}
v vreceive VSOCK-CONNECT:2:{SOURCE_PORT} OPEN:/dev/null
"""
_BALLOON: Final = f"""
f() {{ while read k v u; do [ $k = MemFree: ] && break; done </proc/meminfo; now; }}
w() {{ while f; [ $((all - v)) -lt $1 ]; do usleep 20000; done; }}
f; all=$v
echo {READY}
w {BALLOON_BEGUN_KIB}; a=$up; b=$v
w {BALLOON_DONE_KIB}
echo "bench balloon $a $up $((b - v))"
"""


def measured(monitor: str, *, vhost: bool) -> set[str]:
    """Return which of FIGURES there are: QEMU has no vsock of its own, and the balloon no vhost."""
    names = set(FIGURES)
    if not vhost and monitor != OURS:
        names -= {"vsend", "vreceive"}
    return names - {"balloon"} if vhost else names


def script(names: set[str]) -> str:
    """Return what the guest does to print ``names``."""
    vsock = _VSOCK if "vsend" in names else ""
    return _CLOCK + _NET + vsock + (_BALLOON if "balloon" in names else "")


def command(monitor: str, *, vhost: bool) -> list[str]:
    """Return how ``monitor`` boots the guest with the devices."""
    names = measured(monitor, vhost=vhost)
    words = linux_command(monitor, CROSVM, GUEST, script(names), "poweroff")
    if monitor == OURS:
        options = ["-s", MONITOR, "--balloon", "0"]
        options += ["--net", f"tap-name={TAP}" + (",vhost-net" if vhost else "")]
        options += ["--vsock", f"{CID}" if vhost else f"{CID},socket={VSOCK}"]
        return [*words[:-1], *options, words[-1]]
    switch = "on" if vhost else "off"
    options = [
        *("-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no,vhost={switch}"),
        *("-device", "virtio-net-pci,netdev=net"),
        *("-device", "virtio-balloon-pci,deflate-on-oom=on"),
        *("-monitor", f"unix:{MONITOR},server=on,wait=off"),
    ]
    if "vsend" in names:
        options += ["-device", f"vhost-vsock-pci,guest-cid={CID}"]
    return words + options


def balloon_command(monitor: str) -> list[str]:
    """Return how the balloon is set while the guest runs."""
    if monitor == OURS:
        return [CROSVM, "balloon", f"{BALLOON_MIB}m", MONITOR]
    say = f"(echo balloon {MEMORY_MIB - BALLOON_MIB}; sleep 1) | socat - UNIX-CONNECT:{MONITOR}"
    return ["sh", "-c", say]


def metric(name: str, *, vhost: bool) -> Metric:
    """Return the metric of one of FIGURES."""
    text, unit, more_is_better = FIGURES[name]
    where = "" if name == "balloon" else f", {DATAPATHS[vhost]}"
    return Metric(text + where, unit, more_is_better=more_is_better)


def parse(output: str) -> dict[str, float]:
    """Return the figures that the guest printed; a line without one is left out."""
    figures = {}
    for line in output.splitlines():
        found = re.match(r"bench (\w+) (.+)", line)
        value = _parse_figure(found[1], found[2]) if found else None
        if found and value is not None:
            figures[found[1]] = value
    return figures


def _parse_figure(name: str, text: str) -> float | None:
    if name == "ping":
        found = re.search(r"= [\d.]+/([\d.]+)/", text)
        return float(found[1]) if found else None
    if name in ("send", "receive"):
        found = re.search(r"([\d.]+) Mbits/sec", text)
        return float(found[1]) if found else None
    if name == "udp":
        found = re.search(r"0\.00-([\d.]+) .* (\d+)/(\d+) \(", text)
        return (int(found[3]) - int(found[2])) / float(found[1]) if found else None
    found = re.match(r"([\d.]+) ([\d.]+)(?: (\d+))?", text)
    if not found or float(found[2]) <= float(found[1]):
        return None
    mib = int(found[3]) / 1024 if found[3] else VSOCK_MIB
    return mib / (float(found[2]) - float(found[1]))


class Bench:
    """One session in one test host."""

    def __init__(self, host: KvmHost) -> None:
        self._host = host

    def run(self, runs: int) -> Results:
        """Measure both monitors in turn, ``runs`` times, with either datapath."""
        results = Results("devices in the KVM test host (emulated processor: compare, only)")
        results.notes.append(f"{Q35} serves vsock in the host's kernel only")
        results.note_load()
        with self._peers():
            for _ in range(runs):
                for vhost in DATAPATHS:
                    for monitor in MONITORS:
                        for name, value in self._measure(monitor, vhost=vhost).items():
                            results.add(metric(name, vhost=vhost), monitor, value)
        results.note_load()
        return results

    @contextmanager
    def _peers(self) -> Iterator[None]:
        """Have the TAP, and someone to talk to at each of the host's addresses."""
        self._host.shell(
            f"rm -rf {FOLDER}; mkdir {FOLDER}; ip link del {TAP} 2>/dev/null || :\n"
            f"ip tuntap add dev {TAP} mode tap; ip addr add {HOST_IP}/24 dev {TAP}\n"
            f"ip link set {TAP} up"
        )
        zeros = f"OPEN:/dev/zero,readbytes={VSOCK_MIB << 20}"
        sink, source = f"{VSOCK}_{SINK_PORT}", f"{VSOCK}_{SOURCE_PORT}"
        peers = f"""
iperf3 -s >/dev/null &
socat -u -b 65536 VSOCK-LISTEN:{SINK_PORT},fork OPEN:/dev/null &
socat -u -b 65536 UNIX-LISTEN:{sink},fork OPEN:/dev/null &
socat -U -b 65536 VSOCK-LISTEN:{SOURCE_PORT},fork '{zeros}' &
socat -U -b 65536 UNIX-LISTEN:{source},fork '{zeros}' &
echo running
wait
"""
        with self._host.start(["sh", "-c", peers]) as running:
            running.wait_for("running")
            yield
        self._host.shell(f"ip link del {TAP}; rm -rf {FOLDER}")

    def _measure(self, monitor: str, *, vhost: bool) -> dict[str, float]:
        with self._host.start(command(monitor, vhost=vhost)) as running:
            if not vhost:
                self._inflate(running, monitor)
            running.wait_for("guest: exit", PATIENCE_SECONDS)
            running.wait(PATIENCE_SECONDS)
            figures = parse(running.stdout)
        if missing := measured(monitor, vhost=vhost) - figures.keys():
            raise WatchError(f"{monitor}: no {', '.join(missing)} in {running.stdout[-1000:]!r}")
        return figures

    def _inflate(self, running: Command, monitor: str) -> None:
        running.wait_for(READY, PATIENCE_SECONDS)
        result = self._host.run(balloon_command(monitor), timeout=PATIENCE_SECONDS)
        if result.status:
            raise WatchError(f"{monitor}: balloon: {result.stderr}")
