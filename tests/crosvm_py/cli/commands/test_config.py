# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm config``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crosvm_py.cli.dispatch import execute
from crosvm_py.vm_config.schema import VmConfig
from sys_util.errors import ConfigError


def check(tmp_path: Path, value: object, *words: str) -> int:
    path = tmp_path / "vm.json"
    path.write_text(json.dumps(value))
    return execute(["config", "check", *words, str(path)])


def test_check_of_a_good_file_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, {"payload": {"kernel": "/does/not/exist"}}) == 0
    assert capfd.readouterr().out == ""


def test_check_names_every_problem(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    value = {"vsock": {"cid": 1, "socket": "/s"}, "cpus": {"boot_vcpus": 1, "max_vcpus": 255}}
    assert check(tmp_path, value) == 1
    assert capfd.readouterr().out.splitlines() == [
        "payload: there is nothing to boot: kernel or firmware is missing",
        "vsock.cid: 1 is reserved",
        "cpus.max_vcpus has no effect beyond 254: there are no more vCPUs",
    ]


def test_check_tells_programs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, {"disks": [{"queue_size": "1"}]}, "--json") == 1
    assert json.loads(capfd.readouterr().out) == {
        "problems": [
            {
                "place": "disks[0].queue_size",
                "text": "'1' is not a whole number in 0..65535",
                "status": 400,
            }
        ],
        "ignored": [],
    }


def test_check_prints_no_control_characters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, {"payload": {"kernel": "/k"}, "rng": {"src": "/\x1b[31m"}}) == 1
    assert "\x1b" not in capfd.readouterr().out


def test_check_of_no_file_says_so() -> None:
    with pytest.raises(ConfigError, match="config check '/nope'"):
        execute(["config", "check", "/nope"])


def test_schema_describes_every_key(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", "schema"]) == 0
    schema: dict[str, Any] = json.loads(capfd.readouterr().out)
    keys = schema["$defs"]["VmConfig"]["properties"]
    assert keys.keys() == set(VmConfig.__struct_fields__)
    for name, definition in schema["$defs"].items():
        for key, value in definition["properties"].items():
            assert value.get("description"), f"{name}.{key}"
    assert schema["$defs"]["MemoryConfig"]["properties"]["size"]["maximum"] == (1 << 64) - 1
