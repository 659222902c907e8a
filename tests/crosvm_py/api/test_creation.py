# SPDX-License-Identifier: BSD-3-Clause
"""A VM that clients create: its states, its configuration, and the descriptors for it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.requests.creation import Booted, BootVm, DropFds, EndVm, ForgetVm, KeepFds, KeptFds
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.plug import Confine
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.requests.resize import Resize
from crosvm_py.requests.vm import VmFacts
from sys_util.landlock import LandlockRule
from tests.crosvm_py.api.rig import Rig, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = b'{"payload":{"kernel":"/k"},"disks":[{"path":"/a"},{"path":"/b","id":"data"}]}'


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, None, boots=True)
    made.state = "waiting"
    made.answers[BootVm] = Booted(0, ())
    yield made
    made.close()


@pytest.fixture
def created(empty: Rig) -> Rig:
    assert empty.put("vm.create", CONFIG).status == 204
    return empty


def info(rig: Rig) -> dict[str, object]:
    return cast("dict[str, object]", rig.get("vm.info").json())


def config(rig: Rig) -> dict[str, list[dict[str, object]]]:
    return cast("dict[str, list[dict[str, object]]]", info(rig)["config"])


NONE = {
    "vm.boot": 404,
    "vm.pause": 500,
    "vm.resume": 500,
    "vm.shutdown": 500,
    "vm.reboot": 404,
    "vm.delete": 204,
    "vm.power-button": 500,
    "vm.nmi": 500,
}
CREATED = NONE | {"vm.boot": 204}


@pytest.mark.parametrize(("name", "status"), NONE.items())
def test_call_without_a_vm(empty: Rig, name: str, status: int) -> None:
    assert empty.put(name).status == status


@pytest.mark.parametrize(("name", "status"), CREATED.items())
def test_call_before_the_boot(created: Rig, name: str, status: int) -> None:
    assert created.put(name).status == status


@pytest.mark.parametrize(
    ("name", "body", "without", "created_status"),
    [
        ("vm.create", CONFIG, 204, 500),
        ("vm.resize", b"{}", 404, 204),
        ("vm.resize", b'{"desired_vcpus":0}', 404, 500),
        ("vm.resize", b'{"desired_vcpus":2}', 404, 500),
        ("vm.resize", b'{"desired_balloon":0}', 404, 500),
        ("vm.resize", b'{"desired_ram":134217728}', 404, 204),
        ("vm.resize-disk", b'{"id":"data","desired_size":512}', 404, 500),
        ("vm.resize-zone", b'{"id":"a","desired_ram":512}', 404, 500),
        ("vm.add-disk", b'{"path":"/c"}', 404, 204),
        ("vm.add-net", b"{}", 404, 204),
        ("vm.add-vsock", b'{"cid":3,"socket":"/s"}', 404, 204),
        ("vm.remove-device", b'{"id":"data"}', 404, 204),
        ("vm.remove-device", b'{"id":"nobody"}', 404, 404),
        ("vm.snapshot", b'{"destination_url":"file:///d"}', 500, 500),
    ],
)
def test_call_with_a_body(
    empty: Rig, name: str, body: bytes, without: int, created_status: int
) -> None:
    assert empty.put(name, body).status == without
    if empty.get("vm.info").status == 404:
        assert empty.put("vm.create", CONFIG).status == 204
    assert empty.put(name, body).status == created_status


def test_zones_are_told_and_keep_their_sizes(empty: Rig) -> None:
    memory = {"size": 0, "zones": [{"id": "a", "size": 64 << 20}, {"id": "b", "size": 32 << 20}]}
    body = {"payload": {"kernel": "/k"}, "memory": memory, "balloon": {"size": 0}}
    assert empty.put("vm.create", json.dumps(body).encode()).status == 204
    assert info(empty)["memory_actual_size"] == 96 << 20
    for call, text, wanted in (
        ("vm.resize", b'{"desired_ram":134217728}', "the memory has zones, which keep their sizes"),
        ("vm.resize-zone", b'{"id":"b","desired_ram":512}', "the memory zone b keeps its size"),
        ("vm.resize-zone", b'{"id":"c","desired_ram":512}', "no memory zone has the id c"),
    ):
        answer = empty.put(call, text)
        assert answer.status == 500
        assert wanted in str(answer.json())
    assert empty.put("vm.resize", b'{"desired_balloon":67108864}').status == 204


def test_vm_that_is_created_boots_and_is_deleted(created: Rig) -> None:
    assert info(created)["state"] == "Created"
    assert created.put("vm.boot").status == 204
    assert [disk["id"] for disk in config(created)["disks"]] == ["_disk0", "data"]
    created.state = "running"
    assert created.put("vm.delete").status == 204
    assert created.asked() == [BootVm(), EndVm(), ForgetVm()]
    created.state = "waiting"
    assert created.get("vm.info").status == 404


def test_refused_boot_says_why_and_keeps_the_configuration(created: Rig) -> None:
    created.answers[BootVm] = Booted(409, ("disks[1].path is invalid", "used twice"))
    answer = created.put("vm.boot")
    assert answer.status == 409
    assert answer.json() == [
        *("Error from API", "The VM could not boot", "disks[1].path is invalid", "used twice")
    ]
    created.answers[BootVm] = Booted(0, ())
    assert created.put("vm.boot").status == 204


def test_info_is_answered_while_the_vm_boots(created: Rig) -> None:
    booting = created.answers[BootVm] = Pending()
    with created.client() as sock:
        sock.send(request("PUT", "vm.boot"))
        created.turn()
        created.state = "nothing, because the vmm is busy"
        assert info(created)["state"] == "Created"
        booting.complete(Booted(0, ()))
        created.turn()
        assert sock.recv(100).startswith(b"HTTP/1.1 204")


def test_device_that_makes_the_configuration_wrong_is_refused(created: Rig) -> None:
    answer = created.put("vm.add-disk", b'{"path":"/c","id":"data"}')
    assert answer.status == 409
    assert len(config(created)["disks"]) == 2
    assert created.put("vm.add-disk", b'{"path":"/c","id":"__x"}').status == 400


def test_ids_are_not_used_twice_when_devices_come_and_go(created: Rig) -> None:
    for path in (b"/c", b"/d"):
        assert created.put("vm.add-disk", b'{"path":"%s"}' % path).status == 204
    assert created.put("vm.remove-device", b'{"id":"_disk0"}').status == 204
    assert created.put("vm.add-disk", b'{"path":"/e"}').status == 204
    ids = [disk["id"] for disk in config(created)["disks"]]
    assert len(set(ids)) == len(ids) == 4


@pytest.mark.usefixtures("steady_fds")
def test_descriptors_of_a_card_are_passed_on_and_their_numbers_noted(created: Rig) -> None:
    created.answers[KeepFds] = KeptFds((41,))
    sent = [os.eventfd(0)]
    before = len(os.listdir("/proc/self/fd"))
    with created.client() as sock:
        data = request("PUT", "vm.add-net", b'{"id":"card","fds":[7]}')
        assert created.call(sock, data, sent).status == 204
    created.turn()
    assert len(created.fds_asked) == 1
    assert config(created)["net"][0]["fds"] == [41]
    assert created.put("vm.remove-device", b'{"id":"card"}').status == 204
    assert created.asked() == [KeepFds(), DropFds((41,))]
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(sent[0])


def test_vmm_keeps_no_descriptors_for_a_card_that_is_refused(created: Rig) -> None:
    sent = [os.eventfd(0), os.eventfd(0)]
    with created.client() as sock:
        data = request("PUT", "vm.add-net", b'{"id":"card"}')
        assert created.call(sock, data, sent).status == 400  # two queues, and not four
    assert created.asked() == []
    for fd in sent:
        os.close(fd)


def test_next_control_process_knows_what_was_created(created: Rig, tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    after = Rig(tmp_path / "next", None, store=created.store, boots=True)
    after.state = "waiting"
    assert [disk["path"] for disk in config(after)["disks"]] == ["/a", "/b"]
    after.close()


@pytest.fixture
def halted(created: Rig) -> Rig:
    """Return a VM with two vCPUs at the most that has run and was shut down."""
    assert created.put("vm.delete").status == 204
    body = json.loads(CONFIG) | {"cpus": {"boot_vcpus": 1, "max_vcpus": 2}}
    assert created.put("vm.create", json.dumps(body).encode()).status == 204
    assert created.put("vm.boot").status == 204
    created.requests.clear()
    created.state = "halted"
    return created


def test_vm_that_was_shut_down_boots_with_other_sizes(halted: Rig) -> None:
    assert halted.put("vm.resize", b'{"desired_vcpus":2}').status == 204
    assert halted.put("vm.boot").status == 204
    assert halted.asked() == [Resize(2), BootVm()]
    halted.answers[Resize] = Failed("the guest has too little")
    assert halted.put("vm.resize", b'{"desired_vcpus":1}').status == 500
    assert info(halted)["config"]["cpus"]["boot_vcpus"] == 2  # type: ignore[index]  # of JSON


def test_vm_that_was_shut_down_boots_with_no_other_devices(halted: Rig, tmp_path: Path) -> None:
    assert halted.put("vm.add-disk", b'{"path":"/c"}').status == 204
    assert halted.put("vm.add-vsock", b'{"cid":3,"socket":"/s"}').status == 204
    assert halted.put("vm.resize", b'{"desired_vcpus":2}').status == 204
    (tmp_path / "next").mkdir()
    after = Rig(tmp_path / "next", None, store=halted.store, boots=True)
    after.state = "halted"
    for rig in (halted, after):
        refused = rig.put("vm.boot")
        assert refused.status == 500
        assert b"disks, vsock: changed since vm.shutdown" in refused.body
    after.close()
    assert halted.asked() == [Resize(2)]
    changed = info(halted)["config"]
    for added in (changed["disks"][-1]["id"], changed["vsock"]["id"]):  # type: ignore[index]  # JSON
        assert halted.put("vm.remove-device", json.dumps({"id": added}).encode()).status == 204
    assert halted.put("vm.boot").status == 204


def test_memory_is_the_configured_one_until_the_vm_has_some(created: Rig) -> None:
    assert info(created)["memory_actual_size"] == 512 << 20
    assert "device_tree" not in info(created)
    assert VmFacts("running", 1, 1 << 20).memory_bytes


def test_explicit_nulls_and_unknown_keys_are_fine(empty: Rig) -> None:
    body = json.loads(CONFIG) | {"net": None, "fs": None, "platform": None, "new_key": 1}
    assert empty.put("vm.create", json.dumps(body).encode()).status == 204


RULES = b'"landlock_enable":true,"landlock_rules":[{"path":"/a","access":"rw"}]'


def test_create_has_the_opener_keep_to_the_rules(empty: Rig) -> None:
    empty.answers[Confine] = Done()
    assert empty.put("vm.create", b'{"payload":{"kernel":"/k"},%s}' % RULES).status == 204
    assert empty.asked()[-1] == Confine((LandlockRule("/a", "rw"),))


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ('[{"path":"/a","access":"x"}]', "landlock_rules[0].access: 'x' is not made of r and w"),
        ('[{"path":"","access":"r"}]', "landlock_rules[0].path: is empty"),
        (json.dumps([{"path": "x" * 1025, "access": "r"}]), "has more than 1024 characters"),
        (json.dumps([{"path": "/a", "access": "r"}] * 33), "has more than 32 rules"),
    ],
)
def test_create_refuses_rules_without_sense(empty: Rig, rules: str, reason: str) -> None:
    head = b'{"payload":{"kernel":"/k"},"landlock_enable":true,"landlock_rules":'
    answer = empty.put("vm.create", head + rules.encode() + b"}")
    assert answer.status == 400
    assert reason in str(answer.json())
    assert empty.get("vm.info").status == 404


def test_create_refuses_rules_that_cannot_be_kept_to(empty: Rig) -> None:
    empty.answers[Confine] = Failed("landlock_rules: open /a: No such file or directory")
    answer = empty.put("vm.create", b'{"payload":{"kernel":"/k"},%s}' % RULES)
    assert answer.status == 500
    assert empty.get("vm.info").status == 404
