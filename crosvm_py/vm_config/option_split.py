# SPDX-License-Identifier: BSD-3-Clause
"""Split the text of an option as Cloud Hypervisor does.

Commas separate, except in ``"quotes"`` and in ``[brackets]``. Quotes protect what is in them, and
are removed from a value in the end; there is no way to write a quote itself.
"""

from __future__ import annotations

from crosvm_py.vm_config.errors import SchemaError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def split(place: str, text: str, separator: str = ",") -> list[str]:
    """Split ``text`` outside quotes and brackets; quotes stay. Nothing has no parts.

    Raises:
        SchemaError: quotes or brackets do not match; it names ``place``.
    """
    parts, begin, depth, quoted = [], 0, 0, False
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character == separator and not depth:
            parts.append(text[begin:at])
            begin = at + 1
        elif character in "[]":
            depth += 1 if character == "[" else -1
            if depth < 0:
                break
    if quoted or depth:
        what = "a quote" if quoted else "a bracket"
        raise SchemaError(place, f"{what} is not closed, or not opened, in {brief(text)}")
    return [*parts, text[begin:]] if text.strip() else []


def plain(text: str) -> str:
    """Return a value without blanks around it and without its quotes."""
    return text.strip().replace('"', "")


def pairs(
    option: str, text: str, keys: Sequence[str], words: Sequence[str] = ()
) -> dict[str, str | None]:
    """Return keys and texts of ``key=value,…``; of ``words`` the text is ``None``.

    Raises:
        SchemaError: a key is unknown, given twice, or lacks its value.
    """
    found: dict[str, str | None] = {}
    for part in split(option, text):
        name, equals, value = part.partition("=")
        key = name.strip()
        if not (key in keys if equals else key in words):
            raise SchemaError(option, _wrong_key(part.strip(), key, bool(equals), keys, words))
        if key in found:
            raise SchemaError(f"{option} {key}", "is given twice")
        found[key] = value if equals else None
    return found


def _wrong_key(
    part: str, key: str, has_value: bool, keys: Sequence[str], words: Sequence[str]
) -> str:
    if not has_value and key in keys:
        return f"{key} needs a value: {key}=…"
    if has_value and key in words:
        return f"{key} takes no value"
    return f"{brief(part)} has no key of this option, which are {', '.join((*words, *keys))}"


def items(place: str, text: str) -> list[str]:
    """Return what is in a list ``[a,b]``; one item may go without brackets.

    Raises:
        SchemaError: it is no such list.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return split(place, text[1:-1])
    return split(place, text)


def quoted(text: str) -> str:
    """Return a value as it can stand in an option.

    Raises:
        SchemaError: it is empty, which would mean absent, or has a quote.
    """
    if not text:
        raise SchemaError("", "no option can hold a text that is empty")
    if '"' in text:
        raise SchemaError("", f"{brief(text)} has a quote, which no option can hold")
    plain_text = text == text.strip() and not any(each in text for each in ",[]@")
    return text if plain_text else f'"{text}"'
