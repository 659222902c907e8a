# SPDX-License-Identifier: BSD-3-Clause
"""What Kata (Go and Rust), libvirt, curl and ch-remote send, in pieces, and how they read answers.

The request bytes are theirs. Each answer is read by the rules of its client.
"""

from __future__ import annotations

import json
import os
import re
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from crosvm_py.requests.creation import Booted, BootVm, KeepFds, KeptFds
from tests.crosvm_py.api.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KATA_RS_CONFIG = {
    "cpus": {"boot_vcpus": 1, "max_vcpus": 4, "max_phys_bits": 46, "topology": None},
    "memory": {"size": 2 << 30, "hotplug_size": 4 << 30, "shared": True, "hotplug_method": "Acpi"},
    "payload": {"kernel": "/k", "cmdline": "a b", "initramfs": None, "firmware": None},
    "disks": [
        {"path": "/image", "readonly": True, "num_queues": 1, "queue_size": 1024}
        | {"image_type": "Unknown", "id": None, "rate_limiter_config": None}
    ],
    "net": None,
    "rng": {"src": "/dev/urandom", "iommu": False},
    "balloon": None,
    "serial": {"mode": "Off", "file": None, "iommu": False},
    "console": {"mode": "Off", "file": None, "iommu": False},
    "vsock": {"cid": 3, "socket": "/run/ch-vm.sock", "id": None},
    "iommu": False,
}


class Step(NamedTuple):
    """A request, and the status that its client waits for."""

    data: bytes
    status: int
    fds: int = 0


def plain(method: str, name: str, body: object = None, *extra: str) -> bytes:
    """Return a request as ch-remote and Kata's Rust runtime write it."""
    text = "" if body is None else json.dumps(body)
    length = [] if body is None else [f"Content-Length: {len(text)}"]
    lines = [f"{method} /api/v1/{name} HTTP/1.1", "Host: localhost", "Accept: */*", *length, *extra]
    return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()


