# SPDX-License-Identifier: BSD-3-Clause
"""Linux calls that Python's standard library lacks. They raise ``OSError`` as ``os`` does."""

from __future__ import annotations

import fcntl
import os
import struct

from sys_util._linux import ffi, lib
from sys_util.typing import Final

CAP_DAC_OVERRIDE: Final[int] = lib.CAP_DAC_OVERRIDE
CAP_KILL: Final[int] = lib.CAP_KILL
CAP_NET_ADMIN: Final[int] = lib.CAP_NET_ADMIN
CAP_SETGID: Final[int] = lib.CAP_SETGID
CAP_SETPCAP: Final[int] = lib.CAP_SETPCAP
CAP_SETUID: Final[int] = lib.CAP_SETUID
CAP_SYS_ADMIN: Final[int] = lib.CAP_SYS_ADMIN
CLONE_NEWCGROUP: Final[int] = lib.CLONE_NEWCGROUP
CLONE_NEWIPC: Final[int] = lib.CLONE_NEWIPC
CLONE_NEWNET: Final[int] = lib.CLONE_NEWNET
CLONE_NEWNS: Final[int] = lib.CLONE_NEWNS
CLONE_NEWPID: Final[int] = lib.CLONE_NEWPID
CLONE_NEWUSER: Final[int] = lib.CLONE_NEWUSER
CLONE_NEWUTS: Final[int] = lib.CLONE_NEWUTS
CLONE_PARENT: Final[int] = lib.CLONE_PARENT
MNT_DETACH: Final[int] = lib.MNT_DETACH
MS_BIND: Final[int] = lib.MS_BIND
MS_NODEV: Final[int] = lib.MS_NODEV
MS_NOEXEC: Final[int] = lib.MS_NOEXEC
MS_NOSUID: Final[int] = lib.MS_NOSUID
MS_PRIVATE: Final[int] = lib.MS_PRIVATE
MS_RDONLY: Final[int] = lib.MS_RDONLY
MS_REC: Final[int] = lib.MS_REC
MS_REMOUNT: Final[int] = lib.MS_REMOUNT
PR_CAPBSET_DROP: Final[int] = lib.PR_CAPBSET_DROP
PR_CAP_AMBIENT: Final[int] = lib.PR_CAP_AMBIENT
PR_CAP_AMBIENT_RAISE: Final[int] = lib.PR_CAP_AMBIENT_RAISE
PR_SET_DUMPABLE: Final[int] = lib.PR_SET_DUMPABLE
PR_SET_NAME: Final[int] = lib.PR_SET_NAME
PR_SET_NO_NEW_PRIVS: Final[int] = lib.PR_SET_NO_NEW_PRIVS
PR_SET_PDEATHSIG: Final[int] = lib.PR_SET_PDEATHSIG
FALLOC_FL_KEEP_SIZE: Final[int] = lib.FALLOC_FL_KEEP_SIZE
FALLOC_FL_PUNCH_HOLE: Final[int] = lib.FALLOC_FL_PUNCH_HOLE
FALLOC_FL_ZERO_RANGE: Final[int] = lib.FALLOC_FL_ZERO_RANGE

# prctl(2). We define the numbers, because the headers of some hosts are older than their kernel.
_PR_SCHED_CORE: Final = 62
_PR_SCHED_CORE_GET: Final = 0
_PR_SCHED_CORE_CREATE: Final = 1
_THREAD: Final = 0  # PIDTYPE_PID: not the whole process

_SIGKILL: Final = 9

# The status that a shell shows for a process that SIGSYS ended (31 on x86-64 and aarch64).
EXIT_DENIED: Final = 128 + 31

MAX_FD: Final = 0xFFFF_FFFF
SOCK_FILTER_BYTES: Final = 8

# struct flock of fcntl(2) on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = struct.Struct("hhxxxxqqixxxx")

_processors = len(os.sched_getaffinity(0))

