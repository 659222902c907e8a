# SPDX-License-Identifier: BSD-3-Clause
"""vsock with real guests: both ways, through UNIX sockets and through the host's kernel."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.e2e.support import BUILTIN, CLOUD, TESTER, Kernel, Lab

if TYPE_CHECKING:
    from tests.kvmhost.fixture import Command, KvmHost

PEER: Final = "/project/tests/e2e/vsock_peer.py"
CID: Final = 77
SEQPACKET: Final = 5  # socat has no word for it
ANSWER: Final = len("answer to question\n")
CROWD: Final = 200
MIB: Final = 1 << 20
NOISE_MIB: Final = 64
REBINDS: Final = 20
PAUSES: Final = 3
SECONDS: Final = 240.0

# Ports: 5001 sends to the guest, 5002 takes from it, 5003 holds a crowd of it, 5004 answers a
# message; 80 echoes, 81 ends.
USE_VSOCK: Final = f"""
set -e
driver=/sys/bus/virtio/drivers/vmw_vsock_virtio_transport
device=$(basename $driver/virtio*)
for i in $(seq {REBINDS}); do
    echo $device >$driver/unbind
    echo $device >$driver/bind
done
echo "guest: begins"
fact from_host sh -c 'socat -u -b 65536 VSOCK-CONNECT:2:5001 - | sha256sum'
socat -u -b 65536 OPEN:/dev/vdb,rdonly VSOCK-CONNECT:2:5002
for i in $(seq {CROWD}); do
    echo guest $i | socat -t 200 - VSOCK-CONNECT:2:5003 >/tmp/crowd.$i &
done
wait
fact crowd sh -c 'cat /tmp/crowd.* | sort -u | wc -l'
fact messages sh -c 'echo question | socat -t 99 - VSOCK-CONNECT:2:5004,type={SEQPACKET} | wc -c'
fact refused sh -c 'socat -u VSOCK-CONNECT:2:5999 - 2>&1 | grep -c reset'
socat VSOCK-LISTEN:80,fork,backlog={CROWD} PIPE &
echo "guest: listens"
socat -u VSOCK-LISTEN:81 -
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


class Case(NamedTuple):
    """Who runs crosvm with what."""

    user: str
    kernel: Kernel
    cpus: int
    userspace: bool


@pytest.fixture(
    params=[
        pytest.param(Case(TESTER, BUILTIN, 2, True), id="unix-sockets-user-builtin"),
        pytest.param(Case("root", CLOUD, 1, True), id="unix-sockets-root-cloud"),
        pytest.param(Case("root", BUILTIN, 2, False), id="kernel-root-builtin"),
        pytest.param(Case(TESTER, CLOUD, 1, False), id="kernel-user-cloud"),
    ]
)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def peer(host: KvmHost, stack: ExitStack, where: str, user: str, *words: str) -> Command:
    """Start the host's end of connections and return when it listens."""
    command = host.start(["python3", "-I", PEER, where, *words], user=user)
    stack.enter_context(command)
    command.wait_for("listening")
    return command


def test_bytes_and_crowds_go_both_ways(kvmhost: KvmHost, case: Case) -> None:
    lab = Lab(kvmhost, case.user)
    noise_sum = lab.shell(f"""
        head -c {NOISE_MIB}M /dev/urandom >noise.img
        sha256sum <noise.img
    """).split()[0]
    noise = f"{lab.folder}/noise.img"
    path = f"{lab.folder}/v"
    where = f"unix:{path}" if case.userspace else f"vsock:{CID}"
    option = f"cid={CID},socket={path}" if case.userspace else f"{CID}"
    with ExitStack() as stack:
        ends = [
            peer(kvmhost, stack, where, case.user, "send", "5001", noise),
            peer(kvmhost, stack, where, case.user, "save", "5002", f"{lab.folder}/saved"),
            peer(kvmhost, stack, where, case.user, "hold", "5003", f"{CROWD}"),
            peer(
                kvmhost, stack, where.replace(":", "-seqpacket:", 1), case.user, "hold", "5004", "1"
            ),
        ]
        vm = stack.enter_context(
            lab.start(
                *("--vsock", option, "-c", f"{case.cpus}", "-m", "512", "--block", f"{noise},ro"),
                kernel=case.kernel,
                script=USE_VSOCK,
            )
        )
        vm.wait_for("guest: begins")
        for verb in ["suspend", "resume"] * PAUSES:
            assert vm.control(verb).status == 0, vm.log
        vm.wait_for("guest: listens")
        assert [end.wait(SECONDS) for end in ends] == [0] * 4, [end.stderr for end in ends]
        crowd = kvmhost.run(
            ["python3", "-I", PEER, where, "crowd", "80", f"{CROWD}"],
            user=case.user,
            timeout=SECONDS,
        )
        assert crowd.status == 0, (crowd, vm.log)
        say_goodbye(kvmhost, case, path)
        facts = vm.finish()
    assert facts["from_host"].split()[0] == noise_sum
    lab.shell("cmp noise.img saved")
    assert facts["crowd"] == str(CROWD)
    assert facts["messages"] == f"{ANSWER}"
    assert facts["refused"] == "1"
    assert facts["errors"] == ""
    assert "WARN" not in vm.log.replace("every user", "")
    lab.shell("test ! -e v -a ! -e v.seqpacket")
    lab.close()


def say_goodbye(host: KvmHost, case: Case, path: str) -> None:
    """Connect to port 81 with the tool that people use, and close."""
    if case.userspace:
        command = f"printf 'CONNECT 81\\n' | socat -t 5 - UNIX-CONNECT:{path}"
    else:
        command = f"socat -u OPEN:/dev/null VSOCK-CONNECT:{CID}:81"
    host.shell(command, user=case.user)
