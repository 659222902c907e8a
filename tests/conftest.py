# SPDX-License-Identifier: BSD-3-Clause
"""For every test: what is logged while it runs, and whether this machine can run it."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings

from sys_util import log

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


# A machine that is busy may take any time for an example.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# The files that take the longest: a worker that got one last would be waited for.
LONGEST_FIRST: Final = (
    "tests/baremetal/test_places.py",
    "tests/baremetal/test_bad_input.py",
    "tests/baremetal/test_reboot_storm.py",
    "tests/seccomp/test_doors.py",
    "tests/baremetal/test_plug.py",
    "tests/breakout/",
    "tests/fuzz/",
    "tests/baremetal/",
    "tests/crosvm_py/test_borders.py",
    "tests/crosvm_py/device_process/",
)


def pytest_configure(config: pytest.Config) -> None:
    """Take signals as a program does that a terminal has started.

    A shell without job control starts what it puts in the background with the first two ignored,
    and nohup with the third; the program keeps what its starter ignores.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # keep our order; its own is by numbers of tests


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the collector of garbage away meanwhile: tests are many, and all of them stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def _rank(item: pytest.Item) -> int:
    """Return where the file of a test comes; a sort by it leaves all else in its order."""
    for rank, start in enumerate(LONGEST_FIRST):
        if item.nodeid.startswith(start):
            return rank
    return len(LONGEST_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return
    for item in items:
        if item.get_closest_marker("kvm"):
            item.add_marker(pytest.mark.skip(reason="no usable /dev/kvm"))


@pytest.fixture
def records() -> Iterator[list[tuple[int, str, str]]]:
    """Catch what is logged: level, module and text."""
    records: list[tuple[int, str, str]] = []
    log.set_sink(lambda level, module, text: records.append((level, module, text)))
    yield records
    log.set_sink(log.stderr_sink)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Catch what is logged: the text alone."""
    lines: list[str] = []
    log.set_sink(lambda _level, _module, text: lines.append(text))
    yield lines
    log.set_sink(log.stderr_sink)


@pytest.fixture
def steady_fds() -> Iterator[None]:
    """Let nothing but the test open and close descriptors, whose number it compares.

    Earlier tests may have left some in circles of objects, which the collector finds some time.
    """
    gc.disable()
    yield
    gc.enable()
