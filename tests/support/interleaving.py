# SPDX-License-Identifier: BSD-3-Clause
"""Run programs in every possible order of their accesses to shared memory.

A program is a function that makes each access through an ``Accesses``. Given the same results it
has to make the same accesses, so that a state needs to contain only the results so far: the program
is run again from its start to learn its next access. So real code can be explored, not only a model
of it.

The memory is that of x86 (TSO): a store waits in a buffer of its processor, so that others may see
it later than the loads that follow it, unless a fence is between them. A system call on an eventfd
takes a lock, and so is a fence, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Program = Callable[["Accesses"], None]

T = TypeVar("T")

Kind = Literal["load", "store", "fence", "signal", "take", "wait"]

MOST_STATES: Final = 500_000


class Access(NamedTuple):
    """One access: its kind, the word or eventfd, and the value that is stored."""

    kind: Kind
    name: str = ""
    value: int = 0


class NextAccess(BaseException):
    """Ends a run of a program at its first access whose result is not known yet."""

    def __init__(self, access: Access) -> None:
        super().__init__()
        self.access = access


class Accesses:
    """What one program does, with the results that it got so far."""

    def __init__(self, results: Sequence[int]) -> None:
        self._results = results
        self._at = 0
        self._reached: NextAccess | None = None

    def __call__(self, kind: Kind, name: str = "", value: int = 0) -> int:
        """Make an access; ``load`` and ``take`` return a value.

        ``signal`` makes an eventfd readable, ``take`` reads it without waiting, and ``wait`` waits
        until it is readable, as epoll_wait(2) does.
        """
        if self._reached is not None:
            raise self._reached  # code that tidies up after an exception goes no further either
        if self._at == len(self._results):
            self._reached = NextAccess(Access(kind, name, value))
            raise self._reached
        self._at += 1
        return self._results[self._at - 1]


Buffer: TypeAlias = tuple[tuple[str, int], ...]


class State(NamedTuple):
    """Memory by name, the stores that each program's processor keeps back, and all results."""

    memory: tuple[tuple[str, int], ...]
    buffers: tuple[Buffer, ...]
    results: tuple[tuple[int, ...], ...]


def explore(programs: Sequence[Program]) -> Iterator[frozenset[int]]:
    """Try every order of what the programs do; every word is 0 at first.

    For each state in which nothing can happen any more, yield which programs have not ended.

    An access that nobody else can notice or prevent is made at once: that leaves out orders, but no
    outcome.
    """
    known: dict[tuple[int, tuple[int, ...]], Access | None] = {}

    def next_access(number: int, results: tuple[int, ...]) -> Access | None:
        key = (number, results)
        if key not in known:
            known[key] = _run(programs[number], results)
        return known[key]

    start = State((), ((),) * len(programs), ((),) * len(programs))
    seen, to_visit = {start}, [start]
    while to_visit:
        state = to_visit.pop()
        found = list(_successors(state, next_access))
        if not found:
            results = enumerate(state.results)
            yield frozenset(at for at, its in results if next_access(at, its) is not None)
        for successor in found:
            if successor not in seen:
                seen.add(successor)
                to_visit.append(successor)
        if len(seen) > MOST_STATES:
            raise RuntimeError(f"more than {MOST_STATES} states")


def _run(program: Program, results: tuple[int, ...]) -> Access | None:
    """Return the access after those with ``results``, or ``None`` if the program has ended."""
    try:
        program(Accesses(results))
    except NextAccess as reached:
        return reached.access
    return None


def _successors(
    state: State, next_access: Callable[[int, tuple[int, ...]], Access | None]
) -> Iterator[State]:
    memory = dict(state.memory)
    for number, results in enumerate(state.results):
        access = next_access(number, results)
        if access is not None and access.kind in ("store", "fence", "wait"):
            for successor in _perform(state, memory, number, access):
                yield successor
                return
    for number, buffer in enumerate(state.buffers):
        if buffer:
            (name, value), *rest = buffer
            yield _store(state, memory, name, value)._replace(
                buffers=_with(state.buffers, number, tuple(rest))
            )
        access = next_access(number, state.results[number])
        if access is not None:
            yield from _perform(state, memory, number, access)


def _perform(
    state: State, memory: Mapping[str, int], number: int, access: Access
) -> Iterator[State]:
    buffer = state.buffers[number]
    kind, name, value = access
    result, after = 0, state
    if kind == "load":
        own = [stored for at, stored in buffer if at == name]
        result = own[-1] if own else memory.get(name, 0)
    elif kind == "store":
        after = after._replace(buffers=_with(after.buffers, number, (*buffer, (name, value))))
    elif buffer:
        return  # a fence waits until the buffer is empty
    elif kind == "signal":
        after = _store(after, memory, name, 1)
    elif kind == "take":
        result = memory.get(name, 0)
        after = _store(after, memory, name, 0)
    elif kind == "wait" and not memory.get(name, 0):
        return
    results = (*after.results[number], result)
    yield after._replace(results=_with(after.results, number, results))


def _store(state: State, memory: Mapping[str, int], name: str, value: int) -> State:
    return state._replace(memory=tuple(sorted({**memory, name: value}.items())))


def _with(items: tuple[T, ...], at: int, item: T) -> tuple[T, ...]:
    return (*items[:at], item, *items[at + 1 :])
