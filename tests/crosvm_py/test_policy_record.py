# SPDX-License-Identifier: BSD-3-Clause
"""The recorder and the processes of its VM: what is recorded, and in which order they end."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.end_signals import END_SIGNALS
from crosvm_py.policy_record import Fork, Recorder, fork_vm
from jail.plan import device_jail
from seccomp.loader import parse_policy, policy_path
from seccomp.record import Recording, recording_filter
from seccomp.syscalls import machine_arch
from sys_util import linux
from sys_util.seccomp_notify import load_recording_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

NAME: Final = "rng_device"
STATUS: Final = 42
SIGNALLED: Final = 128


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in END_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def recording() -> Recording:
    return Recording(machine_arch(), parse_policy(policy_path(NAME)), exact=True)


def vm(life: Callable[[int], None]) -> Fork:
    """Fork a VM that does ``life`` with the socket of its recorder, and ends with STATUS."""
    fork = fork_vm()
    if fork.pid == 0:
        _be(lambda: life(fork.fd))
    return fork


def _be(life: Callable[[], None]) -> NoReturn:
    try:
        for signum in END_SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        life()
        os._exit(STATUS)
    finally:
        os._exit(1)


def confine(recorder: int, name: str = NAME) -> None:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    load_recording_filter(recording_filter(machine_arch()), recorder, name)


def device(recorder: int, life: Callable[[], None]) -> int:
    """Fork a process of the VM that is recorded, and wait for it; return its status."""
    pid = os.fork()
    if pid == 0:
        confine(recorder)
        _be(life)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def called(recording: Recording) -> set[str]:
    return set(recording.conditions()) - {"exit_group", "write"}


def test_calls_are_recorded_and_the_status_is_passed_on(recording: Recording) -> None:
    def life(recorder: int) -> None:
        confine(recorder)
        os.getrandom(1)

    assert Recorder(vm(life), {NAME: recording}).run() == STATUS
    assert "getrandom" in called(recording)
    assert (recording.processes, recording.refused) == (1, {})


def test_every_process_under_the_policy_is_recorded(recording: Recording) -> None:
    def life(recorder: int) -> None:
        assert device(recorder, lambda: os.kill(os.getppid(), 0)) == STATUS
        assert device(recorder, os.sync) == STATUS

    assert Recorder(vm(life), {NAME: recording}).run() == STATUS
    assert recording.processes == 2
    assert {"kill", "sync"} <= called(recording)


def test_process_that_is_killed_leaves_the_others_recorded(recording: Recording) -> None:
    def life(recorder: int) -> None:
        killed = device(recorder, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert killed == -signal.SIGKILL
        assert device(recorder, os.sync) == STATUS

    assert Recorder(vm(life), {NAME: recording}).run() == STATUS
    assert recording.processes == 2
    assert "sync" in called(recording)


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        pytest.param(lambda: os.execv("/bin/true", ["true"]), errno.EPERM, id="execve"),
        pytest.param(os.fork, errno.EPERM, id="fork"),
        pytest.param(lambda: os.open("/", os.O_RDONLY), errno.ENOENT, id="file"),
        pytest.param(lambda: os.stat("/"), errno.ENOENT, id="stat"),
    ],
)
def test_what_no_policy_may_have_fails_and_is_not_recorded(
    recording: Recording, attempt: Callable[[], object], error: int
) -> None:
    def life(recorder: int) -> None:
        confine(recorder)
        try:
            attempt()
        except OSError as found:
            os._exit(found.errno or 0)

    assert Recorder(vm(life), {NAME: recording}).run() == error
    assert not {"execve", "clone", "clone3", "fork", "openat", "newfstatat"} & called(recording)
    assert bool(recording.refused) == (error == errno.EPERM)


def test_policy_that_is_not_recorded_gets_no_answer(recording: Recording) -> None:
    def life(recorder: int) -> None:
        confine(recorder, "other_device")
        os.sync()
        os.kill(os.getppid(), 0)

    assert Recorder(vm(life), {NAME: recording}).run() == 1
    assert recording.processes == 0


@pytest.mark.parametrize("number", END_SIGNALS)
def test_signal_is_passed_on(recording: Recording, number: signal.Signals) -> None:
    def life(recorder: int) -> None:
        confine(recorder)
        os.sync()  # is answered by a recorder that has its handlers
        os.kill(os.getppid(), number)
        signal.pause()

    assert Recorder(vm(life), {NAME: recording}).run() == SIGNALLED + number


def test_vm_does_not_outlive_its_recorder() -> None:
    read_end, write_end = os.pipe()
    recorder = os.fork()
    if recorder == 0:
        fork = fork_vm()
        if fork.pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.write(write_end, b"!")
            signal.pause()
        os.waitpid(fork.pid, 0)
        os._exit(0)
    os.close(write_end)
    assert os.read(read_end, 1) == b"!"
    os.kill(recorder, signal.SIGKILL)
    os.waitpid(recorder, 0)
    assert os.read(read_end, 1) == b"", "the VM has let go of its end"
    os.close(read_end)


def test_jail_keeps_the_way_to_the_recorder_until_the_filter() -> None:
    plan = device_jail(policy_name=NAME, bpf=b"", keep_fds={1, 2}, max_file_bytes=0, recorder=7)
    assert plan.steps[0].describe() == "close all descriptors but 3"
    assert plan.describe()[-1] == "have the system calls for rng_device recorded, and few denied"
