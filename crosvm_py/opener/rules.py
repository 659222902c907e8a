# SPDX-License-Identifier: BSD-3-Clause
"""What the opener may open: with ``--landlock`` what the user's rules name, and no more."""

from __future__ import annotations

import errno
import os
import sys

from sys_util import landlock
from sys_util.errors import ConfigError, HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sys_util.landlock import LandlockRule

OPTION: Final = "--landlock-rules"
# Without these no card could be made; which TAP it is, the kernel decides by its owner.
_FOR_CARDS: Final = ("/dev/net/tun", "/dev/vhost-net")
_REFUSALS: Final = frozenset({errno.EACCES, errno.EXDEV})


def make_rules(rules: Sequence[LandlockRule]) -> int:
    """Return a ruleset of the user's rules and of what the opener itself needs.

    The caller owns the descriptor, which is close-on-exec.

    Raises:
        ConfigError: the kernel has no Landlock, or a rule has other letters than r and w.
        HostError: the path of a rule cannot be used.
    """
    for rule in rules:
        if not rule.access or not set(rule.access) <= {"r", "w"}:
            raise ConfigError(f"{OPTION} {rule.path}: {rule.access!r:.40} is not made of r and w")
    try:
        return landlock.make_ruleset((*rules, *_own_rules()))
    except OSError as error:
        if error.filename is None:
            raise ConfigError(f"--landlock: {error.strerror}") from None
        raise HostError("open", f"{OPTION} {error.filename}") from error


def _own_rules() -> Iterator[tuple[str, str]]:
    """Return rules for our own modules, which are loaded when they are needed, and for cards."""
    for path in dict.fromkeys((*sys.path, os.path.dirname(os.__file__))):
        if path and os.path.exists(path):
            yield path, "r"
    for path in _FOR_CARDS:
        if os.path.exists(path):
            yield path, "rw"


def is_refusal(error: BaseException) -> bool:
    """Return whether an error may be one that the rules have caused."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _REFUSALS
