# SPDX-License-Identifier: BSD-3-Clause
"""The vmm against a device process that an attacker has taken over."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol
from crosvm_py.vmm.death import DeviceDeath
from sys_util import child_log, wire
from tests.crosvm_py.hostile_device import CONFIG, READY, HostileDevice, queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from sys_util.wire import Message

pytestmark = pytest.mark.usefixtures("steady_fds")

Line = tuple[int, str, str]


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# Messages that it may send


def test_ready_tells_what_the_device_offers(fresh: HostileDevice) -> None:
    fresh.send(READY)
    fresh.turn()
    host = fresh.host
    assert fresh.ready == 1
    assert (host.device_type, host.features) == (2, 0x1_3000_0000)
    assert (host.queue_sizes, host.config) == ((256, 256), CONFIG)


def test_done_after_reset_reaches_the_transport_under_the_lock(device: HostileDevice) -> None:
    device.host.reset()
    message, _ = device.take()
    assert isinstance(message, protocol.Reset)
    device.send(protocol.Done(message.request_id))
    device.turn()
    assert device.events.calls == ["reset_done"]


def test_answers_in_any_order_reach_whom_they_are_for(device: HostileDevice) -> None:
    for index in (1, 0):
        device.host.reset_queue(index)
    asked = [device.take()[0] for _ in range(2)]
    assert asked == [protocol.ResetQueue(1, 1), protocol.ResetQueue(2, 0)]
    device.send(protocol.Done(2), protocol.Done(1))
    device.turn()
    assert device.events.calls == ["queue_reset_done 0", "queue_reset_done 1"]


def test_requests_arrive_in_the_order_of_the_calls(device: HostileDevice) -> None:
    calls: list[Callable[[DeviceProcess], None]] = [
        lambda host: host.activate(1 << 32, ()),
        lambda host: host.write_config(3, b"x"),
        lambda host: host.reset_queue(0),
        lambda host: host.pause(lambda: None),
        lambda host: host.resume(lambda: None),
        lambda host: host.reset(),
    ]
    for call in calls:
        call(device.host)
    assert [device.take()[0] for _ in calls] == [
        protocol.Activate(1, 1 << 32, ()),
        protocol.WriteConfig(2, (protocol.ConfigWrite(3, b"x"),)),
        protocol.ResetQueue(3, 0),
        protocol.Pause(4),
        protocol.Resume(5),
        protocol.Reset(6),
    ]


def test_queues_cross_with_their_descriptors_beside_them(device: HostileDevice) -> None:
    with queue(0) as first, queue(1) as second:
        device.host.activate(1 << 32, (first, second))
        message, fds = device.take()
        assert message == protocol.Activate(
            1, 1 << 32, tuple(q._replace(kick_fd=-1, call_fd=-1) for q in (first, second))
        )
        os.eventfd_write(first.kick_fd, 3)
        os.eventfd_write(second.call_fd, 4)
        assert (os.eventfd_read(fds[0]), os.eventfd_read(fds[3])) == (3, 4)
    for fd in fds:
        os.close(fd)


def test_enabled_queue_crosses_with_its_descriptors(device: HostileDevice) -> None:
    with queue(1) as one:
        device.host.enable_queue(one)
        message, fds = device.take()
    assert message == protocol.EnableQueue(1, one._replace(kick_fd=-1, call_fd=-1))
    assert len(fds) == 2
    for fd in fds:
        os.close(fd)


def test_pause_and_resume_call_back(device: HostileDevice) -> None:
    done: list[str] = []
    device.host.pause(lambda: done.append("paused"))
    device.host.resume(lambda: done.append("resumed"))
    device.send(protocol.Done(1))
    device.turn()
    assert done == ["paused"]
    device.send(protocol.Done(2))
    device.turn()
    assert done == ["paused", "resumed"]


def test_changed_configuration_is_kept_and_passed_on(device: HostileDevice) -> None:
    device.send(protocol.ConfigChanged(CONFIG[::-1]))
    device.turn()
    assert device.host.config == CONFIG[::-1]
    assert device.events.calls == [f"config_changed {CONFIG[::-1].hex()}"]


def test_changed_configuration_is_answered_once_the_driver_reads_it(device: HostileDevice) -> None:
    device.send(protocol.ConfigChanged(CONFIG[::-1], number=7))
    with pytest.raises(BlockingIOError):
        device.take()
    device.turn()
    assert device.events.calls == [f"config_changed {CONFIG[::-1].hex()}"]
    assert device.take() == (protocol.ConfigTaken(7), [])


def test_configuration_that_the_driver_wrote_is_kept_without_telling_it(
    device: HostileDevice,
) -> None:
    device.send(protocol.ConfigChanged(CONFIG[::-1], by_driver=True))
    device.turn()
    assert device.host.config == CONFIG[::-1]
    assert device.events.calls == [f"config_written {CONFIG[::-1].hex()}"]


def test_failed_queue_makes_the_device_need_a_reset(device: HostileDevice) -> None:
    device.send(protocol.QueueFailed(1, "the driver is mad"))
    device.turn()
    assert device.events.calls == ["set_needs_reset"]
    assert device.host.is_open


def test_what_arrives_before_there_is_a_transport_reaches_nobody(device: HostileDevice) -> None:
    device.host.events = None
    device.send(protocol.QueueFailed(0, "early"), protocol.ConfigChanged(CONFIG[::-1]))
    device.turn()
    assert device.host.is_open
    assert device.host.config == CONFIG[::-1]


# Messages that it must not send: the vmm ends the process, with the reason as the verdict.

LONG_TEXT = "x" * 9000

HOSTILE = [
    pytest.param(b"\xc1", "not msgpack", id="garbage"),
    pytest.param(b"\x92\x21", "not msgpack", id="half"),
    pytest.param(wire.encode(READY)[:-5], "not msgpack", id="half ready"),
    pytest.param(wire.encode(READY) + b"\x01", "not msgpack", id="two in one"),
    pytest.param(b"\x91" * 4000 + b"\x01", "more than 8 deep", id="deep"),
    pytest.param(b"\x01", "not an array", id="number"),
    pytest.param(b"\x90", "not an array", id="empty array"),
    pytest.param(b"\x81\xa1a\x02", "not an array", id="map"),
    pytest.param(b"\x92\xc3\x01", "not an array", id="type is true"),
    pytest.param(b"\x92\xa121", "not an array", id="type is text"),
    pytest.param(b"\x92\xcc\xc8\x01", "unknown type 200", id="unknown type"),
    pytest.param(b"\x92\xff\x01", "unknown type -1", id="negative type"),
    pytest.param(wire.encode(protocol.Reset(1)), "unknown type 4", id="the vmm's own"),
    pytest.param(b"\x91\x21", "Done with 0 fields", id="too few fields"),
    pytest.param(b"\x93\x21\x01\x01", "Done with 2 fields", id="too many fields"),
    pytest.param(b"\x92\x21\xff", "not a whole number", id="negative id"),
    pytest.param(b"\x92\x21\xc2", "not a whole number", id="id is false"),
    pytest.param(b"\x92\x21\xcb" + bytes(8), "not a whole number", id="id is 0.0"),
    pytest.param(b"\x92\x21\xcf\x00\x00\x00\x01" + bytes(4), "not a whole number", id="id 2^32"),
    pytest.param(b"\x92\x25\xc0", "not a whole number", id="call is nil"),
    pytest.param(b"\x94\x23\xa1x\xc2\x00", "not a byte string", id="config is text"),
    pytest.param(
        wire.encode(protocol.ConfigChanged(bytes(4097))), "not a byte string", id="huge config"
    ),
    pytest.param(wire.encode(child_log.Crashed(LONG_TEXT)), "not a string", id="huge report"),
    pytest.param(wire.encode(child_log.LogLine(1, "m", LONG_TEXT)), "not a string", id="huge line"),
    pytest.param(wire.encode(protocol.QueueFailed(0, LONG_TEXT)), "not a string", id="huge reason"),
    pytest.param(b"\x94\x24\x01\xa1m\xa2\xff\xfe", "not msgpack", id="text is not UTF-8"),
    pytest.param(bytes(70_000), "larger than any of ours", id="oversized"),
    pytest.param(wire.encode(protocol.Done(7)), "request 7, which was not asked", id="unasked"),
    pytest.param(wire.encode(READY), "ready a second time", id="ready twice"),
    pytest.param(
        wire.encode(protocol.ConfigChanged(CONFIG + b"x")), "another size", id="config grows"
    ),
    pytest.param(wire.encode(protocol.ConfigChanged(b"")), "another size", id="config shrinks"),
    pytest.param(wire.encode(protocol.QueueFailed(2, "")), "queue 2 of 2", id="no such queue"),
    pytest.param(b"\x93\x23" + b"\x91" * 1010 + b"\xc0\xc2", "8 deep", id="deep field"),
]


@pytest.mark.parametrize(("payload", "reason"), HOSTILE)
def test_hostile_message_ends_the_device(
    device: HostileDevice, payload: bytes, reason: str
) -> None:
    before = open_fds()
    device.send_raw(payload)
    device.send_raw(payload)
    device.turn()
    assert reason in device.verdict
    assert device.host.death.describe("p") == f"ended by the vmm: {device.verdict}"
    assert not device.host.is_open
    assert device.failures == 1
    assert device.events.calls == []
    assert len(open_fds()) == len(before) - 1  # the channel's


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", wire.encode(child_log.LogLine(3, "m", "fine")), bytes(70_000)]
)
def test_descriptors_are_closed_and_end_the_device(device: HostileDevice, payload: bytes) -> None:
    before = open_fds()
    device.send_raw(payload, [0] * 100)
    device.turn()
    assert not device.host.is_open
    assert device.failures == 1
    assert len(open_fds()) == len(before) - 1


@pytest.mark.parametrize(
    "message",
    [
        protocol.ConfigChanged(CONFIG),
        protocol.QueueFailed(0, ""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_message_before_ready_ends_the_device(fresh: HostileDevice, message: Message) -> None:
    fresh.send(message)
    fresh.turn()
    assert "before it was ready" in fresh.verdict


def test_ready_twice_with_type_0_ends_the_device(fresh: HostileDevice) -> None:
    fresh.send(protocol.Ready(0, 0, (), b""), READY)
    fresh.turn()
    assert fresh.verdict == "ready a second time"
    assert fresh.host.queue_sizes == ()


def test_second_answer_to_one_request_ends_the_device(device: HostileDevice) -> None:
    device.host.reset()
    device.send(protocol.Done(1), protocol.Done(1))
    device.turn()
    assert device.events.calls == ["reset_done"]
    assert device.verdict == "answer to request 1, which was not asked"


def test_nothing_is_taken_after_the_first_wrong_message(device: HostileDevice) -> None:
    device.host.reset()
    device.send_raw(b"\xc1")
    device.send(protocol.Done(1))
    device.turn()
    device.turn()
    assert device.events.calls == []


# Its end


def test_end_without_a_word_is_noticed_once(device: HostileDevice) -> None:
    device.sock.close()
    device.turn()
    device.turn()
    assert (device.failures, device.verdict, device.host.is_open) == (1, "", False)


def test_empty_message_counts_as_its_end(device: HostileDevice) -> None:
    device.send_raw(b"")
    device.turn()
    assert (device.failures, device.host.is_open) == (1, False)


def test_last_words_are_kept(device: HostileDevice) -> None:
    device.send(child_log.Crashed("it was\nme"), child_log.CallDenied(257))
    device.sock.close()
    device.turn()
    assert device.host.death.report == "it was\nme"
    assert device.host.death.denied_call == 257


def test_calls_after_the_end_do_nothing(device: HostileDevice) -> None:
    device.sock.close()
    device.host.reset()  # the vmm does not know yet
    device.turn()
    device.host.reset()
    device.host.write_config(0, b"x")
    device.host.pause(lambda: None)
    device.host.close()
    device.turn()
    assert (device.failures, device.verdict) == (1, "")


def test_close_tells_the_device_and_is_no_failure(device: HostileDevice) -> None:
    device.host.close()
    device.turn()
    assert device.sock.recv(1) == b""
    assert device.failures == 0


@pytest.mark.parametrize(
    ("verdict", "denied", "status", "words"),
    [
        ("no answer", 1, -9, "ended by the vmm: no answer"),
        ("", 257, 159, "killed by seccomp: openat (257), policy block_device"),
        ("", 9999, 159, "killed by seccomp: syscall_9999 (9999), policy block_device"),
        ("", None, -9, "killed by SIGKILL"),
        ("", None, -signal.SIGRTMIN - 6, "killed by signal 40"),
        ("", None, 70, "exited with status 70"),
        ("", None, 0, "exited with status 0"),
        ("", None, None, "ended"),
    ],
)
def test_death_is_described(
    verdict: str, denied: int | None, status: int | None, words: str
) -> None:
    death = DeviceDeath()
    death.verdict, death.denied_call, death.status = verdict, denied, status
    assert death.describe("block_device") == words
