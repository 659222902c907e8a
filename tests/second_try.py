# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.second_try NAME PYTEST-ARGUMENTS…``: give what failed one more try, and say so.

An emulated machine that shares its processors may miss a moment, so a failure has a second try. A
test that needs it is no good test, though: each one is named, with how often it needed it over the
last runs, and ``python -m tests.second_try report`` ends with status 1 when a test needed it twice
in them. The runs are noted in ``.cache/runs``, one file for each NAME.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).resolve().parents[1] / ".cache"

KEPT_RUNS: Final = 10
# This often within the kept runs, a test is a defect.
DEFECT: Final = 2

# pytest's status when tests failed. Any other one but 0 left tests out, as a second try would.
_TESTS_FAILED: Final = 1


def run(name: str, arguments: list[str], cache: Path = CACHE) -> int:
    """Run pytest, once more for what failed, and note what needed it; return pytest's status."""
    folder = cache / f"pytest-{name}"
    command = [sys.executable, "-m", "pytest", "-rs", "-o", f"cache_dir={folder}", *arguments]
    status = subprocess.run(command, check=False).returncode
    if status not in (0, _TESTS_FAILED):
        return status
    failed = _last_failed(folder) if status else []
    if failed:
        _say(f"{name}: one more try for {len(failed)} tests")
        status = subprocess.run([*command, "--last-failed"], check=False).returncode
    needed = sorted(set(failed) - set(_last_failed(folder))) if status <= _TESTS_FAILED else []
    runs = [*_runs(cache, name), needed][-KEPT_RUNS:]
    _runs_file(cache, name).parent.mkdir(parents=True, exist_ok=True)
    _runs_file(cache, name).write_text(json.dumps(runs, indent=1))
    for test in needed:
        _say(f"{name}: {test} passed at its second try ({_often(runs, test)})")
    return status


def report(cache: Path = CACHE) -> int:
    """Name every test that needed a second try lately; return 1 if one did so too often."""
    status = 0
    for path in sorted((cache / "runs").glob("*.json")):
        runs = _runs(cache, path.stem)
        for test, times in sorted(Counter(test for run in runs for test in run).items()):
            defect = times >= DEFECT
            _say(f"{test}: {_often(runs, test)}" + (": mend it" if defect else ""))
            status |= defect
    return int(status)


def _often(runs: list[list[str]], test: str) -> str:
    times = sum(test in run for run in runs)
    return f"needed a second try in {times} of the last {len(runs)} runs here"


def _runs_file(cache: Path, name: str) -> Path:
    return cache / "runs" / f"{name}.json"


def _runs(cache: Path, name: str) -> list[list[str]]:
    """Return the tests that needed a second try, for each of the last runs, the oldest first."""
    try:
        runs: list[list[str]] = json.loads(_runs_file(cache, name).read_text())
    except FileNotFoundError:
        return []
    return runs


def _last_failed(folder: Path) -> list[str]:
    """Return the tests that pytest's last run left as failed."""
    try:
        failed: dict[str, bool] = json.loads((folder / "v/cache/lastfailed").read_text())
    except FileNotFoundError:
        return []
    return list(failed)


def _say(text: str) -> None:
    sys.stderr.write(f"second try: {text}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["report"]:
        sys.exit(report())
    sys.exit(run(sys.argv[1], sys.argv[2:]))
