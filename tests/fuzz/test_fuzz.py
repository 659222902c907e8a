# SPDX-License-Identifier: BSD-3-Clause
"""A short slice of every fuzzer, always the same; and defects planted for them to find."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.vm_config import json_text
from crosvm_py.vmm.link import DeviceLink
from devices.cmos import Cmos
from devices.virtio.block.native import NativeQueue
from devices.virtio.limited import LimitedDevice
from devices.virtio.queue import native
from devices.virtio.queue import split_queue as queue_module
from devices.virtio.queue.chain import ChainError, Writer
from devices.virtio.queue.port import QueuePort
from devices.virtio.queue.split_queue import Handover, SplitQueue
from devices.virtio.rate_limiter import LIMIT_NAMES, RateLimits
from devices.virtio.rng.device import Rng
from devices.virtio.transport.device_state import DeviceState
from sys_util.child_log import CHILD_MESSAGES
from sys_util.guest_memory import GuestMemory, Span
from sys_util.wire import Codec
from tests.fuzz.__main__ import Plan, fuzz, main
from tests.fuzz.messages import CODECS, message_types
from tests.fuzz.source import BytesSource
from tests.fuzz.targets import TARGETS, Fuzzer, life_source, make_fuzzer

if TYPE_CHECKING:
    from devices.virtio.queue.chain import DescriptorChain
    from sys_util.wire import Message

# Each about half a second's worth: samples. `python -m tests.fuzz` does as much as one wants.
SLICE = {
    "messages": 15_000,
    "channel": 4_000,
    "ports": 30_000,
    "pci": 10_000,
    "net": 6_000,
    "vsock": 6_000,
    "console": 5_000,
    "engine": 4_000,
    "http": 4_000,
    "config": 1_500,
}
DEFAULT_SLICE = 10_000


def plan(count: int) -> Plan:
    return Plan(count, float("inf"), seed=2026, first_life=0, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_slice_of_the_fuzzer_finds_nothing(name: str) -> None:
    if name == "engine" and not native.IS_BUILT:
        pytest.skip("the engine is not built here")
    count = SLICE.get(name, DEFAULT_SLICE)
    result = fuzz(name, plan(count))
    assert result.find == ""
    assert result.done >= count


@pytest.fixture(scope="module")
def queue_fuzzer() -> Iterator[Fuzzer]:
    fuzzer = make_fuzzer("queue", life_source("queue", 0, 0))
    yield fuzzer
    fuzzer.close()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=100, max_size=1500))
def test_any_bytes_make_a_driver_that_the_queue_survives(queue_fuzzer: Fuzzer, data: bytes) -> None:
    queue_fuzzer.episode(BytesSource(data))


def test_every_message_is_attacked() -> None:
    assert all(message_types(codec) for codec in CODECS.values())
    types = [kind for codec in CODECS.values() for kind in message_types(codec)]
    own = [kind for kind in types if kind not in CHILD_MESSAGES]  # several children say these
    assert len(own) == len(set(own)) > 30


# Planted defects

Plant = Callable[[pytest.MonkeyPatch], None]


def plant_span_without_an_end(patch: pytest.MonkeyPatch) -> None:
    """The last byte of a buffer is not checked."""

    def span(self: GuestMemory, gpa: int, length: int) -> Span:
        return next((s for s in self._spans if s.start <= gpa < s.end), self._spans[0])

    patch.setattr(GuestMemory, "span", span)


def plant_shorter_chains(patch: pytest.MonkeyPatch) -> None:
    """A chain that is as long as it may be is refused."""
    patch.setattr(queue_module, "MAX_INDIRECT_CHAIN", 2)


def plant_endless_walk(patch: pytest.MonkeyPatch) -> None:
    """A broken chain is walked again and again."""
    walk = SplitQueue._walk

    def walk_on(self: SplitQueue, head: int) -> DescriptorChain:
        while True:
            with suppress(ChainError):
                return walk(self, head)

    patch.setattr(SplitQueue, "_walk", walk_on)


def plant_double_fetch(patch: pytest.MonkeyPatch) -> None:
    """A header's length is read again after it was checked."""
    walk = SplitQueue._walk

    def walk_again(self: SplitQueue, head: int) -> DescriptorChain:
        sound = walk(self, head)
        length = int.from_bytes(self._desc_table[16 * head + 8 : 16 * head + 12], "little")
        sound.reader.remaining += length - int(sound.reader.remaining + sound.writer.remaining)
        return sound

    patch.setattr(SplitQueue, "_walk", walk_again)


