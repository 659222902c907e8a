# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.second_try NAME PYTEST-ARGUMENTS…``: give what failed one more try, and say so.

An emulated machine that shares its processors may miss a moment, so a failure has a second try. A
test that needs it is no good test, though: each one is named, with how often it needed it over the
last runs, and ``python -m tests.second_try report`` ends with status 1 when a test needed it twice
in them. The runs are noted outside of the clone, one file for each NAME, so that a fresh clone on
the same machine knows of those before it: in ``$XDG_STATE_HOME/crosvm-py/test-runs``, which is
``~/.local/state/…`` by default. What a test did before its file was changed does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".cache"
STATE: Final = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
HISTORY: Final = STATE / "crosvm-py" / "test-runs"

KEPT_RUNS: Final = 10
# This often within the kept runs, a test is a defect.
DEFECT: Final = 2

# pytest's status when tests failed. Any other one but 0 left tests out, as a second try would.
_TESTS_FAILED: Final = 1


def run(name: str, arguments: list[str], cache: Path = CACHE, history: Path = HISTORY) -> int:
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
    runs = [*_runs(history, name), {test: _state_of(test) for test in needed}][-KEPT_RUNS:]
    try:
        history.mkdir(parents=True, exist_ok=True)
        _runs_file(history, name).write_text(json.dumps(runs, indent=1))
    except OSError as error:
        _say(f"{name}: this run cannot be noted: {error}")
    for test in needed:
        _say(f"{name}: {test} passed at its second try ({_often(runs, test)})")
    return status


def report(history: Path = HISTORY) -> int:
    """Name every test that needed a second try lately; return 1 if one did so too often."""
    status = 0
    for path in sorted(history.glob("*.json")):
        runs = _runs(history, path.stem)
        if len(runs) < DEFECT:
            _say(f"{path.stem}: no history: this is the first run that {history} knows of")
        for test in sorted({test for run in runs for test in run}):
            defect = _times(runs, test) >= DEFECT
            _say(f"{test}: {_often(runs, test)}" + (": mend it" if defect else ""))
            status |= defect
    return int(status)


def _often(runs: list[dict[str, str]], test: str) -> str:
    times = _times(runs, test)
    return f"needed a second try in {times} of the last {len(runs)} runs here"


def _times(runs: list[dict[str, str]], test: str) -> int:
    """Return how often a test needed a second try since its file was changed."""
    state = _state_of(test)
    return sum(run.get(test) == state for run in runs)


def _state_of(test: str) -> str:
    """Return what differs when the file of a test was changed."""
    try:
        return hashlib.sha256((ROOT / test.partition("::")[0]).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _runs_file(history: Path, name: str) -> Path:
    return history / f"{name}.json"


def _runs(history: Path, name: str) -> list[dict[str, str]]:
    """Return the tests that needed a second try, for each of the last runs, the oldest first.

    Each test is with the state of its file then.
    """
    try:
        runs: list[dict[str, str]] = json.loads(_runs_file(history, name).read_text())
    except (OSError, ValueError):
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
