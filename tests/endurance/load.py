# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest under load, whose device processes are killed and stopped one after the other."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.e2e.support import CLOUD, Lab
from tests.endurance.progress import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.kvmhost.fixture import Command, KvmHost

HOST_IP: Final = "10.8.0.1"
GUEST_IP: Final = "10.8.0.2"
DEVICES: Final = ("block:1", "net:0", "block:2", "vsock", "rng", "block:0", "balloon")
HARASS: Final = "/project/tests/endurance/harass.py"
BLOB_MIB: Final = 8
WAKE_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 900.0  # it boots and ends beside whatever else this machine does

# fio writes blocks with checksums at depth 16 and reads each of them back; files of another disk
# are written and compared; the network brings the same bytes on each new connection, and iperf3
# keeps one open from the beginning to the end, both ways; vsock, whose connections end with their
# device, asks again. A line on the console ends it.
SCRIPT: Final = f"""
ip addr add {GUEST_IP}/24 dev eth0; ip link set eth0 up
(until [ -e /tmp/stop ]; do
    fio --name=load --filename=/dev/vdb --rw=randwrite --bs=8k --direct=1 --ioengine=libaio \
    --iodepth=16 --size=2m --loops=2 --verify=crc32c --verify_fatal=1 >/tmp/fio 2>&1 &&
    echo verified || cat /tmp/fio
done) >/tmp/fios 2>&1 &
fio=$!
(while sleep 0.1; do head -c 256 /dev/hwrng >/dev/null || echo failed; done) >/tmp/rng 2>&1 &
/sbin/mke2fs -q -t ext4 /dev/vdc && mount /dev/vdc /mnt
(while :; do socat -u TCP:{HOST_IP}:5000,retry=9 - | sha256sum; done) >/tmp/tcp 2>/tmp/tcp.err &
iperf3 -c {HOST_IP} -t 86000 -b 2M --bidir -i 0 >/tmp/iperf 2>&1 & iperf=$!
(while sleep 0.2; do echo hello | socat - VSOCK-CONNECT:2:52 | grep -c hello
done) >/tmp/vsock 2>&1 &
(read word </dev/ttyS0; echo >/tmp/stop) &
echo "the load runs"
n=0; rounds=0
while [ ! -e /tmp/stop ]; do
    head -c 65536 /dev/urandom >/mnt/$n
    (cd /mnt; sha256sum $n) >>/tmp/sums
    n=$((n + 1))
    [ $n = 100 ] || continue
    echo 1 >/proc/sys/vm/drop_caches
    (cd /mnt; sha256sum -c -s /tmp/sums) || echo WRONG
    n=0; rounds=$((rounds + 1)); >/tmp/sums
done
until [ -s /tmp/tcp ] && grep -q '^1' /tmp/vsock; do sleep 1; done
kill -INT $iperf; wait $iperf
fact iperf_end grep iperf3: /tmp/iperf
fact iperf_mib sh -c 'sed -n "s/.*RX-C.* \\([0-9.]*\\) MBytes.*receiver.*/\\1/p" /tmp/iperf'
sync; echo 1 >/proc/sys/vm/drop_caches
fact files sh -c 'cd /mnt; [ ! -s /tmp/sums ] || sha256sum -c -s /tmp/sums; echo $?'
umount /mnt
fact check sh -c '/sbin/e2fsck -fn /dev/vdc >/dev/null 2>&1; echo $?'
wait $fio
fact fio_rounds grep -c verified /tmp/fios
fact fio_errors grep -v verified /tmp/fios
fact rounds echo $rounds
fact tcp_rounds grep -c . /tmp/tcp
fact tcp_sums sort -u /tmp/tcp
fact tcp_errors tail -n 5 /tmp/tcp.err
fact vsock_answers grep -c '^1' /tmp/vsock
fact rng_failures grep -c failed /tmp/rng
fact errors /bin/dmesg -l emerg,alert,crit,err
"""

# What each fact has to be.
EXPECTED: Final = {
    "files": "0",
    "check": "0",
    "fio_errors": "",
    "tcp_errors": "",
    "iperf_end": "iperf3: interrupt - the client has terminated",
    "rng_failures": "0",
    "errors": "",
}


class LoadResult(NamedTuple):
    """What came of it."""

    seconds: float
    killed: int
    stopped: int
    restarts: dict[str, int]
    facts: dict[str, str]
    wrong: list[str]


def run_load(
    host: KvmHost,
    limit: str,
    seed: int,
    victims: Sequence[str] = DEVICES,
    device_timeout: str = "3",
) -> LoadResult:
    """Harass a guest as long as ``limit`` of ``harass.py`` says, and say what it saw.

    Without victims it is the same load in peace, to compare with.
    """
    started = time.monotonic()
    lab = Lab(host, "root")
    digest = lab.shell(f"head -c {BLOB_MIB}M /dev/urandom | tee blob | sha256sum").split()[0]
    disks = ("--rwdisk", lab.disk("load.img", 8), "--rwdisk", lab.disk("fs.img", 64))
    net = ("--net", f"host-ip={HOST_IP},netmask=255.255.255.0")
    vsock = f"{lab.folder}/v.sock"
    more = ("--vsock", f"cid=3,socket={vsock}", "--balloon", "0")
    # Some are killed more than ten times in a minute.
    restart = ("--device-restart", "always", "--device-timeout", device_timeout)
    servers = (
        ["socat", "-U", "TCP-LISTEN:5000,reuseaddr,fork", f"OPEN:{lab.folder}/blob"],
        ["socat", f"UNIX-LISTEN:{vsock}_52,fork", "PIPE"],
        ["iperf3", "-s"],
    )
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(host.start(server))
        vm = stack.enter_context(
            lab.start(
                *disks, *net, *more, *restart, "-c", "2", "-m", "512", kernel=CLOUD, script=SCRIPT
            )
        )
        vm.command.wait_for("the load runs", PATIENCE_SECONDS)
        report("the load runs")
        words = ["python3", HARASS, vm.socket, str(seed), limit, *victims]
        harass = stack.enter_context(host.start(words))
        wrong = [] if _status_of(harass, host) == 0 else [harass.stderr, vm.log]
        done = json.loads(harass.stdout or '{"killed": 0, "stopped": 0, "counters": {}}')
        vm.command.send("stop\n")
        vm.command.wait(PATIENCE_SECONDS)
        facts = vm.finish()
        wrong += [
            f"{name} is {facts.get(name)!r}"
            for name, value in (EXPECTED | {"tcp_sums": f"{digest} -"}).items()
            if facts.get(name) != value
        ]
        if "WRONG" in vm.console:
            wrong.append("a file was read back with another checksum")
    lab.close()
    restarts = {name: counters["restarts"] for name, counters in done["counters"].items()}
    return LoadResult(
        time.monotonic() - started, done["killed"], done["stopped"], restarts, facts, wrong
    )


def _status_of(command: Command, host: KvmHost) -> int:
    """Wait for the end, and wake the host now and then.

    Its emulated processor has lost the interrupt of its own timer, while one vCPU of a guest waited
    for the other: that one was not scheduled for 25 minutes, until a command arrived.
    """
    while True:
        with suppress(TimeoutError):
            return command.wait(WAKE_SECONDS)
        host.run(["true"])
