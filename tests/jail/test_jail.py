# SPDX-License-Identifier: BSD-3-Clause
"""Try to break out of the jail from inside, and look at it from outside.

The seccomp filter is not loaded here, because the other steps have to suffice without it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from jail.ids import FIRST_DEVICE_UID, JAILED_ID
from jail.namespaces import NAMESPACES
from jail.plan import MAX_OTHER_ADDRESSES, JailPlan, device_jail
from jail.steps import LimitResources
from sys_util import landlock, linux
from sys_util.errors import HostError
from tests.support.jailed import HeldJail, in_jail

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def held() -> Iterator[HeldJail]:
    jail = HeldJail()
    yield jail
    jail.end()


@pytest.mark.parametrize("namespace", sorted(NAMESPACES))
def test_every_namespace_differs_from_ours(held: HeldJail, namespace: str) -> None:
    theirs = os.readlink(f"/proc/{held.pid}/ns/{namespace}")
    assert theirs != os.readlink(f"/proc/self/ns/{namespace}")


@pytest.mark.parametrize("name", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_no_capability_is_left(held: HeldJail, name: str) -> None:
    assert int(held.status()[name], 16) == 0


def test_no_new_privs_is_set(held: HeldJail) -> None:
    assert held.status()["NoNewPrivs"] == "1"


def test_only_kept_descriptors_are_open(held: HeldJail) -> None:
    assert len(os.listdir(f"/proc/{held.pid}/fd")) == 2


def test_root_is_empty(held: HeldJail) -> None:
    assert os.listdir(f"/proc/{held.pid}/root") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no other id to give away")
def test_root_gives_each_device_an_id_of_its_own(held: HeldJail) -> None:
    assert held.status()["Uid"].split() == [str(FIRST_DEVICE_UID + held.pid)] * 4


def test_process_is_alone_in_its_group(held: HeldJail) -> None:
    assert os.getpgid(held.pid) == held.pid
    assert os.getsid(held.pid) == os.getsid(0)


def test_process_is_the_first_and_only_one_it_knows() -> None:
    assert in_jail(os.getpid) == 1


def test_process_is_an_ordinary_user_inside() -> None:
    assert in_jail(lambda: [*os.getresuid(), *os.getresgid()]) == [JAILED_ID] * 6


def mount_proc() -> None:
    linux.mount("proc", "/", "proc", 0)


def remount_writable() -> None:
    linux.mount("", "/", "", linux.MS_REMOUNT)


def chroot_out() -> None:
    os.chroot("..")


def make_file() -> None:
    os.open("/file", os.O_CREAT | os.O_WRONLY)


def make_node() -> None:
    os.mknod("/node", 0o020600, os.makedev(1, 3))


def fork() -> None:
    os.fork()


def new_user_namespace() -> None:
    linux.clone(linux.CLONE_NEWUSER)


def unshare_user_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(linux.CLONE_NEWUSER) < 0:
        raise OSError(ctypes.get_errno(), "unshare")


def become_root() -> None:
    os.setuid(0)


def set_hostname() -> None:
    socket.sethostname("broken-out")


def raise_limit() -> None:
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100_000, 100_000))
    except ValueError as error:
        raise PermissionError(1, "Operation not permitted") from error


def connect_out() -> None:
    with socket.socket() as sock:
        sock.connect(("127.0.0.1", 9))


def trace_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, 2, 0, 0) < 0:  # PTRACE_ATTACH to another process, if there were one
        raise OSError(ctypes.get_errno(), "ptrace")


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        pytest.param(lambda: os.listdir("/proc"), "No such file", id="proc"),
        pytest.param(lambda: os.listdir(".."), "", id="dot-dot-is-empty"),
        pytest.param(lambda: os.open("/dev/kvm", os.O_RDWR), "No such file", id="dev-kvm"),
        pytest.param(lambda: os.open("/etc/passwd", os.O_RDONLY), "No such file", id="passwd"),
        pytest.param(make_file, "Read-only file system", id="create"),
        pytest.param(make_node, "Operation not permitted|Read-only", id="mknod"),
        pytest.param(mount_proc, "Operation not permitted", id="mount"),
        pytest.param(remount_writable, "Operation not permitted", id="remount"),
        pytest.param(chroot_out, "Operation not permitted", id="chroot"),
        pytest.param(fork, "Resource temporarily unavailable", id="fork"),
        pytest.param(
            new_user_namespace, "Resource temporarily|not permitted|No space", id="user-namespace"
        ),
        pytest.param(unshare_user_namespace, "No space left", id="unshare-user-namespace"),
        pytest.param(become_root, "Operation not permitted|Invalid", id="setuid"),
        pytest.param(set_hostname, "Operation not permitted", id="hostname"),
        pytest.param(raise_limit, "Operation not permitted", id="rlimit"),
        pytest.param(connect_out, "Network is unreachable", id="network"),
        pytest.param(trace_parent, "No such process|not permitted", id="ptrace"),
        pytest.param(lambda: os.kill(2, signal.SIGKILL), "No such process", id="kill"),
        pytest.param(lambda: os.execv("/bin/sh", ["sh"]), "No such file", id="exec"),
    ],
)
def test_attempt_from_inside_fails(attempt: Callable[[], object], answer: str) -> None:
    found = in_jail(attempt)
    if answer:
        assert isinstance(found, str), f"the jail let it happen: {found!r}"
        assert any(part in found for part in answer.split("|")), found
    else:
        assert found == []


@pytest.mark.skipif(not landlock.abi_version(), reason="this kernel has no Landlock")
def test_plan_ends_with_landlock_in_force() -> None:
    assert in_jail(lambda: os.listdir("/"), landlock=True) == "Permission denied"


def test_plan_describes_every_step_with_the_filter_last() -> None:
    plan = device_jail(policy_name="rng_device", bpf=b"", keep_fds=[3], max_file_bytes=0)
    words = plan.describe()
    assert words[-1] == "load the seccomp filter rng_device"
    assert len(words) == len(plan.steps) + 1


def test_addresses_are_bounded_by_guest_memory_and_some() -> None:
    plan = device_jail(
        policy_name="rng_device", bpf=b"", keep_fds=[3], max_file_bytes=0, memory_bytes=1 << 40
    )
    (limits,) = (step for step in plan.steps if isinstance(step, LimitResources))
    assert dict(limits.limits)["AS"] == (1 << 40) + MAX_OTHER_ADDRESSES


def test_no_thread_can_start_once_those_of_the_device_have() -> None:
    plan = device_jail(
        policy_name="block_device", bpf=b"", keep_fds=[3], max_file_bytes=0, threads=4
    )
    (limits,) = (step for step in plan.steps if isinstance(step, LimitResources))
    assert dict(limits.limits)["NPROC"] == 1 + 4
    assert plan.describe()[-2:] == ["limit NPROC=0x0", "load the seccomp filter block_device"]


def test_refusal_of_what_confines_us_has_a_remedy() -> None:
    class Refused:
        def describe(self) -> str:
            return "pivot"

        def apply(self) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    plan = device_jail(policy_name="rng_device", bpf=b"", keep_fds=[3], max_file_bytes=0)
    with pytest.raises(HostError, match=r"^jail: pivot \(in a container, see .*AppArmor profiles"):
        JailPlan((Refused(),), plan.filter_step).enter()


def test_refused_step_is_named() -> None:
    plan = device_jail(policy_name="rng_device", bpf=b"not bpf!", keep_fds=[3], max_file_bytes=0)
    with pytest.raises(HostError, match="jail: load the seccomp filter rng_device"):
        plan.load_filter()
