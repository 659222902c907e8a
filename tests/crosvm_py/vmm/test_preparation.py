# SPDX-License-Identifier: BSD-3-Clause
"""What a run opens, checks and orders before its first fork."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from crosvm_py.end_signals import END_SIGNALS
from crosvm_py.kinds.order import unpack_spec
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from crosvm_py.vmm.preparation import prepare
from devices.virtio.block.spec import BlockSpec
from disk.image import open_image
from sys_util.errors import ConfigError, VmmError
from tests.kernel_loader.images import Elf
from tests.support.command_line import config_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crosvm_py.vmm.preparation import Preparation

pytestmark = pytest.mark.kvm

SINK = "type=sink,num=1,console"  # neither stdin nor stdout of the tests


class Bench:
    """Prepare runs, and close what they opened at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        (folder / "vmlinux").write_bytes(Elf().build())

    def disk(self, name: str, sectors: int = 8) -> Path:
        path = self.folder / name
        path.write_bytes(bytes(512 * sectors))
        return path

    def prepare(self, *words: object) -> Preparation:
        options = ["--serial", SINK, *map(str, words), str(self.folder / "vmlinux")]
        config = config_of(*options)
        parser = start_kernel_parser(config)
        self._stack.callback(parser.close)
        prepared = prepare(config, parser, self._stack)
        for order in prepared.devices:
            for fd in order.fds:
                self._stack.callback(os.close, fd)
        return prepared

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def bench(tmp_path: Path, lines: list[str]) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_disks_become_devices_in_their_order_with_the_rng_last(bench: Bench) -> None:
    first, second = bench.disk("first", 8), bench.disk("second", 16)
    prepared = bench.prepare("--rwdisk", first, "-d", second)
    assert [(order.name, order.kind) for order in prepared.devices] == [
        ("block:0", "block"),
        ("block:1", "block"),
        ("rng", "rng"),
    ]
    assert [os.readlink(f"/proc/self/fd/{order.fds[0]}") for order in prepared.devices[:2]] == [
        str(first),
        str(second),
    ]


def test_devices_may_write_as_far_as_their_disk_goes(bench: Bench) -> None:
    prepared = bench.prepare("--rwdisk", bench.disk("rw", 8), "-d", bench.disk("ro", 16))
    assert [order.max_file_bytes for order in prepared.devices] == [8 * 512, 0, 0]


def test_no_path_of_the_host_reaches_a_device(bench: Bench) -> None:
    prepared = bench.prepare("-d", bench.disk("secret-name"))
    assert all(b"secret-name" not in order.spec for order in prepared.devices)
    assert unpack_spec(BlockSpec, prepared.devices[0].spec).path == ""


@pytest.mark.parametrize(("cpus", "queues"), [(1, 1), (3, 3), (16, 4)])
def test_block_has_a_queue_for_each_of_the_first_processors(
    bench: Bench, cpus: int, queues: int
) -> None:
    prepared = bench.prepare("-c", cpus, "-d", bench.disk("disk"))
    assert unpack_spec(BlockSpec, prepared.devices[0].spec).num_queues == queues


def test_policies_are_those_of_the_devices_and_the_vmm(bench: Bench) -> None:
    prepared = bench.prepare("--no-rng", "-d", bench.disk("disk"))
    assert prepared.policies is not None
    devices, *own = prepared.policies
    assert list(devices) == ["block_device"]
    names = [policy and policy.name for policy in own]
    assert names == ["warden", "warden_sealed", "forge", "vmm", "vcpu", None, None]


def test_policy_of_the_control_process_comes_with_a_socket(bench: Bench, tmp_path: Path) -> None:
    prepared = bench.prepare("--no-rng", "-s", str(tmp_path / "sock"))
    assert prepared.policies is not None
    assert prepared.policies.control is not None
    assert prepared.policies.control.name == "control"


def test_disabled_sandbox_has_no_policies_and_is_told(bench: Bench, lines: list[str]) -> None:
    prepared = bench.prepare("--disable-sandbox")
    assert prepared.policies is None
    assert any("--disable-sandbox: devices and vmm run unconfined" in line for line in lines)


def test_failures_that_are_only_logged_are_told(bench: Bench, lines: list[str]) -> None:
    bench.prepare("--seccomp-log-failures")
    assert any("denied system calls are logged, not stopped" in line for line in lines)


def test_end_signals_wait_until_they_are_released(bench: Bench) -> None:
    bench.prepare()
    assert set(END_SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    bench.close()
    assert not set(END_SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-i", "nowhere"], "initrd nowhere"),
        (["--seccomp-policy-dir", "nowhere"], "policy nowhere/"),
        (["-s", "nowhere/vm.sock"], "--socket nowhere/vm.sock"),
        (["-d", "nowhere"], "--disk nowhere"),
    ],
)
def test_refused_run_leaves_no_signal_waiting(bench: Bench, words: list[str], reason: str) -> None:
    with pytest.raises(VmmError, match=reason):
        bench.prepare(*words)
    bench.close()
    assert not set(END_SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_disk_is_locked_from_here_on(bench: Bench) -> None:
    disk = bench.disk("disk")
    bench.prepare("--rwdisk", disk)
    with pytest.raises(ConfigError, match="locked by another process"):
        open_image(BlockSpec(str(disk)))
    bench.close()
    os.close(open_image(BlockSpec(str(disk))))


def test_disk_that_is_given_twice_is_said_to_be(bench: Bench) -> None:
    """No other process is to blame for that."""
    disk, link = bench.disk("disk"), bench.folder / "link"
    link.symlink_to(disk)
    with pytest.raises(ConfigError, match=f"^--disk {link}: --rwdisk {disk} is the same image"):
        bench.prepare("--rwdisk", disk, "--disk", link)


def test_socket_is_there_from_here_on_and_goes_with_the_run(bench: Bench) -> None:
    path = bench.folder / "vm.sock"
    prepared = bench.prepare("-s", path)
    assert prepared.socket is not None
    assert path.is_socket()
    bench.close()
    assert not path.exists()


def test_command_line_is_ours_then_the_users(bench: Bench) -> None:
    words = ["-p", "quiet", "-r", bench.disk("root"), "-p", "single"]
    cmdline = bench.prepare(*words).plan.cmdline.decode()
    assert cmdline.startswith("panic=-1 console=ttyS0")
    assert cmdline.endswith("root=/dev/vda ro quiet single")
