# SPDX-License-Identifier: BSD-3-Clause
"""Run a probe inside a jail and bring back what it found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import msgpack

from jail.ids import JAILED_ID, IdMap, choose
from jail.namespaces import clone_into, write_id_maps
from jail.plan import MAX_DATA_BYTES, JailPlan, Step, device_jail
from jail.steps import ForbidFiles, LimitResources

# A test process has grown far beyond what a device may hold, and so has its child.
ROOMY_DATA_BYTES = 8 << 30


def jail_without_filter(
    keep: set[int],
    root_fd: int | None = None,
    ids: tuple[int | None, int | None] = (JAILED_ID, JAILED_ID),
    *,
    landlock: bool = False,
) -> JailPlan:
    """Return the jail without the walls that would hide the others."""
    plan = device_jail(
        policy_name="none",
        bpf=b"",
        keep_fds=keep,
        max_file_bytes=0,
        ids=ids,
        root_fd=root_fd,
    )
    steps = (roomy(step) for step in plan.steps if landlock or not isinstance(step, ForbidFiles))
    return JailPlan(tuple(steps), plan.filter_step)


def host_ids(owner: IdMap | None, pid: int = 0) -> IdMap:
    """Return the ids of a broker of that owner, or of a device."""
    return choose().of_device(pid) if owner is None else choose().of_user(owner)


def roomy(step: Step) -> Step:
    if not isinstance(step, LimitResources):
        return step
    return LimitResources(
        (*(set(step.limits) - {("DATA", MAX_DATA_BYTES)}), ("DATA", ROOMY_DATA_BYTES))
    )


def in_jail(
    probe: Callable[[], object],
    extra_fds: tuple[int, ...] = (),
    *,
    root: str = "",
    owner: IdMap | None = None,
    landlock: bool = False,
) -> object:
    """Return what ``probe`` returns (msgpack-able) from inside the device jail, without filter.

    With ``root``, a directory, from inside that of a broker.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY) if root else None
    ids = host_ids(owner).inside()
    result_read, result_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = clone_into()
    if pid == 0:
        try:
            os.read(go_read, 1)
            keep = {0, 1, 2, result_write, *extra_fds, *(() if root_fd is None else (root_fd,))}
            jail_without_filter(keep, root_fd, ids, landlock=landlock).enter()
            try:
                found = probe()
            except OSError as error:
                found = os.strerror(error.errno or 0)
            os.write(result_write, msgpack.packb(found))
        except BaseException as error:  # noqa: BLE001 - a child must not return into pytest
            os.write(result_write, msgpack.packb(f"{type(error).__name__}: {error}"))
        finally:
            os._exit(0)
    write_id_maps(pid, host_ids(owner, pid))
    os.write(go_write, b"!")
    for fd in (result_write, go_read, go_write, *(() if root_fd is None else (root_fd,))):
        os.close(fd)
    with open(result_read, "rb") as pipe:
        packed = pipe.read()
    os.waitpid(pid, 0)
    return msgpack.unpackb(packed)


class HeldJail:
    """A process that stands still inside the jail, to be looked at from the host side."""

    def __init__(self) -> None:
        self._done_read, self._done_write = os.pipe()
        ready_read, ready_write = os.pipe()
        go_read, go_write = os.pipe()
        self.pid = clone_into()
        if self.pid == 0:
            try:
                os.read(go_read, 1)
                jail_without_filter({ready_write, self._done_read}).enter()
                os.write(ready_write, b"r")
                os.read(self._done_read, 1)
            finally:
                os._exit(0)
        write_id_maps(self.pid, host_ids(None, self.pid))
        os.write(go_write, b"!")
        os.read(ready_read, 1)
        for fd in (ready_read, ready_write, go_read, go_write):
            os.close(fd)

    def status(self) -> dict[str, str]:
        with open(f"/proc/{self.pid}/status") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._done_read)
        os.close(self._done_write)
