# SPDX-License-Identifier: BSD-3-Clause
"""Descriptions of guests and configurations are read by a confined process, and by no other."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.file_parser import process, protocol
from crosvm_py.file_parser.config import read_config
from crosvm_py.file_parser.guest import read_guest
from crosvm_py.vm_config.codec import builtins, decode
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.schema import VmConfig
from sys_util.errors import ConfigError, ProtocolError, VmmError
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sys_util.wire import Message

pytestmark = pytest.mark.usefixtures("steady_fds", "lines")

CONFIG = {
    "payload": {"kernel": "/k", "cmdline": "quiet"},
    "cpus": {"boot_vcpus": 2, "max_vcpus": 2, "affinity": [{"vcpu": 0, "host_cpus": [1]}]},
    "disks": [{"path": "/d", "readonly": True, "rate_limiter_config": None}],
    "net": [{"tap": "tap0", "mac": "12:34:56:78:9a:bc"}, {"fds": [5, 6]}],
    "serial": {"mode": "File", "file": "/s"},
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "guest.conf").write_text("kernel=vmlinuz\nparams=quiet\n")
    (tmp_path / "vmlinuz").write_bytes(b"x")
    return str(tmp_path)


def of_guest(folder: str) -> object:
    return read_guest(folder)


def of_config(_folder: str) -> object:
    return read_config("--config vm.json", json.dumps(CONFIG).encode())


each_reader = pytest.mark.parametrize("read", [of_guest, of_config], ids=["guest.conf", "JSON"])


@pytest.mark.parametrize("sandbox", [True, False], ids=["jailed", "unconfined"])
def test_configuration_is_what_reading_it_here_would_give(sandbox: bool) -> None:
    text = json.dumps(CONFIG).encode()
    assert read_config("--config vm.json", text, sandbox=sandbox) == decode(text, VmConfig)


def test_configuration_that_does_not_fit_is_told_with_its_place() -> None:
    with pytest.raises(SchemaError) as caught:
        read_config("--config vm.json", b'{"payload": {"kernel": 5}}')
    assert caught.value.place == "payload.kernel"


def test_text_nested_too_deep_is_refused() -> None:
    with pytest.raises(SchemaError, match="deep"):
        read_config("--config vm.json", b"[" * 100_000)


def test_error_in_a_description_names_file_and_line(folder: str) -> None:
    with open(f"{folder}/guest.conf", "a") as file:
        file.write("kernel=twice\n")
    with pytest.raises(ConfigError, match=rf"^{folder}/guest.conf:3: kernel is there twice$"):
        read_guest(folder)


def in_the_process(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have an attacker's code run where the file is read."""

    def read(*_: object) -> object:
        return act()

    monkeypatch.setattr("crosvm_py.guest.description.parse", read)
    monkeypatch.setattr("crosvm_py.file_parser.config.decode", read)


@each_reader
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param(lambda: os.open("/", os.O_RDONLY), "failed, please report", id="open"),
        pytest.param(os.fork, r"killed by seccomp: clone \(\d+\), policy file_parser", id="fork"),
        pytest.param(lambda: os._exit(0), "crashes the process that reads it", id="exit"),
        pytest.param(
            lambda: os.kill(os.getppid(), signal.SIGTERM), "killed by seccomp: ", id="kill"
        ),
    ],
)
def test_code_in_the_process_can_do_nothing_but_answer(
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[str], object],
    act: Callable[[], object],
    reason: str,
) -> None:
    in_the_process(monkeypatch, act)
    with pytest.raises(VmmError, match=reason):
        read(folder)


@each_reader
@pytest.mark.parametrize(
    "lie",
    [
        protocol.GuestFound("../../etc/passwd", None, None, None, ""),
        protocol.GuestFound("vmlinuz", None, None, None, "x" * 2000),
        protocol.GuestFound("", "a\0b", None, None, ""),
        protocol.Converted(0),
        protocol.Converted(1 << 20),
    ],
    ids=["another folder", "long", "no names", "nothing", "more than there is"],
)
def test_answer_that_cannot_be_true_is_refused(
    folder: str, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], object], lie: Message
) -> None:
    monkeypatch.setattr(process, "encode", lambda _message: encode(lie))
    with pytest.raises((ConfigError, ProtocolError)):
        read(folder)


def test_values_that_do_not_fit_are_refused_where_they_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "crosvm_py.file_parser.config.builtins",
        lambda config: {**dict(builtins(config)), "cpus": {"boot_vcpus": "many"}},  # type: ignore[call-overload]  # a dict
    )
    with pytest.raises(ProtocolError, match="made no sense"):
        of_config("")
