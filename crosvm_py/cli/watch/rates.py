# SPDX-License-Identifier: BSD-3-Clause
"""What a VM did between two looks: processor time, exits, requests and bytes, each per second."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crosvm_py.cli.watch.look import Look
    from crosvm_py.requests.devices import DeviceInfo


class DeviceRates(NamedTuple):
    """One device; bytes are those of requests, as in its counters."""

    requests: float
    bytes_to_guest: float
    bytes_from_guest: float


class Rates(NamedTuple):
    """``processes`` and ``vcpu_seconds`` are shares of one processor, by pid and by index."""

    processes: Mapping[int, float]
    vcpu_seconds: Mapping[int, float]
    exits: Mapping[int, float]
    devices: Mapping[str, DeviceRates]


NO_RATES = Rates({}, {}, {}, {})


def rates_between(before: Look | None, now: Look) -> Rates:
    """Return the rates; what was not there before has none."""
    elapsed = 0.0 if before is None else now.at_seconds - before.at_seconds
    if before is None or elapsed <= 0 or before.pid != now.pid:
        return NO_RATES

    def rate(old: float, new: float) -> float:
        return max(0.0, new - old) / elapsed

    seconds = {(each.pid, each.began): each.cpu_seconds for each in before.processes}
    vcpus = {(each.index, each.thread_id): each for each in before.vcpus}
    devices = {each.name: counters_of(each) for each in before.devices}
    busy: dict[int, float] = {}
    exits: dict[int, float] = {}
    for vcpu in now.vcpus:
        old = vcpus.get((vcpu.index, vcpu.thread_id))
        if old is not None:
            exits[vcpu.index] = rate(old.exits, vcpu.exits)
            if old.cpu_seconds is not None and vcpu.cpu_seconds is not None:
                busy[vcpu.index] = rate(old.cpu_seconds, vcpu.cpu_seconds)
    return Rates(
        {
            each.pid: rate(seconds[each.pid, each.began], each.cpu_seconds)
            for each in now.processes
            if (each.pid, each.began) in seconds
        },
        busy,
        exits,
        {
            each.name: DeviceRates(
                *(
                    rate(devices[each.name].get(name, 0), counters_of(each).get(name, 0))
                    for name in DeviceRates._fields
                )
            )
            for each in now.devices
            if each.name in devices
        },
    )


def counters_of(device: DeviceInfo) -> dict[str, int]:
    """Return the counters of a device by name."""
    return {counter.name: counter.value for counter in device.counters}
