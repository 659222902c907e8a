# SPDX-License-Identifier: BSD-3-Clause
"""A process under a recording filter: its calls arrive, and succeed or fail as we answer."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Final

import pytest

from seccomp import syscall_number
from seccomp.record import recording_filter
from seccomp.syscalls import machine_arch
from sys_util import linux
from sys_util.channel import socket_pair
from sys_util.seccomp_notify import Listener, load_recording_filter

if TYPE_CHECKING:
    from collections.abc import Callable

NAME: Final = "own_device"
DONE: Final = 42
PATIENCE_MS: Final = 60_000


class Subject:
    """A child that runs ``action`` under the recording filter; ``status`` is its exit status."""

    def __init__(self, action: Callable[[], None]) -> None:
        bpf = recording_filter(machine_arch())
        ours, theirs = socket_pair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
                load_recording_filter(bpf, theirs.detach(), NAME)
                action()
                os._exit(DONE)
            finally:
                os._exit(1)
        theirs.close()
        with ours:
            name, fds, _, _ = socket.recv_fds(ours, 64, 2)
            self.last = ours.recv(1)  # the child has closed its end
        self.name = name.decode()
        (fd,) = fds
        self.listener = Listener(fd)
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def serve(self, refuse: dict[str, int] | None = None) -> int:
        """Answer every call until the child has ended; return its exit status."""
        refused = {syscall_number(name): error for name, error in (refuse or {}).items()}
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        while poll.poll(PATIENCE_MS)[0][1] & select.POLLIN:
            call = self.listener.receive()
            if call is None:
                continue
            self.calls.append((call.number, tuple(call.args)))
            if call.number in refused:
                self.listener.refuse(call.id, refused[call.number])
            else:
                self.listener.let_go_on(call.id)
        self.listener.close()
        return self.wait()

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def arguments(self, name: str) -> list[tuple[int, ...]]:
        return [args for number, args in self.calls if number == syscall_number(name)]


def test_calls_arrive_with_their_arguments_and_go_on() -> None:
    subject = Subject(lambda: os.kill(os.getppid(), 0))
    assert subject.serve() == DONE
    assert (subject.name, subject.last) == (NAME, b"")
    assert subject.arguments("kill")[0][:2] == (os.getpid(), 0)


def test_sending_the_listener_is_no_call_of_the_process() -> None:
    subject = Subject(lambda: None)
    subject.serve()
    assert not subject.arguments("sendmsg")
    assert not subject.arguments("close")


def test_refused_call_fails_and_does_not_happen() -> None:
    def action() -> None:
        try:
            os.kill(os.getpid(), signal.SIGKILL)
        except OSError as error:
            os._exit(error.errno or 0)

    assert Subject(action).serve({"kill": errno.EPERM}) == errno.EPERM


def test_every_thread_is_asked_about() -> None:
    def action() -> None:
        thread = threading.Thread(target=lambda: os.kill(os.getppid(), 0))
        thread.start()
        thread.join()

    subject = Subject(action)
    assert subject.serve() == DONE
    assert len(subject.arguments("kill")) == 1


def test_process_that_ends_while_it_waits_disturbs_nobody() -> None:
    subject = Subject(lambda: os.kill(os.getppid(), 0))
    poll = select.poll()
    poll.register(subject.listener.fileno(), select.POLLIN)
    poll.poll(PATIENCE_MS)
    call = subject.listener.receive()
    assert call is not None
    os.kill(subject.pid, signal.SIGKILL)
    assert subject.wait() == -signal.SIGKILL
    subject.listener.let_go_on(call.id)
    subject.listener.refuse(call.id, errno.EPERM)
    assert poll.poll(PATIENCE_MS)[0][1] & select.POLLHUP
    assert subject.listener.receive() is None
    subject.listener.close()


def test_process_without_its_recorder_gets_nothing_done() -> None:
    read_end, write_end = os.pipe()

    def action() -> None:
        os.write(write_end, b"x")

    subject = Subject(action)
    subject.listener.close()
    assert subject.wait() == 1
    os.close(write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_filter_whose_listener_reaches_nobody_is_an_error() -> None:
    ours, theirs = socket_pair()
    ours.close()
    closed_socket = theirs.detach()
    pid = os.fork()
    if pid == 0:
        try:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            load_recording_filter(recording_filter(machine_arch()), closed_socket, NAME)
        except OSError as error:
            os._exit(error.errno or 0)
        finally:
            os._exit(DONE)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EPIPE
    os.close(closed_socket)


def test_filter_that_the_kernel_refuses_is_an_error() -> None:
    ours, theirs = socket_pair()
    with ours, theirs, pytest.raises(OSError, match="Invalid argument"):
        load_recording_filter(b"", theirs.fileno(), NAME)