def go(method: str, name: str, body: object = None) -> bytes:
    """Return a request as Kata's generated client in Go writes it."""
    text = "" if body is None else json.dumps(body)
    lines = [
        f"{method} /api/v1/{name} HTTP/1.1",
        "Host: localhost",
        "User-Agent: OpenAPI-Generator/1.0.0/go",
        *([f"Content-Length: {len(text)}"] if method == "PUT" else []),
        *(["Content-Type: application/json"] if body is not None else []),
        "Accept: application/json",
        "Accept-Encoding: gzip",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()


def curl(method: str, name: str, body: object = None) -> bytes:
    """Return a request as libcurl writes it, with libvirt's headers."""
    text = "" if body is None else json.dumps(body)
    lines = [
        f"{method} /api/v1/{name} HTTP/1.1",
        "Host: localhost",
        "Accept: application/json",
        *(["Content-Type: application/json"] if method == "PUT" else []),
        *([f"Content-Length: {len(text)}"] if method == "PUT" else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()


ADD_NET = {"mac": "02:00:00:00:00:01", "num_queues": 2, "queue_size": 256, "fds": [17]}
KATA_RS = (
    Step(plain("GET", "vmm.ping"), 200),
    Step(plain("PUT", "vm.create", KATA_RS_CONFIG), 204),
    Step(plain("PUT", "vm.add-net", ADD_NET), 204, fds=1),
    Step(plain("PUT", "vm.boot"), 204),
    Step(plain("GET", "vm.info"), 200),
    Step(plain("PUT", "vmm.shutdown"), 200),
)
KATA_GO = (
    Step(go("GET", "vmm.ping"), 200),
    Step(go("PUT", "vm.create", KATA_RS_CONFIG), 204),
    Step(go("GET", "vm.info"), 200),
    Step(plain("PUT", "vm.add-net", ADD_NET, "Content-Type: application/json"), 204, fds=1),
    Step(go("PUT", "vm.boot"), 204),
    Step(go("GET", "vm.info"), 200),
    Step(go("PUT", "vmm.shutdown"), 200),
)
LIBVIRT = (
    Step(curl("GET", "vmm.ping"), 200),
    Step(curl("PUT", "vm.create", KATA_RS_CONFIG), 204),
    Step(plain("PUT", "vm.add-net", ADD_NET, "Content-Type: application/json"), 204, fds=1),
    Step(curl("PUT", "vm.boot"), 204),
    Step(curl("GET", "vm.info"), 200),
    Step(curl("PUT", "vmm.shutdown"), 200),
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, None, boots=True)
    made.state = "waiting"
    made.answers |= {BootVm: Booted(0, ()), KeepFds: KeptFds((17,))}
    yield made
    made.close()


def send(rig: Rig, sock: socket.socket, step: Step, size: int) -> None:
    """Send in pieces; the descriptors go with the first of them."""
    sent = [os.eventfd(0) for _ in range(step.fds)]
    rights = b"".join(fd.to_bytes(4, "little") for fd in sent)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if sent else []
    sock.sendmsg([step.data[:size]], ancillary)
    rig.turn(2)
    for at in range(size, len(step.data), size):
        sock.send(step.data[at : at + size])
        rig.turn(1)
    rig.turn()
    for fd in sent:
        os.close(fd)


def read_as_ch_remote(sock: socket.socket) -> tuple[int, str]:
    """Read as ch-remote and Kata's Rust runtime do: pieces of 256 bytes, exact names of headers."""
    text = ""
    while "\r\n\r\n" not in text:
        text += sock.recv(256).decode()
    start = text.index("\r\n\r\n") + 4
    if "Content-Length: " in text[:start]:
        after = text.partition("Content-Length: ")[2]
        length = int(after[: after.index("\r")])
        while len(text) < start + length:
            text += sock.recv(256).decode()
    status = int(text[text.index("HTTP/1.1") + len("HTTP/1.1 ") : text.index("\r")])
    return status, text[start:]


def read_as_libvirt(sock: socket.socket) -> int:
    """Read as libvirt does after add-net: one piece of at most 1,023 bytes."""
    found = re.match(rb"HTTP/1\.\d (\d{3})", sock.recv(1023))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("size", [1, 256, 100_000])
@pytest.mark.parametrize("steps", [KATA_RS, KATA_GO, LIBVIRT], ids=["Rust", "Go", "libvirt"])
def test_client_gets_through_on_one_connection(
    rig: Rig, steps: tuple[Step, ...], size: int
) -> None:
    with rig.client() as sock:
        for step in steps:
            send(rig, sock, step, size)
            if step.fds and steps is LIBVIRT:
                assert read_as_libvirt(sock) == step.status
                continue
            status, body = read_as_ch_remote(sock)
            assert status == step.status, body
            assert body.isascii()
            if status == 200 and body:
                assert isinstance(json.loads(body), dict)
    assert len(rig.fds_asked) == 1


def test_what_kata_reads_of_info_is_there(rig: Rig) -> None:
    assert rig.put("vm.create", json.dumps(KATA_RS_CONFIG).encode()).status == 204
    found = json.loads(rig.get("vm.info").body)
    config = found["config"]
    assert found["state"] == "Created"
    assert {"boot_vcpus", "max_vcpus", "max_phys_bits"} <= config["cpus"].keys()
    assert config["rng"]["src"] == "/dev/urandom"
    assert (config["serial"]["mode"], config["console"]["mode"]) == ("Off", "Off")
    assert {"num_queues", "queue_size"} <= config["disks"][0].keys()
    assert config["vsock"] == config["vsock"] | {"cid": 3, "socket": "/run/ch-vm.sock"}


def test_large_body_is_sent_after_the_go_ahead(rig: Rig) -> None:
    body = json.dumps(KATA_RS_CONFIG | {"padding": "x" * (2 << 20)})
    head = plain("PUT", "vm.create", None, f"Content-Length: {len(body)}", "Expect: 100-continue")
    with rig.client() as sock:
        sock.send(head)
        rig.turn()
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 \r\n")
        for at in range(0, len(body), 50_000):
            sock.sendall(body[at : at + 50_000].encode())
            rig.turn(1)
        rig.turn()
        assert read_as_ch_remote(sock)[0] == 204
