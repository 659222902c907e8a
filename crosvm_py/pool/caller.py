# SPDX-License-Identifier: BSD-3-Clause
"""What a run inherits from the process that starts it, taken over from a client of the pool.

A monitor was started by the pool, but the user started the client. So before the monitor runs the
VM it takes over what a child of the client would have: directory, limits, priorities, processors,
group. The kernel tells all of that (proc(5)), not the client. What cannot be taken over has to be
the same on both sides, or the monitor declines: user and groups, capabilities, filters, namespaces.
"""

from __future__ import annotations

import os
import resource
import time

from crosvm_py.pool.cgroup import join_cgroup
from sys_util import linux, signal
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Lines of /proc/PID/status that have to be the same.
_SAME: Final = frozenset(
    {
        *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
        *("NoNewPrivs", "Seccomp", "Seccomp_filters"),
    }
)
_NAMESPACES: Final = (
    *("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children"),
    *("user", "uts"),
)
_LIMITS: Final = tuple(
    getattr(resource, name) for name in sorted(vars(resource)) if name.startswith("RLIMIT_")
)
# Python ignores these itself, and a run does so anyway.
_PYTHONS: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
# A deadline, or a policy that the kernel alone knows, has more parameters than we could copy.
_POLICIES: Final = frozenset(
    {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE, os.SCHED_FIFO, os.SCHED_RR}
)


class DeclinedError(ConfigError):
    """The monitor cannot be what a child of the client would be; the message says why."""


def own_status() -> Mapping[str, str]:
    """Return what ``check_same`` compares; call it before the process gives up anything."""
    return _status("self")


def check_same(pid: int, ours: Mapping[str, str]) -> None:
    """Refuse a client whose rights or surroundings are not ours, as ``own_status`` told them.

    Raises:
        DeclinedError: names the difference.
        OSError: the client has ended, or may not be looked at.
    """
    theirs = _status(pid)
    different = sorted(name for name in _SAME if ours.get(name) != theirs.get(name))
    different += [name for name in _NAMESPACES if _namespace("self", name) != _namespace(pid, name)]
    if not os.path.samestat(os.stat("/proc/self/root"), os.stat(f"/proc/{pid}/root")):
        different.append("root directory")
    if different:
        raise DeclinedError(f"the pool has another {different[0]} (proc(5))")


def take_over(pid: int, environment: Iterable[bytes]) -> None:
    """Become in all other respects what a child of the client would be.

    Limits come last: they may be lower than what the steps before need.

    Raises:
        DeclinedError: names what the kernel refuses.
        OSError: the client has ended, or may not be looked at.
    """
    status = _status(pid)
    _refuse_to_fail("control group", join_cgroup, pid)
    _refuse_to_fail("oom_score_adj", _copy_oom_score, pid)
    _refuse_to_fail("processors", os.sched_setaffinity, 0, os.sched_getaffinity(pid))
    linux.count_processors()
    _refuse_to_fail("priority", _copy_priority, pid)
    os.chdir(f"/proc/{pid}/cwd")
    os.umask(int(status["Umask"], 8))
    for number in _signals(status["SigIgn"]) - _PYTHONS:
        signal.signal(number, signal.SIG_IGN)
    os.environb.clear()
    for variable in environment:
        name, _, value = variable.partition(b"=")
        os.environb[name] = value
    time.tzset()
    _refuse_to_fail("limits", _copy_limits, pid)


def circumstances() -> tuple[object, ...]:
    """Return what children of this process inherit and ``take_over`` may change.

    That leaves out environment and current directory.
    """
    status = _status("self")
    with (
        open("/proc/self/oom_score_adj", encoding="ascii") as oom_score,
        open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as groups,
    ):
        return (
            *map(resource.getrlimit, _LIMITS),
            *(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority),
            *(os.getpriority(os.PRIO_PROCESS, 0), frozenset(os.sched_getaffinity(0))),
            *(status["Umask"], status["SigIgn"], oom_score.read(), groups.read()),
        )


def _refuse_to_fail(what: str, step: Callable[..., None], *arguments: object) -> None:
    try:
        step(*arguments)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DeclinedError(f"a monitor cannot get the {what} of its caller: {reason}") from error


def _status(pid: int | str) -> dict[str, str]:
    """Return the lines of /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def _namespace(pid: int | str, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{name}")
    except FileNotFoundError:  # this kernel has none of the kind
        return ""


def _signals(mask: str) -> set[int]:
    bits = int(mask, 16)
    standard = range(1, signal.SIGRTMIN)
    return {number for number in standard if bits >> (number - 1) & 1}


def _copy_oom_score(pid: int) -> None:
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as theirs:
        wanted = theirs.read()
    with open("/proc/self/oom_score_adj", encoding="ascii") as ours:
        if ours.read() == wanted:
            return
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as ours:
        ours.write(wanted)


def _copy_priority(pid: int) -> None:
    policy = os.sched_getscheduler(pid)
    if policy & ~os.SCHED_RESET_ON_FORK not in _POLICIES:
        raise ValueError(f"scheduling policy {policy} has parameters of its own")
    priority = os.sched_getparam(pid).sched_priority
    if (policy, priority) != (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority):
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    nice = os.getpriority(os.PRIO_PROCESS, pid)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def _copy_limits(pid: int) -> None:
    for limit in _LIMITS:
        wanted = resource.prlimit(pid, limit)
        if wanted != resource.getrlimit(limit):
            resource.setrlimit(limit, wanted)
