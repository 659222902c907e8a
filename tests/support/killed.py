# SPDX-License-Identifier: BSD-3-Clause
"""Kill the process of a device at any of its steps, and look at what it left behind.

A child is forked that has everything the test has. It serves, and kills itself (SIGKILL: no
cleaning up) when the code of the devices begins its n-th line. What it shares with the test is what
device processes share with their successors: guest memory, the saved state, descriptors.

Between two changes of that, a kill is like any other. So a first child runs to the end and notes
the lines at which something is new, and those are all the kills there are.
"""

from __future__ import annotations

import array
import mmap
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, Protocol, TypeVar

from devices.virtio.saved_state import PAGE_CELLS, SavedState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Tracer = Callable[[FrameType, str, object], "Tracer | None"]

_MARK = f"{os.sep}devices{os.sep}virtio{os.sep}"
_FAILED = 3


class Stage(Protocol):
    """What device processes come and go on."""

    def seen(self) -> object:
        """Return everything that outlives a process, or a digest of it."""
        ...

    def close(self) -> None: ...


S = TypeVar("S", bound=Stage)


def shared_state() -> SavedState:
    """Return a saved state that outlives the process which stores it."""
    return SavedState(memoryview(mmap.mmap(-1, 8 * PAGE_CELLS)).cast("Q"))


def each_kill(make: Callable[[], S], serve: Callable[[S], object]) -> Iterator[S]:
    """Yield a stage for each moment at which its process can be killed, and one for none."""
    for stage, _ in each_kill_and_lines(make, serve):
        yield stage


def each_kill_and_lines(
    make: Callable[[], S], serve: Callable[[S], object]
) -> Iterator[tuple[S, int]]:
    """Do so, and tell for how many lines of code each moment stands; 0 for no kill."""
    stage = make()
    *moments, lines = _moments(stage, serve)
    stage.close()
    for moment, end in zip(moments, [*moments[1:], lines], strict=True):
        stage = make()
        _run_until(moment, lambda stage=stage: serve(stage))  # type: ignore[misc]
        yield stage, end - moment
        stage.close()
    stage = make()
    _run_until(None, lambda: serve(stage))
    yield stage, 0
    stage.close()


def _moments(stage: S, serve: Callable[[S], object]) -> list[int]:
    """Return the lines at whose beginning something is other than before, and their number."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            lines, found, last = 0, array.array("I"), None

            def on_line() -> None:
                nonlocal lines, last
                seen = stage.seen()
                if seen != last:
                    last = seen
                    found.append(lines)
                lines += 1

            _trace(on_line)
            serve(stage)
            sys.settrace(None)
            found.append(lines)
            os.write(write_end, found.tobytes())
            os._exit(0)
        finally:
            os._exit(_FAILED)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0
    moments = list(struct.unpack(f"{len(data) // 4}I", data))
    assert len(moments) > 3, f"nothing happens in {moments[-1]} lines"
    return moments


def _run_until(moment: int | None, serve: Callable[[], object]) -> None:
    """Run ``serve`` in a process of its own, which is killed at its ``moment``-th line."""
    pid = os.fork()
    if pid == 0:
        try:
            left = moment

            def on_line() -> None:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if left is not None:
                    left -= 1

            _trace(on_line)
            serve()
            sys.settrace(None)
            os._exit(0)
        finally:
            os._exit(_FAILED)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if moment is None else -signal.SIGKILL)


def _trace(on_line: Callable[[], None]) -> None:
    """Call ``on_line`` when a line of the devices' code begins."""

    def trace_line(_frame: FrameType, event: str, _argument: object) -> Tracer:
        if event == "line":
            on_line()
        return trace_line

    def trace_call(frame: FrameType, _event: str, _argument: object) -> Tracer | None:
        name = frame.f_code.co_filename
        ours = _MARK in name and f"{os.sep}tests{os.sep}" not in name
        return trace_line if ours else None

    sys.settrace(trace_call)
