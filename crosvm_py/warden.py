# SPDX-License-Identifier: BSD-3-Clause
"""The warden: a single-threaded process that makes the device processes and buries them.

It exists because a process with threads must not fork, and because it forks in a millisecond what
is imported already. It holds no KVM descriptor and maps no guest memory; what a device needs
passes through it and is closed. When the vmm goes away, however it ends, the warden ends every
device and tidies up what the vmm cannot.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import stat

from crosvm_py import warden_protocol as protocol
from crosvm_py.device_kinds import DEVICE_KINDS
from crosvm_py.device_process import run_device
from jail.namespaces import IdMap, clone_into, id_map_for, write_id_maps
from jail.plan import confine_warden, device_jail
from jail.steps import DieWithParent
from seccomp import syscall_name
from sys_util import linux
from sys_util.channel import Channel, ChannelClosed
from sys_util.errors import HostError, ProtocolError, describe
from sys_util.event_loop import EventLoop
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import NoReturn

    from jail.plan import JailPlan
    from seccomp import Policy

log = get_logger("crosvm.warden")

EXIT_BUG: Final = 70
_STDIO: Final = frozenset({0, 1, 2})


def be_warden(
    sock: socket.socket,
    null_fd: int,
    policies: Mapping[str, Policy] | None,
    kinds: Iterable[str],
) -> None:
    """Be the warden, until the vmm closes the other end of ``sock``.

    Args:
        sock: the channel to the vmm.
        null_fd: /dev/null, for the devices.
        policies: the compiled policy of every kind; ``None`` for ``--disable-sandbox``.
        kinds: the kinds of device that will be asked for, imported ahead.
    """
    os.setsid()
    linux.set_process_name("crosvm-warden")
    if policies is not None:
        confine_warden(maps_root=any(DEVICE_KINDS[kind].sees_sockets for kind in kinds))
    for kind in kinds:
        DEVICE_KINDS[kind].preload()
    gc.freeze()
    gc.enable()
    _Warden(Channel(sock, protocol.WARDEN_CODEC), policies, null_fd).run()


class _Child:
    """One device process."""

    def __init__(self, device_id: int, pid: int) -> None:
        self.device_id = device_id
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)


class _Warden:
    """Serve ``Spawn``, ``Kill`` and ``Resize`` until the vmm closes the channel."""

    def __init__(
        self, channel: Channel, policies: Mapping[str, Policy] | None, null_fd: int
    ) -> None:
        self._channel = channel
        self._policies = policies
        self._null_fd = null_fd
        self._children: dict[int, _Child] = {}
        self._loop = EventLoop()

    def run(self) -> None:
        self._loop.add(self._channel.fileno(), self._on_message)
        try:
            self._loop.run()
        except ChannelClosed:
            log.debug("the vmm has gone")
        finally:
            for child in self._children.values():
                linux.pidfd_send_signal(child.pidfd, signal.SIGKILL)
                os.waitpid(child.pid, 0)

    def _on_message(self, _events: int) -> None:
        received = self._channel.receive()
        if received is None:
            return
        message, fds = received
        try:
            match message:
                case protocol.Spawn():
                    self._spawn(message, fds)
                case protocol.Kill(device_id):
                    self._kill(device_id)
                case protocol.VmmDenied(number):
                    # Its last words; the channel is closed next.
                    name = syscall_name(number)
                    log.error("vmm: killed by seccomp: %s (%d), policy vmm", name, number)
                case protocol.Resize():
                    self._channel.send(self._resize(message, fds))
                case _:
                    raise ProtocolError(f"unexpected {type(message).__name__}")
        finally:
            for fd in fds:
                os.close(fd)

    def _kill(self, device_id: int) -> None:
        child = self._children.get(device_id)
        if child is not None:  # else it ended by itself, and the vmm will read so
            linux.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def _resize(self, order: protocol.Resize, fds: list[int]) -> protocol.Resized:
        if len(fds) != 1:
            raise ProtocolError(f"Resize with {len(fds)} descriptors")
        device_id = order.device_id
        child = self._children.get(device_id)
        if child is None:
            return protocol.Resized(device_id, 0, "the device process has ended")
        try:
            size_bytes = resize_file(child.pid, fds[0], order.size_bytes)
        except OSError as error:
            return protocol.Resized(device_id, 0, f"{error.strerror}"[:256])
        return protocol.Resized(device_id, size_bytes, "")

    def _spawn(self, order: protocol.Spawn, fds: list[int]) -> None:
        try:
            pid = self._fork(order, fds)
        except HostError as error:
            self._channel.send(protocol.SpawnFailed(order.device_id, describe(error)[:1024]))
            return
        child = _Child(order.device_id, pid)
        self._children[order.device_id] = child
        self._loop.add(child.pidfd, lambda _events: self._bury(child))
        self._channel.send(protocol.Spawned(order.device_id, pid))

    def _fork(self, order: protocol.Spawn, fds: list[int]) -> int:
        """Fork a device process and let it go once its ids are mapped."""
        policies = self._policies
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork() if policies is None else clone_into()
            if pid == 0:
                os.close(go_write)
                _be_device(order, fds, go_read, self._null_fd, self._jail(order, fds))
            try:
                if policies is not None:
                    write_id_maps(pid, id_map_for(pid, _owner(order.directory)))
            except HostError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            os.write(go_write, b"!")
        finally:
            os.close(go_read)
            os.close(go_write)
        return pid

    def _jail(self, order: protocol.Spawn, fds: list[int]) -> JailPlan | None:
        if self._policies is None:
            return None
        kind = DEVICE_KINDS[order.kind]
        policy = self._policies[kind.policy_name]
        return device_jail(
            policy_name=policy.name,
            bpf=policy.bpf,
            keep_fds=_STDIO.union(fds),
            max_file_bytes=order.max_file_bytes,
            directory=order.directory.path,
            hidden=order.directory.hidden,
            max_open_files=kind.max_open_files,
            max_processes=kind.max_processes,
        )

    def _bury(self, child: _Child) -> None:
        _, wait_status = os.waitpid(child.pid, 0)
        self._loop.remove(child.pidfd)
        os.close(child.pidfd)
        del self._children[child.device_id]
        status = os.waitstatus_to_exitcode(wait_status)
        self._channel.send(protocol.Exited(child.device_id, child.pid, status))


def resize_file(pid: int, fd: int, size_bytes: int) -> int:
    """Give a file another size and its writer, a child of ours, another bound; return the size.

    Raises:
        OSError: the host refuses it; nothing has changed.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    bound = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    if soft != resource.RLIM_INFINITY:  # else it has no jail
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bound, hard))
    try:
        os.ftruncate(fd, size_bytes)
    except OSError:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        raise
    return size_bytes


def _owner(directory: protocol.Directory) -> IdMap | None:
    return IdMap(directory.uid, directory.gid) if directory.path else None


def _be_device(
    order: protocol.Spawn, fds: list[int], go_fd: int, null_fd: int, jail: JailPlan | None
) -> NoReturn:
    status = EXIT_BUG
    try:
        for fd in _STDIO:
            os.dup2(null_fd, fd)
        if os.read(go_fd, 1):  # nothing: the warden died or gave up
            if jail is None:
                linux.close_all_fds_except({*_STDIO, *fds})
                DieWithParent().apply()
            sock = socket.socket(fileno=fds[0])
            status = run_device(order, sock, fds[1:], jail)
    finally:
        os._exit(status)