def plant_chain_given_back_twice(patch: pytest.MonkeyPatch) -> None:
    give_back = QueuePort.give_back

    def twice(self: QueuePort, chain: DescriptorChain) -> None:
        give_back(self, chain)
        if self._ring is not None and not chain.reader.remaining:
            self._ring.add_used(chain.head, 0)

    patch.setattr(QueuePort, "give_back", twice)


def plant_overstated_length(patch: pytest.MonkeyPatch) -> None:
    """One byte of nothing."""
    written = Writer.written
    patch.setattr(Writer, "written", property(lambda self: written.__get__(self) or 1))


def plant_surprise(patch: pytest.MonkeyPatch) -> None:
    handle = Rng.handle_chain

    def handle_chain(self: Rng, queue_index: int, chain: DescriptorChain) -> None:
        {0: 1, 1: 2}.get(chain.reader.remaining, 0)
        [1][min(1, chain.reader.remaining)]
        handle(self, queue_index, chain)

    patch.setattr(Rng, "handle_chain", handle_chain)


def plant_reset_that_forgets_nothing(patch: pytest.MonkeyPatch) -> None:
    """Once a chain was odd, the device is offended for ever."""
    handle = Rng.handle_chain
    offended: list[bool] = []

    def handle_chain(self: Rng, queue_index: int, chain: DescriptorChain) -> None:
        if chain.reader.remaining:
            offended.append(True)
        if not offended:
            handle(self, queue_index, chain)

    patch.setattr(Rng, "handle_chain", handle_chain)


def plant_copy_of_everything(patch: pytest.MonkeyPatch) -> None:
    def handle_chain(_self: Rng, _queue_index: int, chain: DescriptorChain) -> None:
        data = b"x" * min(chain.writer.remaining, 160 << 20)
        chain.writer.write(data[: min(64, len(data))])

    patch.setattr(Rng, "handle_chain", handle_chain)


def plant_queues_that_can_be_moved(patch: pytest.MonkeyPatch) -> None:
    """CVE-2026-5747."""
    patch.setattr(DeviceState, "configurable", lambda _self, _queue: True)


def plant_codec_that_looks_up(patch: pytest.MonkeyPatch) -> None:
    decode = Codec.decode

    def careless(self: Codec, payload: bytes) -> Message:
        message = decode(self, payload)
        assert len(payload) != 7
        return message

    patch.setattr(Codec, "decode", careless)


def plant_answer_that_was_not_asked(patch: pytest.MonkeyPatch) -> None:
    """The vmm looks an answer up that nobody asked for."""
    take = DeviceLink._take

    def careless(self: DeviceLink, message: Message) -> None:
        if isinstance(message, device_protocol.Answer):
            self._commands[message.request_id]
        take(self, message)

    patch.setattr(DeviceLink, "_take", careless)


def plant_timers_that_pile_up(patch: pytest.MonkeyPatch) -> None:
    """A guest that changes its mind arms the clock once more each time."""
    arm = Cmos._arm

    def arm_again(self: Cmos) -> None:
        self._tick_at, self._period_runs = float("inf"), False
        arm(self)

    patch.setattr(Cmos, "_arm", arm_again)


