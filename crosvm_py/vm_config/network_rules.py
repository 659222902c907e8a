# SPDX-License-Identifier: BSD-3-Clause
"""Rules for a network card."""

from __future__ import annotations

from crosvm_py.vm_config.addresses import ipv4_bytes, mac_bytes
from crosvm_py.vm_config.problem import is_power_of_two, when
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.devices import NetConfig
    from crosvm_py.vm_config.problem import Problem

MIN_MTU: Final = 1280  # RFC 8200 §5
MAX_QUEUE_SIZE: Final = 32768  # virtio 1.3 §2.7
_STANDARD_FDS: Final = 2  # stdin, stdout, stderr are up to here


def card_problems(place: str, card: NetConfig, vcpus: int) -> Iterator[Problem]:
    """Return what is wrong with a card of a VM with so many vCPUs, whatever serves it."""
    yield from _queues(place, card, vcpus)
    yield from _descriptors(place, card)
    low = card.mtu is not None and card.mtu < MIN_MTU
    yield from when(low, f"{place}.mtu", f"{card.mtu} is less than {MIN_MTU}")
    alone = (card.ip is None) != (card.mask is None)
    yield from when(
        alone, f"{place}.{'ip' if card.ip is None else 'mask'}", "ip and mask need each other"
    )
    for key in ("offload_tso", "offload_ufo"):
        wrong = getattr(card, key) and not card.offload_csum
        yield from when(wrong, f"{place}.{key}", "it needs offload_csum")
    for key in ("ip", "mask", "mac", "host_mac"):
        yield from _address(place, key, getattr(card, key))


def _queues(place: str, card: NetConfig, vcpus: int) -> Iterator[Problem]:
    count = card.num_queues
    text = f"{count} is not an even number, 2 or more: each pair receives and sends"
    yield from when(count < 2 or bool(count % 2), f"{place}.num_queues", text)
    text = f"{count // 2} pairs are more than vCPUs, {vcpus}"
    yield from when(count // 2 > vcpus, f"{place}.num_queues", text)
    size = card.queue_size
    wrong = not is_power_of_two(size) or size > MAX_QUEUE_SIZE
    text = f"{size} is not a power of two in 1..{MAX_QUEUE_SIZE}"
    yield from when(wrong, f"{place}.queue_size", text)


def _descriptors(place: str, card: NetConfig) -> Iterator[Problem]:
    if card.fds is None:
        return
    if 2 * len(card.fds) != card.num_queues:
        text = f"{len(card.fds)} descriptors are not num_queues / 2, {card.num_queues / 2:g}"
        yield from when(True, f"{place}.fds", text)
    for index, fd in enumerate(card.fds):
        text = f"{fd} is no descriptor of a TAP; it has to come with the request"
        yield from when(fd <= _STANDARD_FDS, f"{place}.fds[{index}]", text)
    twice = len(set(card.fds)) < len(card.fds) and min(card.fds) > _STANDARD_FDS
    yield from when(twice, f"{place}.fds", "a descriptor is there twice")


def _address(place: str, key: str, text: str | None) -> Iterator[Problem]:
    if text is None:
        return
    is_mac = key.endswith("mac")
    found = mac_bytes(text) if is_mac else ipv4_bytes(text)
    wanted = "a MAC address (like 52:54:00:12:34:56)" if is_mac else "an IPv4 address"
    yield from when(found is None, f"{place}.{key}", f"{text!r:.40} is not {wanted}")
