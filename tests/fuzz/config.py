# SPDX-License-Identifier: BSD-3-Clause
"""Configurations that nearly fit the schema, as JSON and as options.

What they are made of is read from the schema, so a key that is added tomorrow is attacked tomorrow.
A text is refused with our one error, or what it says can be written and read again, checked, and
run or refused.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from msgspec import Struct, structs

from crosvm_py.vm_config import requests
from crosvm_py.vm_config.codec import decode, encode
from crosvm_py.vm_config.complaint import core
from crosvm_py.vm_config.errors import SchemaError, UnfitConfigError
from crosvm_py.vm_config.field_types import Record
from crosvm_py.vm_config.from_run import vm_config
from crosvm_py.vm_config.json_text import parse
from crosvm_py.vm_config.option_grammar import keys, option_text, parse_option
from crosvm_py.vm_config.options import VALUES
from crosvm_py.vm_config.schema import VmConfig
from crosvm_py.vm_config.to_run import run_config
from crosvm_py.vm_config.unsupported import ignored
from tests.fuzz.source import number, one_in, pick, spoil

if TYPE_CHECKING:
    from tests.fuzz.source import Source

REQUESTS: tuple[type[Record], ...] = tuple(
    each
    for each in vars(requests).values()
    if isinstance(each, type) and issubclass(each, Record) and each is not Record
)
KINDS: tuple[type[Record], ...] = (
    *(VmConfig, VmConfig),
    *(option.kind for option in VALUES.values()),
    *REQUESTS,
)
_TEXTS = (
    *("", "a", "/dev/null", "__x", "file:///x", "10.0.0.1", "255.255.255.0", "52:54:00:12:34:56"),
    *("é", "\x00", "\ud800", "\x1b[2J", "a,b=[c@d]", '"', " ", "x" * 37, "/" * 5000, "rw"),
)
_ODDS: tuple[object, ...] = (
    *(None, True, False, 0, -1, 2.0, 1e300, 1 << 64, -(1 << 63), "1", [], {}, [[]], {"a": {}}),
)
# Each can be a part of a VM that runs.
_SOUND: tuple[dict[str, object], ...] = (
    {"disks": [{"path": "/a"}, {"path": "/b", "serial": "s", "readonly": True}]},
    {"net": [{"tap": "t0"}, {"ip": "10.0.0.1", "mask": "255.0.0.0", "mtu": 1400}]},
    {"net": [{"fds": [3, 4], "num_queues": 4, "mac": "52:54:00:12:34:56"}]},
    {"balloon": {"size": 0, "free_page_reporting": True}},
    {"vsock": {"cid": 3, "socket": "/s"}, "serial": {"mode": "File", "file": "/l"}},
    {"console": {"mode": "Off"}, "debug_console": {"mode": "Pty", "iobase": 1026}},
    {"cpus": {"boot_vcpus": 1, "max_vcpus": 9, "core_scheduling": "Off"}},
    {"payload": {"kernel": "/k", "cmdline": "a b", "initramfs": "/i"}},
)
# Texts that JSON has beside those that Python writes.
_PIECES = (
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"01", b"-0", b'"\\ud800"', b'"\\u0000"'),
    *(b'{"a":1,"a":2}', b"[" * 129, b"[" * 1010 + b"]" * 1010, b"//", b"\xff", b"\xef\xbb\xbf"),
    *(b'"\\', b"}", b"]", b",", b'"', b"{}{}", b" \t\r\n"),
)
_NOT_JSON = "not JSON"


class ConfigFuzzer:
    """One text after the other."""

    def __init__(self) -> None:
        self.mutations = 0

    def episode(self, source: Source) -> None:
        """Read one text, and use what it says."""
        self.mutations += 1
        if one_in(source, 3):
            _try_option(source)
        else:
            _try_json(source)

    def close(self) -> None:
        """There is nothing to take down."""


def make(_source: Source) -> ConfigFuzzer:
    """Build the rig."""
    return ConfigFuzzer()


def _try_json(source: Source) -> None:
    kind = pick(source, KINDS)
    sound = kind is VmConfig and one_in(source, 2)
    text = json.dumps(_sound(source) if sound else _object(source, kind, 0)).encode()
    if one_in(source, 3):
        text = spoil(source, text)
    if one_in(source, 4):
        at = source.below(len(text) + 1)
        text = text[:at] + pick(source, _PIECES) + text[at:]
    _compare_with_python(text)
    with suppress(SchemaError):
        _use(decode(text, kind))


def _compare_with_python(text: bytes) -> None:
    """See that our parser refuses as "not JSON" what Python's refuses, and reads the rest alike."""
    try:
        ours = parse(text)
    except SchemaError as error:
        if error.reason.startswith(_NOT_JSON):
            with suppress(ValueError):
                json.loads(text.decode())
                raise AssertionError(f"refused, though it is JSON: {error}") from error
        return
    theirs = json.loads(text, parse_int=_number)
    assert json.dumps(ours) == json.dumps(theirs)