# x86-64 does not reorder loads with other loads, or stores with other stores. Other processors do,
# unless there is a barrier.
KEEPS_ORDER: Final = os.uname().machine == "x86_64"

# A full barrier: it also keeps a later load of this thread behind an earlier store (StoreLoad).
full_barrier = lib.crosvm_full_barrier


def count_processors() -> None:
    """Note how many processors this process may use.

    That is done when this module is imported, because the seccomp filter of a device denies
    sched_getaffinity(2); do it again when the processors have changed.
    """
    global _processors
    _processors = len(os.sched_getaffinity(0))


def has_several_processors() -> bool:
    """Return whether this process may use more than one processor."""
    return _processors > 1


def _check(result: int, what: str | None = None) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def clone(flags: int) -> int:
    """Fork the calling process with namespace ``flags``; return 0 in the child, else its pid.

    With CLONE_PARENT the child is the caller's sibling: it has the same parent.

    Only a process with one thread may call this, because the fork handlers of Python and of the C
    library do not run (clone(2)).
    """
    return _check(lib.crosvm_clone(flags))


def clone_into_cgroup(flags: int, cgroup_fd: int) -> int:
    """Do the same as ``clone``, and start the child in the cgroup of that directory (clone3(2))."""
    return _check(lib.crosvm_clone_into_cgroup(flags, cgroup_fd))


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """Call mount(2)."""
    _check(
        lib.crosvm_mount(source.encode(), target.encode(), fstype.encode(), flags, data.encode()),
        target,
    )


def umount2(target: str, flags: int) -> None:
    """Call umount2(2)."""
    _check(lib.crosvm_umount2(target.encode(), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Call pivot_root(2)."""
    _check(lib.crosvm_pivot_root(new_root.encode(), put_old.encode()), new_root)


def close_all_fds_except(keep: set[int]) -> None:
    """Close every descriptor of this process that is not in ``keep`` (close_range(2))."""
    first = 0
    for fd in sorted(keep):
        if fd > first:
            _check(lib.crosvm_close_range(first, fd - 1))
        first = fd + 1
    _check(lib.crosvm_close_range(first, MAX_FD))


def close_on_exec(first: int) -> None:
    """Set close-on-exec for every descriptor from ``first`` on (close_range(2))."""
    _check(lib.crosvm_close_on_exec(first))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2); ``offset`` and ``length`` in bytes."""
    _check(lib.crosvm_fallocate(fd, mode, offset, length))


def map_shared(fd: int, offset: int, length: int, alignment: int) -> memoryview:
    """Map ``length`` bytes of a file for reading and writing by all who map it (mmap(2)).

    The address is as far behind a multiple of ``alignment``, a power of two, as ``offset`` is, if
    such addresses are free. The bytes stay mapped as long as the view, or a view of it, exists.
    """
    where = ffi.new("void **")
    _check(lib.crosvm_map_shared(fd, offset, length, alignment, where))
    mapped = ffi.gc(where[0], lambda address: lib.crosvm_unmap(address, length))
    return memoryview(ffi.buffer(mapped, length))


def madvise(view: memoryview, advice: int) -> None:
    """Advise the kernel about whole pages (madvise(2)); ``advice`` is one of ``mmap.MADV_…``."""
    _check(lib.crosvm_madvise(ffi.from_buffer(view), view.nbytes, advice))


def bind_memory(view: memoryview, node: int) -> None:
    """Have all pages of a mapping come from one NUMA node of the host (mbind(2), MPOL_BIND).

    Of a shared mapping of a memfd that holds for the file, whoever touches a page first.

    Raises:
        OSError: EINVAL if the host has no memory in the node.
    """
    _check(lib.crosvm_bind_memory(ffi.from_buffer(view), view.nbytes, node))


def buffer_address(buffer: memoryview) -> int:
    """Return the address in this process at which ``buffer`` begins."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Call prctl(2) with integer arguments."""
    return _check(lib.crosvm_prctl(option, arg2, arg3, arg4, arg5))


def core_cookie() -> int:
    """Return the cookie of this thread for core scheduling, 0 for none (PR_SCHED_CORE_GET).

    Raises:
        OSError: ENODEV if no core runs two threads, EINVAL if the kernel has no core scheduling.
    """
    cookie = ffi.new("unsigned long long *")
    address = int(ffi.cast("uintptr_t", cookie))
    _check(lib.crosvm_prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_GET, 0, _THREAD, address))
    return int(cookie[0])


def make_core_cookie() -> None:
    """Give this thread a new cookie: it shares no core with another one (PR_SCHED_CORE_CREATE)."""
    _check(lib.crosvm_prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _THREAD, 0))


