# SPDX-License-Identifier: BSD-3-Clause
"""Enter a device's jail in a child process, to find out whether this host allows it."""

from __future__ import annotations

import os
import struct

from jail.ids import choose
from jail.namespaces import CONFINED_HINT, clone_into, write_id_maps
from jail.plan import device_jail
from sys_util.errors import HostError, VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jail.ids import Ids

# seccomp(2): one instruction, BPF_RET | BPF_K with SECCOMP_RET_ALLOW.
_ALLOW_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
_MAX_REPORT_BYTES: Final = 4096


def try_jail() -> None:
    """Take every step of the jail in a child, with a filter that allows everything.

    Call it in a process with one thread.

    Raises:
        HostError: the host refuses a step; it names the step.
    """
    ids = choose()  # before the clone, because the child has other ids
    report_read, report_write = os.pipe()
    go_read, go_write = os.pipe()
    try:
        pid = clone_into()
        if pid == 0:
            os.close(go_write)  # otherwise the child would not notice the parent's end
            _be_jailed(go_read, report_write, ids)
        os.close(report_write)
        report_write = -1
        try:
            write_id_maps(pid, ids.of_device(pid))
            os.write(go_write, b"!")
            report = os.read(report_read, _MAX_REPORT_BYTES)
        finally:
            os.close(go_write)
            go_write = -1
            os.waitpid(pid, 0)
    finally:
        for fd in (report_read, report_write, go_read, go_write):
            if fd >= 0:
                os.close(fd)
    if report != b"ok":
        reason = report.decode(errors="replace") or "died"
        hint = "" if CONFINED_HINT in reason else CONFINED_HINT
        raise HostError("enter", f"the jail: {reason}", hint)


def _be_jailed(go_fd: int, report_fd: int, ids: Ids) -> None:
    """Run as the child: report one line and exit."""
    report = "died"
    try:
        plan = device_jail(
            policy_name="doctor",
            bpf=_ALLOW_ALL,
            keep_fds=(2, go_fd, report_fd),
            max_file_bytes=0,
            ids=ids.of_device().inside(),
        )
        # Without the byte, the parent could not write the id maps, and raises that error itself.
        if os.read(go_fd, 1):
            plan.enter()
            plan.load_filter()
            report = "ok"
    except VmmError as error:
        report = describe(error)
    finally:
        os.write(report_fd, report.encode(errors="replace"))
        os._exit(0)
