# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.bench``: crosvm-py beside QEMU, the same guests, in turn, in one session."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench import api, data, devices, direct, filters, shares, testhost
from tests.bench.results import save
from tests.bench.watch import WatchError
from tests.kvmhost.client import HostGoneError
from tests.kvmhost.fixture import session

if TYPE_CHECKING:
    from tests.bench.results import Results

DEFAULT_RUNS: Final = 5
RUNS_HELP: Final = f"{DEFAULT_RUNS} by default, {devices.DEFAULT_RUNS} of devices"
SUBJECTS: Final = {
    "direct": "on this machine's KVM: start of a bare-metal guest, memory",
    "data": "on this machine's KVM: a request of a guest, by the engine, by Python, and by QEMU",
    "api": "on this machine's KVM: cloud-hypervisor's first answer, and single requests",
    "filters": "on this machine's KVM: exits and system calls, confined and not",
    "testhost": "in the KVM test host: start of Linux, processor time, memory",
    "fio": "the same, with fio in the guest",
    "devices": "in the KVM test host: network, vsock and balloon",
    "shares": "in the KVM test host: what a guest has when its devices spin",
    "all": "direct and fio",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    for name, text in SUBJECTS.items():
        parser.epilog = f"{parser.epilog or 'subjects:'} {name}: {text}."
    parser.add_argument("subject", nargs="?", default="all", choices=SUBJECTS)
    parser.add_argument("-n", "--runs", type=int, metavar="N", help=RUNS_HELP)
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="api, direct, data: run monitors with real-time priority, where other work runs",
    )
    parser.add_argument(
        "--beside",
        metavar="CROSVM",
        help="direct: measure an installed crosvm of another version in turn with this one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return parser


def _measure(options: argparse.Namespace, directory: Path) -> list[Results]:
    measured = []
    subject: str = options.subject
    default = devices.DEFAULT_RUNS if subject == "devices" else DEFAULT_RUNS
    runs: int = default if options.runs is None else options.runs
    if subject in ("direct", "all"):
        measured.append(_direct(options, directory).run(runs))
    if subject == "data":
        measured.append(data.Bench(directory, realtime=options.realtime).run(runs))
    if subject == "api":
        measured.append(api.Bench(directory, realtime=options.realtime).run(runs))
    if subject == "filters":
        measured.append(filters.Bench(directory).run(runs))
    if subject == "devices":
        measured += [devices.Bench(host).run(runs) for host in session()]
    if subject == "shares":
        measured += [shares.Bench(host).run(runs) for host in session()]
    elif subject not in ("api", "direct", "data", "filters", "devices"):
        for host in session():
            bench = testhost.Bench(host, directory)
            measured.append(bench.run(runs, fio=subject != "testhost"))
    return measured


def _direct(options: argparse.Namespace, directory: Path) -> direct.Bench:
    return direct.Bench(directory, realtime=options.realtime, beside=options.beside)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as directory:
            measured = _measure(options, Path(directory))
    except (WatchError, HostGoneError, TimeoutError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    sys.stdout.write("\n\n".join(results.table() for results in measured) + "\n")
    if options.json:
        save(options.json, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