def _number(digits: str) -> int | float:
    fits = len(digits) <= 20 and -(1 << 63) <= int(digits) < 1 << 64
    return int(digits) if fits else float(digits)


def _use(record: Record) -> None:
    text = encode(record)
    assert text.isascii()
    assert decode(text, type(record), keep_fds=True) == record
    if isinstance(record, VmConfig):
        assert all(line.isprintable() for line in ignored(record))
        with suppress(UnfitConfigError):
            told = vm_config(run_config(record))
            assert vm_config(run_config(told)) == told


def _try_option(source: Source) -> None:
    name = pick(source, tuple(VALUES))
    row = VALUES[name]
    pairs = [
        f"{key}={_option_value(source, each.kind)}"
        for key, each in keys(row.kind).items()
        if one_in(source, 4)
    ]
    text = ",".join([*pairs, *([pick(source, ("off", "tty", "x", "=", "["))] * one_in(source, 5))])
    if one_in(source, 3):
        text = spoil(source, text.encode("utf-8", "replace")).decode("utf-8", "replace")
    with suppress(SchemaError):
        record = parse_option(name, text, row.kind, row.defaults)
        assert parse_option(name, option_text(record), row.kind, row.defaults) == record


def _option_value(source: Source, kind: object) -> str:
    bare = core(kind)[0]
    if one_in(source, 8):
        return pick(source, ("", "[", "]", '"', "[0-99999999999]", "@", "[1@[2,3]]", "1:2:3:4"))
    if bare is int:
        return f"{number(source, 64)}{pick(source, ('', '', 'K', 'M', 'G', 'T'))}"
    if bare is bool:
        return pick(source, ("on", "off", "true", "FALSE", ""))
    if get_origin(bare) is tuple:
        return f"[{number(source, 8)},{number(source, 8)}-{number(source, 16)}]"
    return pick(source, _TEXTS)


def _sound(source: Source) -> dict[str, object]:
    """Return a VM that could run, but for one key at most."""
    found: dict[str, object] = {
        "payload": {"kernel": "/k"},
        "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
        "memory": {"size": 1 << 30},
    }
    for _ in range(source.below(5)):
        found |= pick(source, _SOUND)
    field = pick(source, structs.fields(VmConfig))
    if one_in(source, 2):
        found[field.name] = _value(source, field.type, 0)
    return found


def _value(source: Source, kind: object, depth: int) -> object:
    if one_in(source, 12):
        return pick(source, _ODDS)
    bare, _, nullable = core(kind)
    if nullable and one_in(source, 3):
        return None
    if bare is int:
        return number(source, 64) >> pick(source, (0, 0, 32, 48, 56))
    if bare is bool:
        return bool(source.below(2))
    if get_origin(bare) is Literal:
        return pick(source, get_args(bare))
    if get_origin(bare) is tuple:
        return [_value(source, get_args(bare)[0], depth + 1) for _ in range(source.below(3))]
    if isinstance(bare, type) and issubclass(bare, Struct):
        return _object(source, bare, depth + 1)
    return pick(source, _TEXTS)


def _object(source: Source, kind: type[Struct], depth: int) -> dict[str, object]:
    """Return an object with the keys that it needs, most often, and some of the others."""
    found: dict[str, object] = {}
    for field in structs.fields(kind):
        wanted = not one_in(source, 30) if field.required else one_in(source, 4 + 4 * depth)
        if wanted:
            found[field.name] = _value(source, field.type, depth)
    if one_in(source, 20):
        found["unknown"] = pick(source, _ODDS)
    return found
