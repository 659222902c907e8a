# SPDX-License-Identifier: BSD-3-Clause
"""vm.coredump as ch-remote, curl and Go send it, to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.requests.core_dump import DumpCore
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.vm_config.schema import VmConfig
from tests.crosvm_py.api.rig import Rig
from tests.crosvm_py.api.test_resize_wire import HEAD, WRITERS, answer_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, VmConfig())
    made.answers[DumpCore] = Done()
    yield made
    made.close()


@pytest.mark.parametrize("client", WRITERS)
def test_dump_crosses_the_wire(rig: Rig, client: str) -> None:
    body = {"destination_url": "file:///run/a%20core"}
    data = WRITERS[client]("PUT", "vm.coredump", body)
    assert answer_to(rig, data, 64) == b"HTTP/1.1 204 \r\n" + HEAD + b"\r\n"
    assert DumpCore(b"/run/a core") in rig.requests


@pytest.mark.parametrize(
    "url", ["/core", "file://core", "file:///../core", "https://a/b", "file:///%4", "file:///a/"]
)
def test_url_of_no_new_file_is_refused(rig: Rig, url: str) -> None:
    data = WRITERS["ch-remote"]("PUT", "vm.coredump", {"destination_url": url})
    answer = answer_to(rig, data, 256)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"destination_url" in answer
    assert DumpCore not in map(type, rig.requests)


def test_refusal_and_other_states_are_500(rig: Rig) -> None:
    data = WRITERS["ch-remote"]("PUT", "vm.coredump", {"destination_url": "file:///core"})
    rig.answers[DumpCore] = Failed("make /core: File exists")
    answer = answer_to(rig, data, 256)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"make /core: File exists" in answer
    rig.state = "halted"
    assert b"VM is not running" in answer_to(rig, data, 256)
