# SPDX-License-Identifier: BSD-3-Clause
"""In the KVM test host: what is left of its one processor for a guest when its devices spin.

The guest has one vCPU and computes. Three processes that do nothing but spin stand for devices that
were taken over: each is where such a device would be, in its group or in none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.bench.results import Metric, Results
from tests.bench.watch import WatchError

if TYPE_CHECKING:
    from tests.kvmhost.fixture import KvmHost

SECONDS: Final = 10
SHARE: Final = Metric("processor time of the vmm, three devices spin", "%", more_is_better=True)
IN_GROUPS: Final = "cgroup v2"
ALONE: Final = "resource limits alone"

_ROOT: Final = "/sys/fs/cgroup"
_GROUP: Final = f"{_ROOT}/bench"
# Prints the ticks of a hundredth of a second that the vmm gets.
_SCRIPT: Final = f"""
cd /tmp
echo +cpu +memory +pids >{_ROOT}/cgroup.subtree_control
mkdir -p {_GROUP}
guest=$(printf 'echo spin""ning; while :; do :; done' | base64 -w0)
crosvm run --cgroup "$0" -m 128 -r /guests/root.squashfs -p "quiet crosvm.run=$guest" \\
    /guests/builtin/vmlinux >shares.out 2>&1 </dev/null &
vmm=$!
until grep -q spinning shares.out; do sleep 0.2; kill -0 $vmm || exit 1; done
for name in block:0 rng rng; do
    group={_GROUP}/crosvm-$vmm/$name
    [ ! -d $group ] || echo 9 >$group/pids.max
    sh -c '[ ! -d $0 ] || echo $$ >$0/cgroup.procs; while :; do :; done' $group &
    spinning="$spinning $!"
done
ticks() {{ cut -d' ' -f14,15 /proc/$vmm/stat | tr ' ' +; }}
sleep 1
before=$(ticks)
sleep {SECONDS}
echo $(($(ticks) - ($before)))
kill -9 $vmm $spinning
wait
for _ in $(seq 100); do rmdir {_GROUP} && break; sleep 0.1; done 2>/dev/null
echo -cpu -memory -pids >{_ROOT}/cgroup.subtree_control
"""


class Bench:
    """Measure the shares."""

    def __init__(self, host: KvmHost) -> None:
        self._host = host

    def run(self, runs: int) -> Results:
        """Measure both ways in turn, ``runs`` times."""
        results = Results("share of a guest when its devices spin, in the KVM test host")
        results.note_load()
        for _ in range(runs):
            for name, choice in ((IN_GROUPS, _GROUP), (ALONE, "none")):
                results.add(SHARE, name, self._share(choice))
        results.note_load()
        return results

    def _share(self, choice: str) -> float:
        result = self._host.run(["sh", "-c", _SCRIPT, choice], timeout=300)
        if result.status != 0 or not result.stdout.strip().isdecimal():
            raise WatchError(f"{choice}: {result.stdout}{result.stderr}")
        return int(result.stdout) / SECONDS
