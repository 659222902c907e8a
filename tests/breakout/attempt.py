# SPDX-License-Identifier: BSD-3-Clause
"""What an attempt is: an act of injected code, and which walls must stop it.

An act that is refused ends with ``Refused``, as the call left it. One that returns has broken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.breakout.hands import SYSCALLS, Refused, Word, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

KINDS: Final = (
    "block",
    "rng",
    "net",
    "vhost-net",
    "vsock",
    "vhost-vsock",
    "balloon",
    "console",
    "virtio-mem",
)
NOBODY: Final[frozenset[str]] = frozenset()
EVERYBODY: Final = frozenset(KINDS)


@dataclass(frozen=True, slots=True)
class Cell:
    """What the injected code finds around itself, and what it knows of the world outside.

    The process ids are the host's. ``files`` are the descriptors of the device's own resources,
    ``fds`` all that it holds; ``allowed_ioctls`` are the requests of its policy. Sweeps try every
    ``sweep_step``-th number.
    """

    kind: str
    channel: int
    memory: int
    guest_at: int
    files: tuple[int, ...]
    fds: tuple[int, ...]
    vmm: int
    warden: int
    sibling: int
    abstract: bytes
    beside: bytes
    control: bytes
    port: int
    file_bytes: int
    allowed_ioctls: tuple[int, ...]
    sweep_step: int

    def targets(self) -> tuple[tuple[str, int], ...]:
        """Return whom it must not reach."""
        return (("vmm", self.vmm), ("warden", self.warden), ("a sibling", self.sibling))


class Attempt(NamedTuple):
    """One row of the table.

    ``jail``: the jail refuses it even where the filter is left out; ``but`` not for these kinds.
    ``proof``: it works where there is neither, so that what is refused is the deed and not a typo.
    ``alone``: the filter kills for it, and no trap comes back.
    """

    group: str
    name: str
    act: Callable[[Cell], object]
    jail: bool = False
    but: frozenset[str] = NOBODY
    only: frozenset[str] = EVERYBODY
    proof: bool = False
    alone: bool = False

    def is_for(self, kind: str) -> bool:
        """Whether a device of this kind has what the attempt needs."""
        return kind in self.only

    def has_jail(self, kind: str) -> bool:
        """Whether the jail alone has to stop it."""
        return self.jail and kind not in self.but


def refuse(name: str, error: int) -> Refused:
    """Return the refusal of a deed whose calls all passed and yet had no effect."""
    return Refused(name, SYSCALLS[name], (), error)


def just(name: str, *words: Word) -> Callable[[Cell], object]:
    """Make one system call; that it is carried out is the break-out."""
    return lambda _cell: call(name, *words)


def opens(name: str, *words: Word) -> Callable[[Cell], object]:
    """Make one system call that returns a descriptor, and close it again."""
    return lambda _cell: call("close", call(name, *words))


def on_each(
    fds: Callable[[Cell], Iterable[int]], act: Callable[[int], object]
) -> Callable[[Cell], object]:
    """Act on each descriptor; one success is a break-out."""
    return lambda cell: any_of([partial(act, fd) for fd in fds(cell)])


def any_of(acts: Sequence[Callable[[], object]]) -> None:
    """Return if one act succeeds.

    Raises:
        Refused: none did. Of the refusals it is the jail's, if the filter let any pass.
    """
    refusals: list[Refused] = []
    for act in acts:
        try:
            act()
        except Refused as refused:
            refusals.append(refused)
        else:
            return
    raise min(refusals, key=lambda refused: refused.trapped)


def every(cell: Cell) -> Iterable[int]:
    """Return every descriptor of the process."""
    return cell.fds


def memories(cell: Cell) -> Iterable[int]:
    """Return guest memory's descriptor."""
    return (cell.memory,)


def own_files(cell: Cell) -> Iterable[int]:
    """Return the descriptors of the device's own resources."""
    return cell.files
