# SPDX-License-Identifier: BSD-3-Clause
"""ch-remote: what each command sends, and what it prints."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cloud_hypervisor import remote
from crosvm_py.cloud_hypervisor.remote import COMMANDS, run
from tests.crosvm_py.api.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.crosvm_py.api.rig import Rig as AnyRig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, None, boots=True)
    made.state = "waiting"
    yield made
    made.close()


@contextmanager
def serving(rig: AnyRig) -> Iterator[None]:
    """Serve clients in another thread meanwhile."""
    going = threading.Event()

    def serve() -> None:
        while not going.is_set():
            rig.loop.run_once(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        going.set()
        thread.join()


def ask(rig: Rig, *words: str) -> int:
    with serving(rig):
        return run(["--api-socket", rig.path, *words])


def test_ping_is_printed_on_one_line(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(rig, "ping") == 0
    assert capfd.readouterr().out.startswith('{"build_version":"v51.1.0-crosvm-py')


def test_file_is_created_and_nothing_printed(
    rig: Rig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vm.json").write_text('{"payload":{"kernel":"/k"}}')
    assert ask(rig, "create", str(tmp_path / "vm.json")) == 0
    assert ask(rig, "add-disk", "path=/disk,id=test0,readonly=on") == 0
    assert capfd.readouterr() == ("", "")
    assert ask(rig, "info") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["config"]["disks"][0]["id"] == "test0"
    assert ask(rig, "remove-device", "test0") == 0
    assert ask(rig, "delete") == 0


def test_refusal_has_the_lines_of_the_original(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(rig, "pause") == 1
    assert capfd.readouterr().err == (
        "Error: ch-remote exited with the following chain of errors:\n"
        "  0: http client error\n"
        "  1: Server responded with InternalServerError\n"
        "  2: Error from API\n"
        "  3: The VM could not be paused\n"
        "  4: VM is not running\n"
    )


def test_answer_without_causes_is_shown_as_it_is(
    rig: Rig, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("")
    assert ask(rig, "create", str(tmp_path / "empty")) == 1
    assert "  X: Can't get remote's error messages from JSON" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 2, "a command is missing"),
        (["--api-socket"], 2, "needs a path"),
        (["ping"], 2, "--api-socket is missing"),
        (["--api-socket", "s", "nonsense"], 2, "unknown command"),
        (["--api-socket", "s", "boot", "x"], 2, "unexpected 'x'"),
        (["--api-socket=s", "remove-device"], 2, "takes one argument"),
        (["--api-socket=s", "resize", "--cpus"], 2, "needs a value"),
        (["--api-socket=s", "resize", "--cpus", "x"], 1, "0: Error parsing CPU count"),
        (["--api-socket=s", "resize", "--memory", "1T"], 1, "0: Error parsing memory size"),
        (["--api-socket=s", "resize-disk", "--disk", "a"], 2, "needs --disk and --size"),
        (["--api-socket=s", "add-disk", "nonsense=1"], 1, "0: Error parsing disk syntax"),
        (["--api-socket=s", "create", "/nonexistent"], 1, "0: Error reading from file"),
        (["--api-socket=/nonexistent", "ping"], 1, "1: /nonexistent: No such file"),
    ],
)
def test_wrong_words_are_named(
    capfd: pytest.CaptureFixture[str], words: list[str], status: int, text: str
) -> None:
    assert run(words) == status
    assert text in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "endpoint", "body"),
    [
        (["resize", "--cpus", "2", "--memory", "1G"], "vm.resize", {"desired_ram": 1 << 30}),
        (["resize-disk", "--disk=a", "--size=2M"], "vm.resize-disk", {"desired_size": 2 << 20}),
        (["resize-zone", "--id", "z", "--size", "9"], "vm.resize-zone", {"desired_ram": 9}),
        (["snapshot", "file:///d"], "vm.snapshot", {"destination_url": "file:///d"}),
        (["restore", "source_url=file:///d"], "vm.restore", {"source_url": "file:///d"}),
        (["add-vsock", "cid=3,socket=/s"], "vm.add-vsock", {"cid": 3}),
        (["add-net", "fd=[5,6],num_queues=4"], "vm.add-net", {"num_queues": 4}),
        (["coredump", "file:///d"], "vm.coredump", {"destination_url": "file:///d"}),
        (
            ["receive-migration", "receiver_url=unix:/s"],
            "vm.receive-migration",
            {"receiver_url": "unix:/s"},
        ),
        (
            ["send-migration", "destination_url=unix:/s,local=on"],
            "vm.send-migration",
            {"local": True},
        ),
    ],
)
def test_command_sends(words: list[str], endpoint: str, body: dict[str, object]) -> None:
    name, *rest = words
    made = COMMANDS[name].make(rest)
    assert made.endpoint == endpoint
    found = json.loads(made.body or b"{}")
    assert body.items() <= found.items()


def test_card_takes_its_descriptors_along(tmp_path: Path) -> None:
    made = COMMANDS["add-net"].make(["fd=[5,6],num_queues=4"])
    assert made.fds == (5, 6)
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capfd.readouterr().out
    assert all(f"  {name}" in text for name in COMMANDS)
    assert run(["--version"]) == 0
    assert os.path.basename(remote.NAME) == "ch-remote"
