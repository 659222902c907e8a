# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm top``: a live table of what running VMs do."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import SOCKETS
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Option, switch
from crosvm_py.cli.output import write_error
from crosvm_py.cli.watch.amounts import word
from crosvm_py.cli.watch.look import look_at
from crosvm_py.cli.watch.rates import rates_between
from crosvm_py.cli.watch.report import fields, table, title
from crosvm_py.cli.watch.screen import Screen
from sys_util.errors import HostError, UsageError, VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.cli.watch.look import Look

_MIN_SECONDS: Final = 0.1
_MAX_SECONDS: Final = 3600.0
_DEFAULT_SECONDS: Final = 2.0
# A VM that does not answer must not hide the others for long.
_PATIENCE_SECONDS: Final = 1.0


def _read_seconds(option: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r:.40} is no number of seconds") from None
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:  # refuses NaN, too
        limits = f"{_MIN_SECONDS:g} to {_MAX_SECONDS:g} seconds"
        raise UsageError(f"{option}: {text:.40} is outside the limits, {limits}")
    return seconds


ONCE: Final = switch("--once", "print one table, of one --delay, and end")
JSON: Final = switch("--json", "print JSON for programs: each time one line with an array of VMs")
DELAY: Final = Option(
    "-d --delay",
    "SECONDS",
    "time between two tables, over which rates are measured",
    _read_seconds,
    default=f"{_DEFAULT_SECONDS:g}",
)


class Watched:
    """One VM: the last two looks at it, or why there is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.error = ""
        self.has_ended = False
        self._before: Look | None = None
        self._now: Look | None = None

    def look(self) -> None:
        """Look once more."""
        try:
            self._before, self._now = self._now, look_at(self.path, _PATIENCE_SECONDS)
            self.error, self.has_ended = "", False
        except VmmError as error:
            self._before = self._now = None
            self.error = describe(error)
            # Whoever does not listen any more has ended; other errors may pass.
            self.has_ended = isinstance(error, HostError)

    def lines(self) -> list[str]:
        """Return the table."""
        if self._now is None:
            return [word(self.error, 200)]
        return [title(self._now), *table(self._now, rates_between(self._before, self._now))]

    def fields(self) -> dict[str, object]:
        """Return the same for programs."""
        if self._now is None:
            return {"socket": self.path, "error": self.error}
        return fields(self._now, rates_between(self._before, self._now))


def _top(arguments: Arguments, _settings: GlobalSettings) -> int:
    vms = [Watched(path) for path in dict.fromkeys(arguments.positional)]
    seconds = arguments.get(DELAY) or _DEFAULT_SECONDS
    for vm in vms:
        vm.look()
    failures = [vm.error for vm in vms if vm.error]
    if len(failures) == len(vms):
        for error in failures:
            write_error(error)
        return 1
    once, as_json = arguments.has(ONCE), arguments.has(JSON)
    with Screen(raw=once or as_json) as screen:
        while screen.wait(seconds):
            for vm in vms:
                vm.look()
            screen.show(_json(vms) if as_json else _text(vms, screen))
            if once or all(vm.has_ended for vm in vms):
                break
    return 0


def _text(vms: list[Watched], screen: Screen) -> list[str]:
    lines = ["crosvm top: q ends", ""] if screen.is_terminal else []
    for vm in vms:
        lines += [*vm.lines(), ""]
    return lines


def _json(vms: list[Watched]) -> list[str]:
    import json

    return [json.dumps([vm.fields() for vm in vms])]


TOP: Final = Command(
    "top",
    "show what VMs do, again and again: processor time, memory, requests, exits",
    (DELAY, ONCE, JSON),
    (SOCKETS,),
    _top,
    examples=("crosvm top vm.sock", "crosvm top --once --json *.sock"),
    details="A line for each process of a VM and for each vCPU. SHARED is memory of files and of "
    "the guest, MEMORY is the rest. EXITS are those that the vmm serves; KVM serves others itself. "
    "The command ends with q or Ctrl-C, or when the last VM has ended.",
)
