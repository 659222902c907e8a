# SPDX-License-Identifier: BSD-3-Clause
"""What can be fuzzed, by name, and a life of each: a rig with many episodes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tests.fuzz.source import RandomSource

if TYPE_CHECKING:
    from tests.fuzz.source import Source

# Long enough for a leak to show, short enough to be repeated when something was found.
EPISODES_PER_LIFE = 500


class Fuzzer(Protocol):
    """One rig under attack. An ``AssertionError``, or any other exception, is a find."""

    mutations: int

    def episode(self, source: Source) -> None:
        """Attack once, and check what must hold."""
        ...

    def close(self) -> None:
        """Take the rig down and see that nothing is left."""
        ...


class Target(NamedTuple):
    """Where a fuzzer is. Modules are loaded when they are needed."""

    module: str
    maker: str
    unit: str  # what ``mutations`` counts


_RINGS = "mutations"
TARGETS = {
    "queue": Target("tests.fuzz.kinds", "QueueKind", _RINGS),
    "rng": Target("tests.fuzz.kinds", "RngKind", _RINGS),
    "block": Target("tests.fuzz.kinds", "BlockKind", _RINGS),
    "mem": Target("tests.fuzz.kinds", "MemKind", _RINGS),
    "balloon": Target("tests.fuzz.kinds", "BalloonKind", _RINGS),
    "net": Target("tests.fuzz.own_queue_kinds", "NetKind", _RINGS),
    "vsock": Target("tests.fuzz.own_queue_kinds", "VsockKind", _RINGS),
    "console": Target("tests.fuzz.own_queue_kinds", "ConsoleKind", _RINGS),
    "pci": Target("tests.fuzz.registers", "", "accesses"),
    "ports": Target("tests.fuzz.ports", "", "accesses"),
    "messages": Target("tests.fuzz.messages", "", "messages"),
    "channel": Target("tests.fuzz.channel", "", "messages"),
    "engine": Target("tests.fuzz.engine", "", "chains"),
    "http": Target("tests.fuzz.http", "", "requests"),
    "config": Target("tests.fuzz.config", "", "texts"),
}
RING_TARGETS = [name for name, target in TARGETS.items() if target.unit == _RINGS]


def make_fuzzer(name: str, source: Source) -> Fuzzer:
    """Build the rig of a target."""
    target = TARGETS[name]
    module = import_module(target.module)
    if target.unit == _RINGS:
        from tests.fuzz.ring_fuzzer import RingFuzzer

        return RingFuzzer(getattr(module, target.maker), source)
    fuzzer: Fuzzer = module.make(source)
    return fuzzer


def life_source(name: str, seed: int, life: int) -> RandomSource:
    """Return the decisions of one life, which its name makes repeatable."""
    return RandomSource(f"{name} {seed} {life}")
