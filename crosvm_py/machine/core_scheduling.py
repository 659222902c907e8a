# SPDX-License-Identifier: BSD-3-Clause
"""Core scheduling (core-scheduling.rst of Linux): no vCPU shares a core with anything else.

Hardware threads of one core share caches and buffers. Through them a guest can find out what
another program on the same core does. A thread with a scheduling cookie shares a core only with
threads that have the same cookie. As in crosvm, each vCPU has its own cookie by default, so that
programs within a guest are protected from each other, too; or all vCPUs of a VM have one cookie.

The user may also pin the threads of vCPUs to processors of the host.
"""

from __future__ import annotations

import errno
import os

from sys_util import linux
from sys_util.errors import ConfigError, HostError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.config import CpuSpec

log = get_logger("crosvm.run")

OPTION: Final = "--core-scheduling"
SMT: Final = "/sys/devices/system/cpu/smt/active"


def find_refusal() -> OSError | None:
    """Return why this host has no core scheduling, or ``None`` if it has.

    ENODEV means that no core has a second thread, according to the kernel.
    """
    try:
        linux.core_cookie()
    except OSError as error:
        if error.errno == errno.EINVAL and not _has_siblings():
            return OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return error
    return None


def separates_cores(wanted: bool | None) -> bool:
    """Decide whether vCPUs get cores of their own; ``wanted`` is ``None`` for "if possible".

    Raises:
        ConfigError: the user wants it, and the host cannot do it.
    """
    if wanted is False:
        return False
    refusal = find_refusal()
    if refusal is None:
        return True
    if wanted and refusal.errno == errno.ENODEV:
        log.info("%s: every core of this host runs one thread, there is nothing to do", OPTION)
    elif wanted:
        what = "has none (Linux 5.14, CONFIG_SCHED_CORE)"
        if refusal.errno != errno.EINVAL:
            what = f"refuses it: {refusal.strerror}"
        raise ConfigError(f"{OPTION}: this kernel {what}; switch SMT off, or leave the option out")
    return False


def take_core() -> None:
    """Give this thread a new cookie; threads that it starts later inherit the cookie.

    Raises:
        HostError: the kernel refuses it.
    """
    try:
        linux.make_core_cookie()
    except OSError as error:
        raise HostError("take", "a core for vCPUs", f"or try {OPTION}=false") from error


def pin(index: int, spec: CpuSpec) -> None:
    """Let the calling thread run on the processors of one vCPU, where the user names some.

    Raises:
        HostError: the host has none of them, or this process may use none.
    """
    for vcpu, processors in spec.affinity:
        if vcpu == index:
            try:
                os.sched_setaffinity(0, processors)
            except OSError as error:
                words = ",".join(map(str, processors[:8]))
                remedy = "see the processors of --cpu-affinity, or cpus.affinity"
                raise HostError("run", f"vCPU {index} on processors {words}", remedy) from error


def _has_siblings() -> bool:
    try:
        with open(SMT, encoding="utf-8") as file:
            return file.read().strip() != "0"
    except OSError:
        return True
