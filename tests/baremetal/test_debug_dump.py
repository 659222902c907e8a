# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm debug dump`` of a real VM: it names the side that waits, and disturbs nobody."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.baremetal.vmm import Vmm, crosvm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

Dump = dict[str, Any]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("pci_block", tmp_path_factory.mktemp("dump"))


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


@pytest.fixture
def waiting(guest: Path, control: Path, tmp_path: Path) -> Iterator[Vmm]:
    """A guest whose second request waits an hour for the limit of its disk."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(64 * 512))
    limited = f"{disk},ops-size=1,ops-refill-time=3600000"
    with Vmm(["-m", "16", "--block", limited, "-s", control, guest]) as vmm:
        assert eventually(lambda: control.exists() and "waits for the limit" in dump_text(control))
        yield vmm


def dump_text(control: Path) -> str:
    done = crosvm("debug", "dump", control)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dump(control: Path) -> Dump:
    done = crosvm("debug", "dump", control, "--json")
    assert done.returncode == 0, done.stderr
    found: Dump = json.loads(done.stdout)
    return found


def test_queue_that_waits_for_its_limit_is_named_with_all_that_there_is(
    waiting: Vmm, control: Path
) -> None:
    found = dump(control)
    processes = waiting.processes()
    assert found["pid"] == processes.vmm
    (vcpu,) = found["vcpus"]
    assert (vcpu["index"], vcpu["place"]) == (0, "guest")
    block, rng = found["devices"]
    assert (block["name"], block["pid"]) == ("block:0", processes.devices["block:0"])
    assert block["alive"]
    assert block["unanswered"] == 0
    assert block["transport"]["status"] == 0xF
    (queue,) = block["queues"]
    assert queue["verdict"].startswith("waits for the limit of the device, 3")
    assert (queue["ring"]["avail_idx"], queue["ring"]["used_idx"]) == (2, 1)
    assert queue["device"]["server"] == "device"
    assert queue["device"]["ring"]["next_avail"] == 1
    assert not queue["transport"]["kicked"]
    assert rng["queues"][0]["verdict"] == "not set up by the driver"


def test_dump_disturbs_neither_guest_nor_device(waiting: Vmm, control: Path) -> None:
    before = dump(control)["devices"][0]["queues"]
    for _ in range(3):
        dump_text(control)
    after = dump(control)["devices"][0]["queues"]
    for queues in (before, after):
        for queue in queues:
            del queue["limit_wait_ms"], queue["verdict"]
    assert after == before
    assert crosvm("limit", "block:0", "ops-size=0", control).returncode == 0
    waiting.wait_for(b"sector 2")


def test_vcpu_that_is_held_tells_its_state(waiting: Vmm, control: Path) -> None:
    assert crosvm("suspend", control).returncode == 0
    found = dump(control)
    (vcpu,) = found["vcpus"]
    assert vcpu["place"] == "held"
    assert vcpu["where"] in ("runnable", "halted: waits for an interrupt")
    (queue,) = found["devices"][0]["queues"]
    assert queue["verdict"] == "waits for the host: the device is held (paused)"
    assert crosvm("resume", control).returncode == 0
    assert dump(control)["vcpus"][0]["place"] == "guest"


def test_wait_for_the_limit_is_in_the_list_of_devices(waiting: Vmm, control: Path) -> None:
    done = crosvm("devices", control, "--json")
    block, rng = json.loads(done.stdout)
    assert 3_000_000 < block["queues"][0]["limit_wait_ms"] <= 3_600_000
    assert rng["queues"][0]["limit_wait_ms"] is None
