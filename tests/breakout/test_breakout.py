# SPDX-License-Identifier: BSD-3-Clause
"""Nothing gets out of any kind of device, and the suite would see it if something did."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from crosvm_py.device_process import protocol, vsock_broker
from crosvm_py.kinds.table import DEVICE_KINDS
from sys_util import child_log, linux
from tests.breakout import brokering, inmate, lies
from tests.breakout.__main__ import main
from tests.breakout.attempt import KINDS, Attempt
from tests.breakout.inmate import filters_left_out
from tests.breakout.matrix import ALL_GROUPS, Outcomes, Plan, Row, Verdict, summary
from tests.breakout.prison import numbers_for, prison
from tests.breakout.table import ATTEMPTS

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.root

# The command without arguments tries all of it; here sweeps are thinner, and of the lies each is
# told by one kind.
SHORT = Plan(sweep_step=3, flood=1500, lie_step=len(KINDS))


@pytest.fixture(scope="module")
def matrix() -> list[Row]:
    outcomes = Outcomes(SHORT)
    outcomes.find_out()
    return outcomes.rows()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", ALL_GROUPS)
def test_every_attempt_is_stopped(matrix: list[Row], group: str, kind: str) -> None:
    rows = [row for row in matrix if row.group == group]
    assert rows
    holes = {
        row.name: row.cells[kind]
        for row in rows
        if not Row(*row[:2], {kind: row.cells[kind]}).is_good
    }
    assert holes == {}


def test_every_kind_of_device_is_tried() -> None:
    assert sorted(KINDS) == sorted(DEVICE_KINDS)


def test_every_message_of_a_device_is_lied_about() -> None:
    found = (*vars(protocol).values(), *child_log.CHILD_MESSAGES)
    types = [one for one in found if isinstance(one, type)]
    said = {type(sample) for sample in lies.SAMPLES}
    assert said == {one for one in types if getattr(one, "TYPE", 0) >= protocol.Ready.TYPE}


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may not do what is proven here")
def test_what_is_refused_works_where_there_is_no_wall() -> None:
    wanted = [at for at in numbers_for("rng", alone=False) if ATTEMPTS[at].proof]
    with prison(("rng",), jail=False) as outside:
        found = outside.attempt("rng", wanted)
    assert len(found) == len(wanted) > 100
    failed = {ATTEMPTS[at].name: refusal for at, refusal in found.items() if refusal is not None}
    missing = {name for name, refusal in failed.items() if refusal.error == errno.ENOSYS}
    assert failed.keys() <= missing  # what this kernel was built without


@pytest.mark.slow
def test_thread_of_a_disk_has_every_wall_of_its_process() -> None:
    groups = tuple(group for group in ALL_GROUPS if group != lies.GROUP)
    outcomes = Outcomes(Plan(kinds=("block",), groups=groups, sweep_step=9, thread=True))
    outcomes.find_out()
    rows = outcomes.rows()
    assert len(rows) > 200
    assert {row.name: row.cells for row in rows if not row.is_good} == {}


def test_thread_that_the_filter_leaves_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    load = linux.load_seccomp_filter
    monkeypatch.setattr(linux, "load_seccomp_filter", lambda bpf, **_: load(bpf))
    outcomes = Outcomes(Plan(kinds=("block",), groups=("programs",), thread=True))
    outcomes.find_out()
    assert any(Verdict.OUT in row.cells.values() for row in outcomes.rows())


def test_broker_hands_over_what_is_the_devices_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the attempts to get more of it prove nothing."""
    allowed = Attempt(brokering.GROUP, "", brokering.asks(brokering.LISTENED))
    monkeypatch.setattr(inmate, "ATTEMPTS", (allowed,))
    with prison(("vsock",)) as inside:
        assert inside.attempt("vsock", [0]) == {0: None}


def test_hole_in_the_broker_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock_broker, "is_socket_of_a_vm", lambda _mode: False)
    outcomes = Outcomes(Plan(kinds=("vsock",), groups=("network",)))
    outcomes.find_out()
    assert [row.name for row in outcomes.rows() if not row.is_good] == [
        "have the broker connect to a control socket",
        "have the broker connect to the socket of another VM",
    ]


def test_hole_in_the_filter_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    with filters_left_out():
        status = main(["--device", "rng", "--group", "programs"])
    assert status == 1
    words = capsys.readouterr().out
    assert [line.split()[-1] for line in words.splitlines() if line.startswith("map exec")] == [
        "OUT"
    ]
    assert [line.split()[-2:] for line in words.splitlines() if line.startswith("fork")] == [
        ["F", "J"]
    ]


def test_hole_in_the_jail_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jail.steps.LeaveGroup.apply", lambda _step: None)
    outcomes = Outcomes(Plan(kinds=("rng",), groups=("processes",)))
    outcomes.find_out()
    gaps = [row.name for row in outcomes.rows() if not row.is_good]
    assert gaps == ["signal the process group"]
    assert not any(Verdict.OUT in row.cells.values() for row in outcomes.rows())


def test_published_table_is_what_the_command_prints() -> None:
    assert "\n".join(summary()) in (ROOT / "SECURITY.md").read_text(), (
        "python -m tests.breakout --summary"
    )
