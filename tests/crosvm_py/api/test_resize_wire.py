# SPDX-License-Identifier: BSD-3-Clause
"""vm.resize of vCPUs as Kata, libvirt and ch-remote send it, to the byte, and as they read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.requests.protocol import Failed
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.vm_config.machine import CpusConfig
from crosvm_py.vm_config.schema import VmConfig
from tests.crosvm_py.api.rig import Rig
from tests.crosvm_py.api.test_transcripts import curl, go, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEAD = b"Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
EARLY = HEAD + b'Content-Type: application/json\r\nContent-Length: 21\r\n\r\n["Too Many Requests"]'
WRITERS = {"ch-remote": plain, "kata-go": go, "libvirt": curl}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, VmConfig(cpus=CpusConfig(boot_vcpus=1, max_vcpus=4)))
    yield made
    made.close()


def answer_to(rig: Rig, data: bytes, size: int) -> bytes:
    """Send in pieces and return every byte of the answer."""
    with rig.client() as sock:
        for at in range(0, len(data), size):
            sock.send(data[at : at + size])
            rig.turn(1)
        rig.turn()
        return sock.recv(4096)


@pytest.mark.parametrize("size", [1, 256])
@pytest.mark.parametrize("client", WRITERS)
def test_number_of_vcpus_crosses_the_wire(rig: Rig, client: str, size: int) -> None:
    data = WRITERS[client]("PUT", "vm.resize", {"desired_vcpus": 3})
    assert answer_to(rig, data, size) == b"HTTP/1.1 204 \r\n" + HEAD + b"\r\n"
    assert rig.asked() == [Resize(3, None, None)]
    rig.cpus = 3
    found = cast("dict[str, dict[str, dict[str, int]]]", rig.get("vm.info").json())
    assert found["config"]["cpus"]["boot_vcpus"] == 3
    assert found["config"]["cpus"]["max_vcpus"] == 4


@pytest.mark.parametrize("size", [1, 256])
@pytest.mark.parametrize(
    ("write", "phrase"), [(plain, b""), (curl, b""), (go, b"Too Many Requests")]
)
def test_too_early_is_told_as_each_client_reads_it(
    rig: Rig, write: Callable[[str, str, object], bytes], phrase: bytes, size: int
) -> None:
    rig.answers[Resize] = Resized(is_busy=True)
    data = write("PUT", "vm.resize", {"desired_vcpus": 1})
    assert answer_to(rig, data, size) == b"HTTP/1.1 429 " + phrase + b"\r\n" + EARLY


def test_phrase_is_for_429_alone(rig: Rig) -> None:
    rig.answers[Resize] = Failed("no")
    data = go("PUT", "vm.resize", {"desired_vcpus": 1})
    assert answer_to(rig, data, 256).startswith(b"HTTP/1.1 500 \r\n" + HEAD)


@pytest.mark.parametrize("cpus", [0, 5, (1 << 32) - 1])
def test_number_that_can_never_be_is_refused(rig: Rig, cpus: int) -> None:
    data = plain("PUT", "vm.resize", {"desired_vcpus": cpus})
    assert answer_to(rig, data, 256).startswith(b"HTTP/1.1 500 \r\n")
    assert rig.asked() == []
