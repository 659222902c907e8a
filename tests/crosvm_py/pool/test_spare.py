# SPDX-License-Identifier: BSD-3-Clause
"""Which run may adopt a spare warden, and what a spare refuses."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from crosvm_py.kinds.policies import CONTROL, load_run_policies, load_spare_policies
from crosvm_py.pool import head_start, waiting_warden
from crosvm_py.pool.spare_protocol import SPARE_CODEC, Adopt, SocketFile
from crosvm_py.pool.spare_warden import SpareWarden
from jail.plan import device_jail
from jail.spare import limits_of, without_limits
from jail.steps import LimitResources
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ChannelClosed, HostError, ProtocolError
from sys_util.log import INFO

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.kinds.policies import RunPolicies

ADOPT = Adopt(("rng",), "warden", ("rng_device",), (SocketFile(b"/s", 1, 2),), INFO, (), None, True)


@pytest.mark.parametrize(
    ("policies", "suits"),
    [
        pytest.param(lambda: load_run_policies(["rng", "block"]), True, id="usual"),
        pytest.param(lambda: load_run_policies(["rng"], control=CONTROL), True, id="control"),
        pytest.param(lambda: load_run_policies(["vsock"]), True, id="broker"),
        pytest.param(lambda: load_run_policies(["rng"], log_failures=True), False, id="log"),
        pytest.param(lambda: None, False, id="no-sandbox"),
    ],
)
def test_spare_suits_runs_with_the_same_filters(
    policies: Callable[[], RunPolicies | None], suits: bool
) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    ours, theirs = socket_pair()
    with theirs:
        one = SpareWarden(ours, pid, *load_spare_policies())
        try:
            assert one.suits(policies()) is suits
        finally:
            os.waitpid(pid, 0)
            for fd in one.fds():
                os.close(fd)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_order_with_a_wrong_number_of_descriptors_is_refused(count: int) -> None:
    ours, theirs = socket_pair()
    sender = Channel(ours, SPARE_CODEC)
    sender.send(ADOPT, [0] * count)
    receiver = Channel(theirs, SPARE_CODEC)
    with pytest.raises(ProtocolError, match=f"Adopt with {count} descriptors"):
        waiting_warden._next(receiver)
    sender.close()
    with pytest.raises(ChannelClosed):
        waiting_warden._next(receiver)
    receiver.close()


def test_two_parts_of_a_jail_are_all_of_it() -> None:
    whole = device_jail(policy_name="rng_device", bpf=b"", keep_fds=(), max_file_bytes=4096)
    first, second = without_limits(whole), limits_of(whole)
    assert {*first.steps, *second.steps} == set(whole.steps)
    assert all(isinstance(step, LimitResources) for step in second.steps)
    assert (second.filter_step, second.late_steps) == (whole.filter_step, whole.late_steps)


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "too many"), HostError("clone", "namespaces")], ids=repr
)
def test_host_that_refuses_a_spare_leaves_the_warden_to_the_run(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr("crosvm_py.pool.spare_warden.start_spare_warden", refuse)
    assert head_start._start_spare() is None
