# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm balloon`` and ``crosvm balloon_stats``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands import balloon, balloon_stats
from crosvm_py.cli.dispatch import execute
from crosvm_py.control import socket_client as client
from crosvm_py.requests.balloon import BalloonAdjust, BalloonQuery, BalloonSet
from crosvm_py.requests.protocol import Done
from devices.virtio.balloon.stats import STAT_NAMES
from devices.virtio.commands import BalloonState
from sys_util.errors import UsageError

if TYPE_CHECKING:
    from crosvm_py.requests.protocol import Request, Response

MIB = 1 << 20


def state(target: int, actual: int, **changes: object) -> BalloonState:
    fields: dict[str, object] = {
        "released_bytes": 0,
        "has_driver": True,
        "has_stats": True,
        "updates": 1,
        "stats": (),
        "hint_done": True,
        "hinted_bytes": 0,
        "clamped": False,
    }
    return BalloonState(target, actual, **(fields | changes))  # type: ignore[arg-type]  # as named


class FakeVms:
    """VMs that give these answers in turn; the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Request]] = []
        self.answers: list[Response] = []
        self.now = 0.0

    def ask(self, path: str, request: Request) -> Response:
        self.asked.append((path, request))
        if path == "gone":
            raise client.ControlError("gone: no VM")
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def vms(monkeypatch: pytest.MonkeyPatch) -> FakeVms:
    vms = FakeVms()
    monkeypatch.setattr(client, "ask", vms.ask)
    monkeypatch.setattr(balloon, "time", vms)
    monkeypatch.setattr(balloon_stats, "time", vms)
    return vms


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["0", "s"], BalloonSet(0)),
        (["1g", "s"], BalloonSet(1 << 30)),
        (["4097", "s"], BalloonSet(4097)),
        (["--pages", "-3", "s"], BalloonAdjust(-3)),
        (["--pages=+3", "s"], BalloonAdjust(3)),
        (["s", "--pages", "3"], BalloonAdjust(3)),
    ],
)
def test_balloon_asks_for_a_size(vms: FakeVms, words: list[str], request_: Request) -> None:
    vms.answers = [state(1, 0)]
    assert execute(["balloon", *words]) == 0
    assert vms.asked == [("s", request_)]


def test_balloon_goes_on_with_the_next_vm_after_a_failure(
    vms: FakeVms, capfd: pytest.CaptureFixture[str]
) -> None:
    vms.answers = [state(1, 0)]
    assert execute(["balloon", "1m", "a", "gone", "b"]) == 1
    assert [path for path, _ in vms.asked] == ["a", "gone", "b"]
    assert capfd.readouterr().err == "crosvm: balloon: gone: no VM\n"


def test_balloon_says_what_the_user_did_not_ask_for(
    vms: FakeVms, capfd: pytest.CaptureFixture[str]
) -> None:
    vms.answers = [state(256, 0, clamped=True, has_driver=False)]
    assert execute(["balloon", "1t", "s"]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "crosvm: balloon: s: no such size is possible, it becomes 1 MiB",
        "crosvm: balloon: s: no driver in the guest yet, the size waits for it",
    ]


def test_balloon_wait_follows_the_guest(vms: FakeVms) -> None:
    vms.answers = [state(100, 0), state(100, 30), state(100, 90), state(100, 100)]
    assert execute(["balloon", "--wait", "400k", "s"]) == 0
    look = ("s", BalloonQuery(False, False))
    assert vms.asked == [("s", BalloonSet(400 << 10)), look, look, look]


def test_balloon_wait_gives_up_when_nothing_moves(
    vms: FakeVms, capfd: pytest.CaptureFixture[str]
) -> None:
    vms.answers = [state(512, 0), state(512, 256)]
    assert execute(["balloon", "--wait", "2m", "s"]) == 1
    assert capfd.readouterr().err == "crosvm: balloon: s: the guest goes no further: 1 of 2 MiB\n"
    assert balloon.STALL_SECONDS < vms.now < 2 * balloon.STALL_SECONDS


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["balloon"], "balloon: SOCKET is missing"),
        (["balloon", "1m"], "SIZE or SOCKET is missing"),
        (["balloon", "big", "s"], "SIZE 'big': not a number"),
        (["balloon", "--pages", "1k", "s"], "--pages: '1k': not a number"),
        (["balloon", "--pages", "--3", "s"], "--pages: '--3'"),
        (["balloon", "--pages", "99999999999", "s"], "is more than 4294967296 pages"),
        (["balloon", "-5", "s"], "unknown option -5"),
        (["balloon_stats"], "SOCKET is missing"),
        (["balloon_stats", "a", "b"], "unexpected argument 'b'"),
    ],
)
def test_command_lines_that_make_no_sense(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason.replace("+", r"\+")):
        execute(words)


def printed(capfd: pytest.CaptureFixture[str]) -> dict[str, object]:
    told: dict[str, dict[str, object]] = json.loads(capfd.readouterr().out)
    return told["BalloonStats"]


def test_balloon_stats_waits_for_fresh_numbers_and_prints_all_names(
    vms: FakeVms, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = state(512, 256, updates=5, stats=((4, 1000), (15, 7)), released_bytes=4096)
    vms.answers = [state(512, 0, updates=4, stats=((4, 1),)), state(512, 1, updates=4), fresh]
    assert execute(["balloon_stats", "s"]) == 0
    told = printed(capfd)
    assert (told["balloon_actual"], told["balloon_target"]) == (MIB, 2 * MIB)
    assert told["released_total"] == 4096
    stats = dict.fromkeys(STAT_NAMES) | {"free_memory": 1000, "direct_reclaims": 7}
    assert told["stats"] == stats
    assert vms.asked[0] == ("s", BalloonQuery(True, False))


def test_balloon_stats_asks_for_hints_after_the_numbers(
    vms: FakeVms, capfd: pytest.CaptureFixture[str]
) -> None:
    vms.answers = [
        state(0, 0),
        state(0, 0, updates=2, stats=((4, 1000),)),
        state(0, 0, updates=2),
        state(0, 0, updates=2, hint_done=False),
        state(0, 0, updates=2, hinted_bytes=MIB),
    ]
    assert execute(["balloon_stats", "--free-page-hints", "s"]) == 0
    told = printed(capfd)
    assert told["free_page_hints"] == MIB
    assert isinstance(told["stats"], dict)
    assert told["stats"]["free_memory"] == 1000
    assert [request for _, request in vms.asked[:3]] == [
        BalloonQuery(True, False),
        BalloonQuery(False, False),
        BalloonQuery(False, True),
    ]


def test_balloon_stats_of_a_driver_without_any_does_not_wait(vms: FakeVms) -> None:
    vms.answers = [state(0, 0, has_stats=False)]
    assert execute(["balloon_stats", "s"]) == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(state(0, 0, has_driver=False), "no balloon driver", id="driver"),
        pytest.param(state(0, 0), "the guest does not answer", id="silent"),
        pytest.param(Done(), "an answer to another question", id="answer"),
    ],
)
def test_balloon_stats_that_cannot_be_had(vms: FakeVms, answer: Response, reason: str) -> None:
    vms.answers = [answer]
    with pytest.raises(client.ControlError, match=reason):
        execute(["balloon_stats", "s"])