def plant_trusting_successor(patch: pytest.MonkeyPatch) -> None:
    """A new process believes what the last one left."""

    def restore(self: LimitedDevice, fields: dict[str, object]) -> None:
        named = dict(zip(LIMIT_NAMES, cast("list[int]", fields["limits"]), strict=True))
        self._limiter.configure(RateLimits(**named))

    patch.setattr(LimitedDevice, "restore", restore)


def plant_depth_that_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A text is parsed however deep it is."""
    patch.setattr(json_text, "_check_shape", lambda _text: None)


def plant_numbers_of_any_length(patch: pytest.MonkeyPatch) -> None:
    """A number that no field can hold becomes one of Python's."""
    patch.setattr(json_text, "_parse_integer", int)


def plant_empty_descriptor_without_a_direction(patch: pytest.MonkeyPatch) -> None:
    """A writable descriptor of no bytes may come before a readable one, for Python alone."""
    unpack = queue_module._UNPACK_DESC

    def careless(table: memoryview, at: int) -> tuple[int, ...]:
        addr, length, flags, following = unpack(table, at)
        return addr, length, flags if length else flags & ~2, following

    patch.setattr(queue_module, "_UNPACK_DESC", careless)


def plant_queue_that_loses_its_place(patch: pytest.MonkeyPatch) -> None:
    """When a queue goes back to Python, the used element that it gave last is written once more."""
    take = NativeQueue.take

    def careless(self: NativeQueue) -> Handover:
        start = take(self)
        return start._replace(next_used=(start.next_used - bool(start.next_used)) & 0xFFFF)

    patch.setattr(NativeQueue, "take", careless)


@pytest.mark.slow
@pytest.mark.skipif(not native.IS_BUILT, reason="the engine is not built here")
@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (plant_empty_descriptor_without_a_direction, "AssertionError"),
        (plant_queue_that_loses_its_place, "AssertionError"),
    ],
)
def test_planted_difference_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Plant, found: str
) -> None:
    plant(monkeypatch)
    result = fuzz("engine", plan(100_000)._replace(seed=2030))  # one that finds both soon
    assert re.search(found, result.find), result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plant", "found"),
    [
        ("queue", plant_span_without_an_end, "AssertionError"),
        ("queue", plant_shorter_chains, "a sound chain was refused"),
        ("queue", plant_endless_walk, "EndlessError"),
        ("queue", plant_double_fetch, "bytes"),
        ("balloon", plant_chain_given_back_twice, "none was out|came back before"),
        ("queue", plant_overstated_length, "bytes in"),
        ("rng", plant_surprise, "IndexError"),
        ("rng", plant_reset_that_forgets_nothing, "in serves"),
        ("rng", plant_trusting_successor, "in restore"),
        ("rng", plant_copy_of_everything, "memory grows"),
        ("pci", plant_queues_that_can_be_moved, "moved while it runs|cannot be started"),
        ("messages", plant_codec_that_looks_up, "AssertionError"),
        ("channel", plant_answer_that_was_not_asked, "KeyError"),
        ("ports", plant_timers_that_pile_up, "timers pile up"),
        ("config", plant_depth_that_is_not_counted, "RecursionError"),
        ("config", plant_numbers_of_any_length, "AssertionError|ValueError"),
    ],
)
def test_planted_defect_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, plant: Plant, found: str
) -> None:
    plant(monkeypatch)
    result = fuzz(name, plan(100_000)._replace(patience_seconds=1.0))
    assert re.search(found, result.find), result


def test_command_tells_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "rng", "--count", "300", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(entry["target"], entry["done"] >= 300) for entry in told] == [
        ("queue", True),
        ("rng", True),
    ]


def test_command_that_finds_something_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_surprise(monkeypatch)
    assert main(["rng", "--count", "100000", "--seed", "7"]) == 1
    told = capsys.readouterr().out
    assert "again: python -m tests.fuzz rng --seed 7 --life 0" in told
    assert "IndexError" in told
