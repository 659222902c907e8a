# SPDX-License-Identifier: BSD-3-Clause
"""Network cards whose processes are killed under load: connections and checksums hold."""

from __future__ import annotations

import json
import random
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.test_net import ADDRESS, DHCP, HOST_IP, SERVER_IP, TAP, uplink  # noqa: F401 - a fixture
from tests.e2e.test_restart_others import Killer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.support import Lab

MIB: Final = 8
KILLS: Final = 5

# The host sends the same to everyone at one port, and writes down what came to the other.
SOURCE: Final = "OPEN:{folder}/blob"
SINK: Final = "SYSTEM:sha256sum >>{folder}/came"

# Both directions at once, again and again, each time on two connections that live through all that
# happens meanwhile; a last round after it.
LOAD: Final = """
ping -i 0.2 {host} >/tmp/ping & ping=$!
socat -u TCP:{host}:5000,retry=9 OPEN:/tmp/blob,creat
(read word </dev/ttyS0; echo >/tmp/stop) &
count=0; last=; : >/tmp/broken
until [ $last ]; do
    [ -e /tmp/stop ] && last=yes
    [ $count = 0 ] && echo the load runs
    count=$((count + 1))
    (socat -u TCP:{host}:5000,retry=9 - || echo broken) | sha256sum >>/tmp/sums &
    socat -u OPEN:/tmp/blob TCP:{host}:5001,retry=9 || echo broken >>/tmp/broken
    wait $!
done
kill -INT $ping; wait $ping
fact rounds echo $count
fact broken cat /tmp/broken
fact sums sh -c 'sort -u /tmp/sums'
fact end tail -n 1 /tmp/sums
fact ping grep packets /tmp/ping
fact after sh -c 'ping -c 3 {host} | grep packets'
fact errors /bin/dmesg -l emerg,alert,crit,err
sleep 2
"""


@pytest.fixture
def digest(lab: Lab) -> Iterator[str]:
    """Serve at both ports; yield the checksum of what is sent."""
    lab.shell(f"head -c {MIB}M /dev/urandom >blob")
    source, sink = (it.format(folder=lab.folder) for it in (SOURCE, SINK))
    with ExitStack() as stack:
        for words in (
            ["-U", "TCP-LISTEN:5000,reuseaddr,fork", source],
            ["-u", "TCP-LISTEN:5001,reuseaddr,fork", sink],
        ):
            stack.enter_context(lab.host.start(["socat", *words]))
        yield lab.shell("sha256sum <blob").split()[0]


def endure(lab: Lab, script: str, *options: str) -> dict[str, str]:
    """Kill the card of a guest that has traffic, and return what the guest says of it."""
    moments = random.Random(4)
    with lab.start(*options, "-m", "512", script=script) as vm:
        vm.wait_for("the load runs")
        killer = Killer(lab, vm)
        for _ in range(KILLS):
            lab.shell(f"sleep {moments.uniform(0, 0.7):.2f}")
            killer.kill("net:0")
        found = json.loads(lab.host.run(["crosvm", "devices", "--json", vm.socket]).stdout)
        vm.command.send("go\n")
        facts = vm.finish()
    assert [one["counters"]["restarts"] for one in found if one["name"] == "net:0"] == [KILLS]
    assert facts["errors"] == ""
    return facts


@pytest.mark.parametrize("options", ["", ",vhost-net"], ids=["ours", "kernel"])
def test_killed_card_on_a_tap_breaks_no_connection(lab: Lab, digest: str, options: str) -> None:
    script = ADDRESS + LOAD.format(host=HOST_IP)
    facts = endure(lab, script, "--net", f"{TAP},vq-pairs=2{options}", "-c", "2")
    assert facts["broken"] == ""
    assert set(facts["sums"].split()) == {digest, "-"}
    assert lab.shell("cat came").split() == [digest, "-"] * int(facts["rounds"])
    sent, received = map(int, re.findall(r"(\d+) packets", facts["ping"]))
    assert sent / 2 < received
    assert "3 packets received" in facts["after"]


@pytest.mark.usefixtures("uplink")
def test_killed_user_mode_card_carries_on(lab: Lab, tester_lab: Lab, digest: str) -> None:
    facts = endure(tester_lab, DHCP + LOAD.format(host=SERVER_IP), "--net", "user")
    # passt itself may have reset a connection in mid-flight; it is never without a network.
    assert facts["end"].split() == [digest, "-"]
    assert lab.shell("tail -n 1 came").split() == [digest, "-"]
    assert len(facts["broken"].split()) <= KILLS
    assert tester_lab.host.run(["pgrep", "passt"]).stdout == ""
