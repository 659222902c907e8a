# SPDX-License-Identifier: BSD-3-Clause
"""A rehearsal with all that the host's kernel gives leaves the host as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.e2e.support import BUILTIN

if TYPE_CHECKING:
    from tests.e2e.support import Lab

# What a run of these words would make, or change, until it ends.
STATE = """
ip -o link; ip -o addr; ip route
find /sys/fs/cgroup -name 'crosvm*'; cat /sys/fs/cgroup/cgroup.subtree_control
pgrep -l passt || :
ls -l
"""
TAP = "host-ip=10.8.0.1,netmask=255.255.255.0"


def rehearse(lab: Lab, *words: str) -> dict[str, dict[str, object]]:
    """Return the devices of the plan of a run, by name."""
    serial = ("--serial", "type=stdout,console")
    command = ["crosvm", "run", "--dry-run", "--json", *serial, *words, BUILTIN.path]
    done = lab.host.run(command, cwd=lab.folder, user=lab.user)
    assert done.status == 0, done.stderr
    devices: list[dict[str, object]] = json.loads(done.stdout)["devices"]
    return {str(device["name"]): device for device in devices}


def test_rehearsal_of_root_changes_nothing_of_the_host(lab: Lab) -> None:
    disk = lab.disk("disk.img", 1)
    before = lab.shell(STATE)
    words = (
        "--net",
        f"{TAP},vhost-net,vq-pairs=2",
        "--net",
        TAP.replace("8", "7"),
        "--net",
        "user",
    )
    devices = rehearse(lab, *words, "--rwdisk", disk, "--vsock", "3", "-s", "vm.sock")
    assert lab.shell(STATE) == before
    assert list(devices) == ["block:0", "net:0", "net:1", "net:2", "rng", "vsock"]
    assert devices["net:0"]["kind"] == "vhost-net"
    assert devices["net:0"]["queues"] == [256] * 4 + [64]
    assert devices["vsock"]["kind"] == "vhost-vsock"


def test_rehearsal_of_an_ordinary_user_needs_what_the_run_needs(tester_lab: Lab) -> None:
    before = tester_lab.shell(STATE)
    devices = rehearse(tester_lab, "--net", "user,hostfwd=8080:80", "--vsock", "3,socket=v.sock")
    assert tester_lab.shell(STATE) == before
    assert [device["source"] for device in devices.values()] == ["passt", "", ""]
    refused = ["crosvm", "run", "--dry-run", "--net", TAP, BUILTIN.path]
    done = tester_lab.host.run(refused, cwd=tester_lab.folder, user=tester_lab.user)
    assert done.status == 1
    assert "ip tuntap add dev tap0" in done.stderr
