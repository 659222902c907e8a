# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run --config``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from crosvm_py.config import SerialSpec
from sys_util.errors import ConfigError, UsageError, describe
from tests.support.command_line import config_of

VM = {
    "payload": {"kernel": "/k", "cmdline": "quiet", "initramfs": "/i"},
    "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
    "memory": {"size": 1 << 30, "thp": False},
    "disks": [{"path": "/a"}],
    "net": [{"tap": "t0"}],
    "balloon": {"size": 4096},
    "vsock": {"cid": 3, "socket": "/v"},
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "vm.json"
    path.write_text(json.dumps(VM))
    return str(path)


def test_a_file_is_enough(file: str) -> None:
    made = config_of("--config", file)
    assert (made.kernel, made.params, made.initrd) == ("/k", ("quiet",), "/i")
    assert (made.cpus, made.memory_bytes, made.huge_pages) == (2, 1 << 30, False)
    assert [disk.path for disk in made.disks] == ["/a"]
    assert (made.socket, made.sandbox) == (None, True)


def test_options_replace_what_the_file_says(file: str) -> None:
    made = config_of(
        *("--config", file, "-c", "4", "-m", "2g", "-i", "/j", "--no-balloon", "--cid", "9"),
        *("--serial", "type=file,path=/l", "--core-scheduling=false", "/other"),
    )
    assert (made.kernel, made.initrd, made.cpus) == ("/other", "/j", 4)
    assert (made.memory_bytes, made.huge_pages) == (2 << 30, True)
    assert (made.balloon, made.core_scheduling) == (None, False)
    assert made.vsock is not None
    assert (made.vsock.cid, made.vsock.socket) == (9, None)
    assert made.serial[0] == SerialSpec("file", path="/l")


def test_disks_cards_and_parameters_are_added(file: str) -> None:
    made = config_of("--config", file, "-r", "/root", "--net", "tap-name=t1", "-p", "more")
    assert [disk.path for disk in made.disks] == ["/a", "/root"]
    assert made.root_parameter() == "root=/dev/vdb ro"
    assert [card.tap_name for card in made.networks] == ["t0", "t1"]
    assert made.params == ("quiet", "more")


def test_other_options_are_as_ever(file: str) -> None:
    made = config_of("--config", file, "-s", "/s", "--name", "web", "--disable-sandbox")
    assert (made.socket, made.name, made.sandbox) == ("/s", "web", False)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--net", "tap-name=t0"), "two cards on the TAP t0"),
        (("-s", "/v"), "both are to make a socket at /v"),
        ((*["-d", "/x"] * 26,), "--config: 27 disks are above the limit of 26"),
        ((*["--net", "user"] * 8,), "9 cards are above the limit of 8"),
    ],
)
def test_file_and_options_must_fit(file: str, words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config_of("--config", file, *words)


def test_a_balloon_must_fit_the_memory_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "vm.json"
    path.write_text(json.dumps({**VM, "balloon": {"size": 64 << 20}}))
    with pytest.raises(ConfigError, match="is more than the memory"):
        config_of("--config", str(path), "-m", "32")


def test_zones_and_nodes_of_a_file_stay_and_memory_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "vm.json"
    memory = {"size": 0, "zones": [{"id": "a", "size": 64 << 20}]}
    numa = [{"guest_numa_id": 0, "memory_zones": ["a"]}]
    path.write_text(json.dumps({**VM, "memory": memory, "numa": numa}))
    made = config_of("--config", str(path), "-c", "2")
    assert made.memory_bytes == 64 << 20
    assert ([zone.name for zone in made.zones], [node.zones for node in made.numa]) == (
        ["a"],
        [("a",)],
    )
    with pytest.raises(ConfigError, match="--mem: the file of --config has memory zones"):
        config_of("--config", str(path), "-m", "32")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"cpus": 1}', r"vm\.json: cpus: 1 is not an object"),
        ("{", "not JSON: "),
        ("{}", r"vm\.json: payload: there is nothing to boot"),
        ('{"payload":{"kernel":"/k"},"tpm":{"socket":"/s"}}', "tpm: is not supported by"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "vm.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        config_of("--config", str(path))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nope", "--config '/nope': No such file"),
        ("/", "Is a directory"),
        ("a\0b", r"--config 'a\\x00b'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(path: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("--config", path)
    assert reason.replace("\\\\", "\\") in describe(caught.value)


def test_a_fifo_is_read_to_its_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, json.dumps(VM).encode())
    os.close(writer)
    assert config_of("--config", f"/proc/self/fd/{reader}").cpus == 2
    os.close(reader)


def test_without_a_file_the_kernel_is_needed() -> None:
    with pytest.raises(UsageError, match="KERNEL is missing"):
        config_of("-c", "2")


def test_without_msgspec_the_remedy_is_told(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crosvm_py.file_parser.config", None)
    with pytest.raises(
        ConfigError, match=r"--config: needs msgspec: pip install 'crosvm-py\[ch\]'"
    ):
        config_of("--config", file)
