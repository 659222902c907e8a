# SPDX-License-Identifier: BSD-3-Clause
"""What is written is read again: JSON and options, for any object of the schema."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from crosvm_py.vm_config import requests
from crosvm_py.vm_config.codec import decode, encode
from crosvm_py.vm_config.devices import (
    ConsoleConfig,
    DebugConsoleConfig,
    DiskConfig,
    RateLimiterConfig,
    RateLimiterGroupConfig,
    SerialConfig,
)
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import Record
from crosvm_py.vm_config.json_text import parse
from crosvm_py.vm_config.machine import MemoryConfig
from crosvm_py.vm_config.option_grammar import option_text, parse_option
from crosvm_py.vm_config.options import VALUES, build_config, options_of
from crosvm_py.vm_config.schema import VmConfig
from tests.crosvm_py.vm_config.values import OPTION_TEXTS, TEXTS, records

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
REQUESTS = [
    each
    for each in vars(requests).values()
    if isinstance(each, type) and issubclass(each, Record) and each is not Record
]
R = TypeVar("R", bound=Record)
CONSOLES = (ConsoleConfig, SerialConfig, DebugConsoleConfig)


@FEW
@given(records(VmConfig))
def test_any_configuration_is_read_again(config: VmConfig) -> None:
    text = encode(config)
    assert decode(text, VmConfig, keep_fds=True) == config
    assert encode(decode(text, VmConfig, keep_fds=True)) == text


@settings(max_examples=10, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: str(kind.__name__))
def test_any_request_is_read_again(kind: type[Record], data: st.DataObject) -> None:
    request = data.draw(records(kind))
    assert decode(encode(request), kind, keep_fds=True) == request


def sayable(record: R) -> R:
    """Return what of an object an option can say."""
    limits = getattr(record, "rate_limiter_config", None)
    if limits is not None:
        record = structs.replace(record, rate_limiter_config=sayable_limits(limits, record))
    if isinstance(record, CONSOLES):
        file = record.file if record.mode == "File" else None
        record = structs.replace(record, file="f" if record.mode == "File" else file)
        if not isinstance(record, DebugConsoleConfig):
            socket = "s" if record.mode == "Socket" else None
            record = structs.replace(record, socket=socket)
        elif record.mode == "Socket":
            record = structs.replace(record, mode="Null")
    if isinstance(record, MemoryConfig):
        record = structs.replace(record, zones=None)
    if isinstance(record, DiskConfig):
        record = structs.replace(record, disable_io_uring=False, disable_aio=False)
    return record


def sayable_limits(limits: RateLimiterConfig, owner: Record) -> RateLimiterConfig | None:
    buckets = {
        name: bucket if bucket and bucket.size and bucket.refill_time else None
        for name, bucket in (("bandwidth", limits.bandwidth), ("ops", limits.ops))
    }
    if not any(buckets.values()) and not isinstance(owner, RateLimiterGroupConfig):
        return None
    return RateLimiterConfig(**buckets)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
@pytest.mark.parametrize("option", VALUES)
def test_any_option_is_read_again(option: str, data: st.DataObject) -> None:
    row = VALUES[option]
    record = sayable(data.draw(records(row.kind, OPTION_TEXTS)))
    assert parse_option(option, option_text(record), row.kind, row.defaults) == record


@FEW
@given(records(VmConfig, OPTION_TEXTS))
def test_any_command_line_says_what_the_configuration_says(config: VmConfig) -> None:
    changes: dict[str, Any] = {"iommu": False}
    zones = tuple(sayable(zone) for zone in config.memory.zones or ()) or None
    for row in VALUES.values():
        found = getattr(config, row.key, None)
        if row.many and row.key != "zones":
            changes[row.key] = tuple(sayable(each) for each in found or ()) or None
        elif found is not None:
            changes[row.key] = sayable(found)
    payload = config.payload
    changes["payload"] = payload if any(structs.astuple(payload) if payload else ()) else None
    config = structs.replace(config, **changes)
    config = structs.replace(config, memory=structs.replace(config.memory, zones=zones))
    given: dict[str, list[str]] = {}
    words = options_of(config)
    while words:
        name = words.pop(0)
        given.setdefault(name, [])
        if words and not words[0].startswith("--"):
            given[name].append(words.pop(0))
    assert build_config(given) == config


@settings(max_examples=50, deadline=None)
@given(TEXTS | st.text('=,[]"@-0123x:pathsizeonfKMG ', max_size=40))
@pytest.mark.parametrize("option", ["--disk", "--net", "--cpus", "--numa", "--console", "--memory"])
def test_any_text_of_an_option_raises_nothing_else(option: str, text: str) -> None:
    row = VALUES[option]
    try:
        made = parse_option(option, text, row.kind, row.defaults)
    except SchemaError as error:
        reason = str(error)
        assert reason.startswith(option)
    else:
        assert parse(encode(made))
