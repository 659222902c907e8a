# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.fuzz [TARGET…]``: fuzz by a seed, or guided by coverage, and say how much.

A find is printed with what repeats it, and its traceback; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NamedTuple

from tests.fuzz.targets import EPISODES_PER_LIFE, RING_TARGETS, TARGETS, life_source, make_fuzzer
from tests.fuzz.unforeseen import unforeseen_errors_are_finds

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Self

PROGRESS_SECONDS = 5.0
MAX_EXTENSIONS = 20
# The nightly goal: so many of the unit of each target; for the queues all of them together.
NIGHTLY_MUTATIONS = 10_000_000
NIGHTLY_OTHERS = 1_000_000


class Result(NamedTuple):
    """What one target did."""

    target: str
    unit: str
    done: int
    episodes: int
    seconds: float
    find: str

    def line(self) -> str:
        rate = self.done / self.seconds if self.seconds else 0
        return (
            f"{self.target}: {self.done:,} {self.unit} in {self.episodes:,} episodes, "
            f"{self.seconds:.1f} s, {rate:,.0f}/s"
        )


class Plan(NamedTuple):
    """How long and from where."""

    goal: int
    seconds: float
    seed: int
    first_life: int
    quiet: bool
    patience_seconds: float = 60.0


class EndlessError(Exception):
    """Something goes on and on."""


class Watchdog:
    """Break an episode off that does not end.

    One that has had less processor time than half of its time has waited for a busy machine, or
    sleeps: it gets ``MAX_EXTENSIONS`` times as long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._bark)
        self.feed()
        return self

    def feed(self) -> None:
        """Begin to wait anew."""
        self._fed, self._extensions = time.process_time(), 0
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _bark(self, _number: int, _frame: object) -> None:
        used = time.process_time() - self._fed
        if used < self._seconds / 2 and self._extensions < MAX_EXTENSIONS:
            self._extensions += 1
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
            return
        raise EndlessError(
            f"an episode of more than {self._seconds} s, {used:.1f} of them on a processor"
        )


def fuzz(name: str, plan: Plan) -> Result:
    """Fuzz one target until it has done enough, its time is up, or something was found."""
    unit = TARGETS[name].unit
    began = told = time.monotonic()
    count = episodes = 0
    at = f"life {plan.first_life}"
    watchdog = Watchdog(plan.patience_seconds)
    try:
        with (
            unforeseen_errors_are_finds(),
            watchdog,
            closing(_episodes(name, plan.seed, plan.first_life)) as lives,
        ):
            for position, done in lives:
                watchdog.feed()
                at = position  # the last that was well
                count += done
                episodes += 1
                now = time.monotonic()
                if now - told > PROGRESS_SECONDS and not plan.quiet:
                    told = now
                    so_far = Result(name, unit, count, episodes, now - began, "")
                    sys.stderr.write(so_far.line() + "\n")
                if count >= plan.goal or now - began >= plan.seconds:
                    break
    except Exception:  # noqa: BLE001 - whatever it is, it is what we look for
        find = f"{name}: after {at}; again: python -m tests.fuzz {name} --seed {plan.seed} "
        find += f"--life {at.split()[1]}\n"
        find += traceback.format_exc()
        return Result(name, unit, count, episodes, time.monotonic() - began, find)
    return Result(name, unit, count, episodes, time.monotonic() - began, "")


def _episodes(name: str, seed: int, life: int) -> Generator[tuple[str, int], None, None]:
    """Yield which episode it was and how much it did, without an end."""
    while True:
        source = life_source(name, seed, life)
        fuzzer = make_fuzzer(name, source)
        try:
            for episode in range(EPISODES_PER_LIFE):
                before = fuzzer.mutations
                fuzzer.episode(source)
                yield f"life {life} episode {episode}", fuzzer.mutations - before
        except Exception:
            with suppress(Exception):  # what was found matters, not what it left behind
                fuzzer.close()
            raise
        except GeneratorExit:
            fuzzer.close()
            raise
        fuzzer.close()
        life += 1


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--count", type=int, help="so many mutations of each target")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--life", type=int, default=0, help="where to begin; a find names it")
    parser.add_argument("--json", action="store_true", help="results as one JSON array")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    options = parser.parse_args(words)
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    return options


def _goal(name: str) -> int:
    return NIGHTLY_MUTATIONS // len(RING_TARGETS) if name in RING_TARGETS else NIGHTLY_OTHERS


def main(words: list[str] | None = None) -> int:
    """Run the targets one after the other and print what they did."""
    options = _options(words)
    names = options.targets or list(TARGETS)
    if options.guided:
        from tests.fuzz.guided import run_guided

        return max(run_guided(name, options.count or 0, options.seconds) for name in names)
    results = []
    for name in names:
        goal = _goal(name) if options.count is None else options.count
        plan = Plan(goal, options.seconds, options.seed, options.life, options.json)
        results.append(fuzz(name, plan))
        if not options.json:
            sys.stdout.write((results[-1].find or results[-1].line()) + "\n")
            sys.stdout.flush()
    rings = sum(result.done for result in results if result.target in RING_TARGETS)
    if options.json:
        sys.stdout.write(json.dumps([result._asdict() for result in results]) + "\n")
    else:
        messages = sum(result.done for result in results if result.unit == "messages")
        sys.stdout.write(f"{rings:,} virtqueue mutations, {messages:,} channel messages\n")
    return 1 if any(result.find for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
