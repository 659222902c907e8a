# SPDX-License-Identifier: BSD-3-Clause
"""Which arguments the kernel reads in full, and which conditions are unsafe for the others.

A filter sees 64 bits of every argument. If the kernel declares the argument as ``int``, it reads
only the low 32. For example, rt_sigaction(2) takes 0x1_0000_001f for SIGSYS (31), although it
passes ``arg0 != SIGSYS``. A condition on such an argument must limit the upper half, or ignore it.
"""

from __future__ import annotations

from seccomp.cubes import ANY_ARGUMENTS, narrow_all
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from seccomp.cubes import Cube
    from seccomp.rules import Clause

_HIGH_HALF: Final = 0xFFFFFFFF_00000000
_SIGN_BIT: Final = 0x80000000

# The arguments that are addresses, lengths or offsets: from include/linux/syscalls.h of Linux 6.12,
# and from the SYSCALL_DEFINE of calls that are newer or that only one architecture has. Any other
# argument is an int, or a long of which the kernel may use only an int, as the flags of clone(2).
_WIDE: Final[dict[str, str]] = {
    "0": (
        "access acct adjtimex brk chdir chmod chown chroot creat delete_module fsopen "
        "futex_requeue futex_wake io_destroy lchown memfd_create mkdir mknod mq_unlink open "
        "perf_event_open pipe pipe2 poll rmdir rseq set_tid_address setdomainname sethostname "
        "shmdt swapoff swapon sysinfo time times umount2 uname unlink uselib"
    ),
    "01": (
        "capget capset clone3 getcwd getrandom gettimeofday landlock_create_ruleset link "
        "lremovexattr lsm_list_modules lstat madvise map_shadow_stack mlock mlock2 mprotect "
        "mseal msync munlock munmap nanosleep pivot_root pkey_mprotect readlink "
        "remap_file_pages removexattr rename rt_sigpending rt_sigsuspend "
        "set_mempolicy_home_node set_robust_list settimeofday sigaltstack stat statfs symlink "
        "truncate utime utimes"
    ),
    "012": (
        "execve getcpu getresgid getresuid init_module io_cancel listmount listxattr "
        "llistxattr mincore request_key statmount"
    ),
    "0123": "add_key getxattr lgetxattr lsetxattr rt_sigtimedwait setxattr",
    "0124": "mount mremap",
    "013": "get_mempolicy mbind",
    "015": "mmap",
    "02": "io_submit kexec_load symlinkat",
    "0234": "ppoll",
    "03": "futex_waitv mq_open",
    "034": "futex io_getevents",
    "0345": "io_pgetevents",
    "04": "futex_wait",
    "1": (
        "bind bpf clock_adjtime clock_getres clock_gettime clock_settime connect epoll_wait "
        "faccessat faccessat2 fchmodat fchmodat2 fchownat finit_module fremovexattr fspick "
        "fstat fstatfs ftruncate getdents getdents64 getgroups getitimer getrlimit getrusage "
        "inotify_add_watch io_setup io_uring_setup lseek lsm_set_self_attr mkdirat mknodat "
        "mq_notify open_by_handle_at open_tree openat preadv preadv2 pwritev pwritev2 readv "
        "recvmsg sched_getattr sched_getparam sched_rr_get_interval sched_setattr "
        "sched_setparam semop sendmmsg sendmsg set_mempolicy setgroups setrlimit shmat shmget "
        "syslog timer_gettime timerfd_gettime unlinkat ustat vmsplice writev"
    ),
    "12": (
        "accept accept4 cachestat fadvise64 flistxattr futimesat get_robust_list getpeername "
        "getsockname lsm_get_self_attr modify_ldt mq_getsetattr msgrcv msgsnd newfstatat "
        "process_madvise read readahead readlinkat setitimer signalfd signalfd4 "
        "sync_file_range timer_create utimensat write"
    ),
    "123": (
        "execveat fgetxattr file_getattr file_setattr fsetxattr name_to_handle_at openat2 "
        "pread64 pwrite64 rt_sigaction rt_sigprocmask"
    ),
    "1234": "clone mq_timedreceive select",
    "12345": "pselect6",
    "124": "mq_timedsend sendto",
    "1245": "recvfrom",
    "13": (
        "linkat move_mount process_vm_readv process_vm_writev quotactl removexattrat renameat "
        "renameat2 semtimedop wait4"
    ),
    "134": "copy_file_range listxattrat mount_setattr open_tree_attr splice",
    "1345": "epoll_pwait2 getxattrat setxattrat",
    "14": "recvmmsg statx",
    "145": "epoll_pwait",
    "2": (
        "io_uring_register landlock_add_rule msgctl pidfd_send_signal rt_sigqueueinfo "
        "sched_getaffinity sched_setaffinity sched_setscheduler seccomp shmctl tee"
    ),
    "23": (
        "clock_nanosleep fallocate fsconfig kexec_file_load migrate_pages prlimit64 sendfile "
        "timer_settime timerfd_settime"
    ),
    "234": "move_pages",
    "24": "fanotify_mark waitid",
    "3": "epoll_ctl quotactl_fd reboot rt_tgsigqueueinfo setsockopt socketpair",
    "34": "getsockopt",
    "45": "io_uring_enter",
}


def is_wide(call: str, arg: int) -> bool:
    """Return whether the kernel reads all 64 bits of an argument."""
    return any(str(arg) in args and call in calls.split() for args, calls in _WIDE.items())


def too_wide(call: str, clause: Clause) -> int | None:
    """Return an argument for which the clause depends on bits that the kernel does not read.

    ``None``: there is none. The clause may demand that the upper half is zero, or, for a negative
    constant, that it is the sign extension.

    Raises:
        PolicyError: the clause is too complex for this check.
    """
    for arg in {atom.arg for atom in clause if not is_wide(call, atom.arg)}:
        boxes = narrow_all([ANY_ARGUMENTS], ([atom] for atom in clause if atom.arg == arg))
        if not all(_is_narrow(box[arg]) for box in boxes):
            return arg
    return None


def _is_narrow(cube: Cube) -> bool:
    mask, value = cube.mask & _HIGH_HALF, cube.value & _HIGH_HALF
    if mask in (0, _HIGH_HALF) and not value:
        return True
    return mask == value == _HIGH_HALF and bool(cube.value & _SIGN_BIT)