def set_process_name(name: str) -> None:
    """Name this thread as ``ps`` shows it; Linux keeps 15 bytes (PR_SET_NAME)."""
    buffer = ffi.new("char[]", os.fsencode(name)[:15])
    _check(lib.crosvm_prctl(PR_SET_NAME, int(ffi.cast("uintptr_t", buffer)), 0, 0, 0))


def set_capabilities(mask: int) -> None:
    """Keep only the capabilities of ``mask``, 1 << CAP_…; clear the inheritable set (capset(2)).

    The kernel refuses a capability that the thread does not have.
    """
    _check(lib.crosvm_set_capabilities(mask, 0))


def keep_capabilities_for_programs(kept: frozenset[int]) -> None:
    """Keep only the capabilities ``kept``, also in programs that this process executes.

    A program that root executes gets no others either (capabilities(7), "ambient").
    """
    mask = sum(1 << capability for capability in kept)
    _check(lib.crosvm_set_capabilities(mask, mask))
    for capability in kept:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def capabilities() -> frozenset[int]:
    """Return the permitted capabilities of this thread, CAP_… (capget(2))."""
    mask = ffi.new("unsigned long long *")
    _check(lib.crosvm_capabilities(mask))
    return frozenset(bit for bit in range(64) if int(mask[0]) >> bit & 1)


def load_seccomp_filter(bpf: bytes, *, all_threads: bool = False) -> None:
    """Load a compiled filter, for good, into this thread and the threads that it starts later.

    With ``all_threads`` also into every other thread of the process. Those must have the filters
    that this one has, or none (ESRCH). Needs no_new_privs or CAP_SYS_ADMIN (seccomp(2)).
    """
    count = len(bpf) // SOCK_FILTER_BYTES
    _check(lib.crosvm_load_filter(ffi.from_buffer(bpf), count, all_threads))


def report_denied_calls(
    fd: int, head: bytes, *, status: int = EXIT_DENIED, names_thread: bool = False
) -> None:
    """Have a denied call (SECCOMP_RET_TRAP) reported to ``fd``, and end the process then.

    The report is ``head`` and the number of the call (msgpack uint 32). With ``names_thread`` a
    boolean follows, which says whether the call was made by another thread than the one that calls
    this function; the filter has to allow gettid(2) then. The caller owns ``fd`` and must not close
    it.
    """
    _check(lib.crosvm_report_denied_calls(fd, head, len(head), status, names_thread))


def watch_child(pid: int) -> int:
    """Return a pidfd of a child, for the caller; without one the child is killed and reaped.

    Raises:
        OSError: the host makes none.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, _SIGKILL)
        os.waitpid(pid, 0)
        raise


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Signal the process behind ``pidfd`` (pidfd_send_signal(2))."""
    _check(lib.crosvm_pidfd_send_signal(pidfd, signal))


def ofd_lock(fd: int, *, exclusive: bool) -> bool:
    """Lock the whole file behind ``fd``; return whether the lock was free.

    It is an open file description lock (fcntl(2)): it lasts until every duplicate of ``fd``, in any
    process, is closed. ``exclusive`` needs a writable ``fd``.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, lib.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
