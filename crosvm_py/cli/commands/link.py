# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm link``: pull the cable of a running VM's network card, or put it back."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import DEVICE, SOCKET, ask_for, device_name
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.requests.net import SetLink
from crosvm_py.requests.protocol import Done
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

_WORDS: Final = {"up": True, "down": False}


def _link(arguments: Arguments, _settings: GlobalSettings) -> int:
    device, word, path = arguments.positional
    if word not in _WORDS:
        raise UsageError(f"link: {word!r:.40} is neither up nor down")
    ask_for(path, SetLink(device_name("link", device), _WORDS[word]), Done)
    return 0


LINK: Final = Command(
    "link",
    "pull the cable of a network card, or put it back",
    (),
    (DEVICE, Positional("up|down", "what becomes of its cable"), SOCKET),
    _link,
)
