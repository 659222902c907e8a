# SPDX-License-Identifier: BSD-3-Clause
"""The same targets, guided by coverage: atheris (libFuzzer) makes the bytes that decide.

Needs the ``fuzz`` extra. Inputs that reach new code are kept in ``.cache/fuzz/TARGET`` for the next
run; one that finds something becomes ``.cache/fuzz/TARGET-crash-…``, which
``python -m tests.fuzz.guided TARGET FILE`` tries again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.fuzz.source import BytesSource
from tests.fuzz.targets import EPISODES_PER_LIFE, Fuzzer, life_source, make_fuzzer

ROOT: Final = Path(__file__).parents[2]
CORPORA: Final = ROOT / ".cache" / "fuzz"
# Ours, and msgpack is C: there is nothing to see in it.
OURS: Final = ("devices", "crosvm_py", "sys_util")
# A driver of some twenty steps; longer ones find the same more slowly.
MAX_INPUT_BYTES: Final = 4096


class Guided:
    """One target for libFuzzer. A rig serves many inputs: a new one for each costs too much."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._life = 0
        self._episodes = 0
        self._fuzzer: Fuzzer = make_fuzzer(name, life_source(name, 0, 0))

    def __call__(self, data: bytes) -> None:
        if self._episodes == EPISODES_PER_LIFE:
            self._fuzzer.close()
            self._life += 1
            self._episodes = 0
            self._fuzzer = make_fuzzer(self._name, life_source(self._name, 0, self._life))
        self._episodes += 1
        self._fuzzer.episode(BytesSource(data))


def run_guided(name: str, runs: int, seconds: float) -> int:
    """Fuzz one target in a process of its own, which libFuzzer ends; return its exit status."""
    if find_spec("atheris") is None:
        sys.stderr.write("fuzz: no atheris here: pip install '.[fuzz]'\n")
        return 1
    corpus = CORPORA / name
    corpus.mkdir(parents=True, exist_ok=True)
    words = [
        f"-artifact_prefix={CORPORA}/{name}-",
        f"-max_len={MAX_INPUT_BYTES}",
        "-len_control=10",
        "-print_final_stats=1",
    ]
    words += [f"-runs={runs or -1}"]
    if seconds != float("inf"):
        words.append(f"-max_total_time={int(seconds)}")
    command = [sys.executable, "-m", "tests.fuzz.guided", name, *words, str(corpus)]
    return subprocess.run(command, check=False, env=os.environ, cwd=ROOT).returncode


def main(words: list[str]) -> None:
    """Be that process: ``TARGET`` and what libFuzzer understands."""
    import atheris

    name = words[1]
    with atheris.instrument_imports(include=OURS):
        guided = Guided(name)
    atheris.Setup([words[0], *words[2:]], guided)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
