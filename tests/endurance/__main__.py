# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.endurance``: VMs by the hundred, by the dozen, and for an hour under fire."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.endurance.load import DEVICES, run_load
from tests.endurance.many import run_many
from tests.endurance.renewals import run_renewals
from tests.endurance.restarts import run_restarts
from tests.endurance.starts import run_starts
from tests.endurance.storm import run_storm
from tests.kvmhost.fixture import session

if TYPE_CHECKING:
    from tests.endurance.load import LoadResult
    from tests.endurance.many import ManyResult
    from tests.endurance.renewals import RenewalsResult
    from tests.endurance.restarts import RestartsResult
    from tests.endurance.starts import StartsResult
    from tests.endurance.storm import StormResult

    AnyResult = (
        StartsResult | RestartsResult | RenewalsResult | StormResult | ManyResult | LoadResult
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures for a program")
    subjects = parser.add_subparsers(dest="subject", required=True)
    starts = subjects.add_parser("starts", help="start and end VMs on this machine's KVM")
    starts.add_argument("--count", type=int, default=1000)
    restarts = subjects.add_parser("restarts", help="kill devices, see how soon they serve again")
    restarts.add_argument("--count", type=int, default=20)
    renewals = subjects.add_parser("renewals", help="restart a device on purpose: nothing grows")
    renewals.add_argument("--count", type=int, default=1000)
    storm = subjects.add_parser("storm", help="a guest that never rests, devices that never live")
    storm.add_argument("--kills", type=int, default=20_000)
    storm.add_argument("--seed", type=int, default=1)
    many = subjects.add_parser("many", help="Linux guests side by side in the KVM test host")
    many.add_argument("--count", type=int, default=20)
    load = subjects.add_parser("load", help="a Linux guest under load, its devices under fire")
    load.add_argument("--minutes", type=float, default=60.0)
    load.add_argument("--seed", type=int, default=1)
    load.add_argument("--device-timeout", default="3", help="as of crosvm run, for slow machines")
    load.add_argument("--no-kills", action="store_true", help="the same load in peace, to compare")
    return parser


def _run(options: argparse.Namespace) -> AnyResult:
    if options.subject in ("starts", "restarts", "renewals", "storm"):
        with tempfile.TemporaryDirectory() as folder:
            return _run_here(options, Path(folder))
    for host in session():
        if options.subject == "many":
            return run_many(host, options.count)
        victims = () if options.no_kills else DEVICES
        limit = f"{60 * options.minutes:.0f}s"
        return run_load(host, limit, options.seed, victims, options.device_timeout)
    raise AssertionError("a session has one host")


def _run_here(options: argparse.Namespace, folder: Path) -> AnyResult:
    if options.subject == "restarts":
        return run_restarts(options.count, folder)
    if options.subject == "renewals":
        return run_renewals(options.count, folder)
    if options.subject == "storm":
        return run_storm(options.kills, options.seed, folder)
    return run_starts(options.count, folder, progress=True)


def main() -> int:
    """Run one subject and print its figures; 1 if anything was left or went wrong."""
    options = _parser().parse_args()
    result = _run(options)
    fields = result._asdict()
    if options.json:
        sys.stdout.write(f"{json.dumps(fields)}\n")
    else:
        sys.stdout.writelines(f"{name}: {value}\n" for name, value in fields.items())
    return int(bool(fields.get("left") or fields.get("wrong")))


if __name__ == "__main__":
    sys.exit(main())
