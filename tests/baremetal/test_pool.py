# SPDX-License-Identifier: BSD-3-Clause
"""Run guests through a pool: a run is as if the user's own process had made it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.exit_status import VmExit
from crosvm_py.pool.protocol import Run
from crosvm_py.version import VERSION
from sys_util.wire import encode
from tests.baremetal.pool import CLIENTS, PYTHON, RunningPool
from tests.baremetal.vmm import PATIENCE_SECONDS, Vmm, eventually, has_ended
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

AS_USUAL: Final = "starting as usual"
NICE: Final = 3
FILES: Final = 200


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def shared(guests: Path) -> Iterator[RunningPool]:
    with RunningPool(guests / "pool.sock", 1) as running:
        yield running


@pytest.fixture
def pool(shared: RunningPool) -> RunningPool:
    assert shared.is_full()
    return shared


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


def hello(
    where: Path,
    *options: str | Path,
    client: tuple[str, ...] = PYTHON,
    **settings: object,
) -> subprocess.CompletedProcess[str]:
    command = [*client, "--extended-status", "run", "-m", "16", *options]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*command, "hello.elf"],
        cwd=where,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        **settings,
    )


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_run_is_the_same_as_without(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    build_guest("hello", guests)
    with_pool = hello(guests, "--pool", "pool.sock", client=client)
    without = hello(guests)
    assert with_pool.returncode == without.returncode == VmExit.RESET
    assert with_pool.stdout == without.stdout != ""
    assert with_pool.stderr.count("\n") == without.stderr.count("\n")
    assert pool.is_full()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        pytest.param("nothing.sock", "no pool to connect to: No such file", id="none"),
        pytest.param("hello.elf", "no pool to connect to: Connection refused", id="no-socket"),
    ],
)
def test_without_a_pool_it_says_so_and_starts(
    guests: Path, path: str, reason: str, client: tuple[str, ...]
) -> None:
    build_guest("hello", guests)
    done = hello(guests, f"--pool={path}", client=client)
    assert done.returncode == VmExit.RESET
    assert f"crosvm: --pool {path}: {reason}" in done.stderr
    assert done.stderr.count(AS_USUAL) == 1


def test_taken_pool_says_so_and_starts(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    build_guest("hello", guests)
    (waiting,) = pool.waiting()
    pidfd = os.pidfd_open(waiting)
    os.kill(waiting, signal.SIGSTOP)  # it was handed a client and does not come to answer
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(str(pool.path))
        done = hello(guests, "--pool", "pool.sock", client=client)
        os.kill(waiting, signal.SIGCONT)
    assert has_ended(pidfd)
    os.close(pidfd)
    assert done.returncode == VmExit.RESET
    assert f"all 1 monitors of the pool are taken; {AS_USUAL}" in done.stderr


def test_caller_of_other_rights_is_declined(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    build_guest("hello", guests)

    def give_up_a_right() -> None:
        from sys_util import linux

        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)

    done = hello(guests, "--pool", "pool.sock", preexec_fn=give_up_a_right, client=client)
    assert f"the pool has another NoNewPrivs (proc(5)); {AS_USUAL}" in done.stderr
    assert done.returncode == VmExit.RESET


def test_run_has_what_its_caller_has(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    def change_everything() -> None:
        os.umask(0o027)
        os.nice(NICE)
        os.sched_setaffinity(0, {0})
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES + 1))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    words: list[str | Path] = ["--pool", pool.path, "-m", "16", build_guest("echo", guests)]
    with Vmm(words, before=change_everything, program=client) as vmm:
        vmm.wait_for(b"echo")
        (monitor,) = pool.running()
        ours, theirs = status_of(vmm.process.pid), status_of(monitor)
        assert theirs["Umask"] == "0027"
        assert theirs["Cpus_allowed"] == ours["Cpus_allowed"]
        assert int(theirs["SigIgn"], 16) >> (signal.SIGHUP - 1) & 1
        assert os.getpriority(os.PRIO_PROCESS, monitor) == os.getpriority(os.PRIO_PROCESS, 0) + NICE
        assert resource.prlimit(monitor, resource.RLIMIT_NOFILE)[1] == FILES + 1
        assert os.readlink(f"/proc/{monitor}/cwd") == os.readlink(f"/proc/{vmm.process.pid}/cwd")
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_descriptor_that_an_option_names_is_the_callers(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    build_guest("hello", guests)
    with open(guests / "output", "w+b") as output:
        option = f"type=file,path=/dev/fd/{output.fileno()}"
        done = hello(
            guests,
            "--pool",
            "pool.sock",
            "--serial",
            option,
            pass_fds=[output.fileno()],
            client=client,
        )
        assert AS_USUAL not in done.stderr
        assert done.returncode == VmExit.RESET, done.stderr
        output.seek(0)
        assert b"hello" in output.read()


def test_signal_to_the_client_reaches_the_vm(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    with Vmm(["--pool", pool.path, "-m", "16", build_guest("spin", guests)], program=client) as vmm:
        vmm.wait_for(b"spin")
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() == VmExit.STOPPED
        assert "ended by SIGTERM" in vmm.log()


def test_vm_ends_with_a_client_that_is_killed(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    with Vmm(["--pool", pool.path, "-m", "16", build_guest("spin", guests)], program=client) as vmm:
        vmm.wait_for(b"spin")
        pidfds = [os.pidfd_open(pid) for pid in all_below(*pool.running())]
        assert len(pidfds) > 2
        vmm.signal(signal.SIGKILL)
        assert all(map(has_ended, pidfds))
        for pidfd in pidfds:
            os.close(pidfd)


def test_client_ends_by_the_signal_that_killed_the_monitor(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    with Vmm(["--pool", pool.path, "-m", "16", build_guest("spin", guests)], program=client) as vmm:
        vmm.wait_for(b"spin")
        (monitor,) = pool.running()
        os.kill(monitor, signal.SIGQUIT)
        assert vmm.wait() == -signal.SIGQUIT


def test_vm_stops_and_goes_on_with_its_job(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    words: list[str | Path] = ["--pool", pool.path, "-m", "16", build_guest("echo", guests)]
    # A job of its own: SIGTSTP stops no process of a group whose parents are all in other sessions.
    with Vmm(words, program=client, before=os.setpgrp) as vmm:
        vmm.wait_for(b"echo")
        (monitor,) = pool.running()
        vmm.signal(signal.SIGTSTP)
        for pid in (vmm.process.pid, monitor):
            assert eventually(lambda pid=pid: status_of(pid)["State"].startswith("T"))  # type: ignore[misc]
        vmm.signal(signal.SIGCONT)
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_terminal_is_raw_and_restored(
    guests: Path, pool: RunningPool, client: tuple[str, ...]
) -> None:
    words: list[str | Path] = ["--pool", pool.path, "-m", "16", build_guest("echo", guests)]
    with Vmm(words, terminal=True, program=client) as vmm:
        vmm.wait_for(b"echo")
        assert pool.running()
        assert eventually(vmm.is_raw)
        vmm.type(b"\x03")  # Ctrl-C is a key of the guest
        vmm.wait_for(b"<03>")
        vmm.type(b"\x01x")
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.is_restored()


def test_vm_goes_on_when_its_pool_ends(guests: Path) -> None:
    with RunningPool(guests / "ends.sock", 1) as pool:
        assert pool.is_full()
        with Vmm(["--pool", pool.path, "-m", "16", build_guest("echo", guests)]) as vmm:
            vmm.wait_for(b"echo")
            assert pool.is_full()
            pidfd = os.pidfd_open(pool.waiting()[0])
            pool.process.kill()
            assert has_ended(pidfd)
            os.close(pidfd)
            vmm.type(b"q")
            assert vmm.wait() == VmExit.RESET


def test_prepared_kernel_boots_and_another_at_its_path_too(guests: Path) -> None:
    kernel = build_guest("hello", guests)
    path = guests / "prepared.elf"
    path.write_bytes(Path(kernel).read_bytes())
    with RunningPool(guests / "prepared.sock", 1, "--prepare", path) as pool:
        words: list[str | Path] = ["--pool", pool.path, "-m", "16", path]
        assert pool.is_full()
        with Vmm(words) as vmm:
            vmm.wait_for(b"hello")
            assert vmm.wait() == VmExit.RESET
            assert AS_USUAL not in vmm.log()
        path.write_bytes(Path(build_guest("echo", guests)).read_bytes())
        assert pool.is_full()
        with Vmm(words) as vmm:
            vmm.wait_for(b"echo")
            assert pool.running()
            vmm.type(b"q")
            assert vmm.wait() == VmExit.RESET


def test_monitor_that_dies_is_replaced_by_one_at_other_addresses(pool: RunningPool) -> None:
    (first,) = pool.waiting()
    maps = Path(f"/proc/{first}/maps").read_text()
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: pool.waiting() not in ([], [first]))
    (second,) = pool.waiting()
    line = next(line for line in maps.splitlines() if "[stack]" in line)
    assert line not in Path(f"/proc/{second}/maps").read_text()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", b"the client asked for nothing in time"),
        (b"nonsense", b"data that is not msgpack"),
        (b"\x91\x01", b"Run with 0 fields"),
        (bytes(60_000), b"data that is not msgpack"),
        (encode(Run(VERSION, (b"run\0",), (), ())), b"a zero byte"),
        (encode(Run(VERSION, (), (b"A=\0",), ())), b"a zero byte"),
    ],
    ids=["nothing", "nonsense", "no fields", "much", "zero in a word", "zero in a variable"],
)
def test_hostile_client_has_nothing_of_it(
    guests: Path, pool: RunningPool, sent: bytes, reason: bytes
) -> None:
    build_guest("hello", guests)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(PATIENCE_SECONDS)
        client.connect(str(pool.path))
        if sent:
            client.send(sent)
        assert reason in client.recv(4096)
        assert client.recv(4096) == b""
    assert pool.is_full()
    assert hello(guests, "--pool", "pool.sock").returncode == VmExit.RESET


def all_below(*pids: int) -> list[int]:
    """Return processes and all their descendants."""
    from tests.baremetal.vmm import children

    found = list(pids)
    for pid in found:
        found += children(pid)
    return found
