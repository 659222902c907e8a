# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy record``: make policies from the calls that devices really make here."""

from __future__ import annotations

import os
import shlex
import sys
import time

from crosvm_py.cli.commands.policy_names import policy_name, policy_names
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional, parse, switch, text_option
from crosvm_py.cli.output import write_error
from crosvm_py.inherited import drop_inherited
from crosvm_py.kinds.table import DEVICE_KINDS, policies_of
from crosvm_py.tunables import run_without_huge_pages
from sys_util.errors import ConfigError, UsageError
from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.config import RunConfig
    from crosvm_py.kinds.policies import Recorded
    from seccomp.record import Recording
    from seccomp.rules import PolicyTree

OUTPUT: Final = text_option(
    "-o --output", "DIR", "write the policies to DIR, which is made if it is not there"
)
MERGE: Final = switch(
    "--merge", "add to policies that are in DIR already; they lose their comments"
)
EXACT: Final = switch(
    "--exact",
    "allow only what was called: leave out memory, time and signals, which any process may need",
)

_EVERY: Final = "all"  # every device of the run

_MAX_COMMAND_CHARS: Final = 400


def _record(arguments: Arguments, settings: GlobalSettings) -> int:
    directory = arguments.get(OUTPUT)
    if directory is None:
        raise UsageError("policy record: -o DIR is missing")
    run_without_huge_pages()
    drop_inherited()
    config = _read_run(arguments.rest, extended_status=settings.extended_status)
    every = _EVERY in arguments.positional
    names = dict.fromkeys(name for device in arguments.positional for name in _policies(device))
    writers = [_PolicyFile(directory, name, arguments) for name in names]
    _make(directory)
    from crosvm_py.kinds.policies import Recorded
    from crosvm_py.policy_record import Recorder, fork_vm

    recordings = {file.name: file.recording for file in writers}
    fork = fork_vm()
    if fork.pid == 0:
        return _run(config, settings, Recorded(frozenset(names), fork.fd, every))
    told = ", ".join(arguments.positional)
    write_error(f"policy record: {told}: next to nothing is denied; the guest must be trusted")
    status = Recorder(fork, recordings).run()
    run = _describe_run(arguments.rest)
    if any(recording.processes for recording in recordings.values()):
        files = [file for file in writers if file.recording.processes or not every]
        failed = sum(not _write(file, run) for file in files)
        _complete(directory)
        return status or min(failed, 1)
    return status


def _write(file: _PolicyFile, run: str) -> bool:
    """Write one policy; report an error, so that the other policies are written, too."""
    from seccomp.errors import PolicyError

    try:
        file.write(run)
    except PolicyError as error:
        write_error(f"policy record: {error}")
        return False
    return True


def _policies(device: str) -> list[str]:
    if device == _EVERY:
        return policies_of(DEVICE_KINDS)
    if device.startswith("warden"):  # its children inherit the filter and would report twice
        raise ConfigError("policy record: the warden's policy holds for devices, too; record those")
    try:
        return [policy_name(device, None)]
    except UsageError as error:
        raise UsageError(f"policy record: {error}") from None


def _read_run(words: Sequence[str], *, extended_status: bool) -> RunConfig:
    from crosvm_py.cli.commands.run import COMMAND
    from crosvm_py.cli.run_options.control import DRY_RUN
    from crosvm_py.cli.run_options.run_config import build_config

    words = words[1:] if words[0] == COMMAND.name else words
    try:
        arguments = parse(words, COMMAND.options, COMMAND.positional)
    except UsageError as error:
        raise UsageError(f"policy record: run: {error}") from None
    if arguments.help_wanted:
        raise UsageError("policy record: crosvm run --help tells the arguments of run")
    if arguments.has(DRY_RUN):
        raise ConfigError("policy record: with --dry-run nothing runs, and nothing is recorded")
    try:
        config = build_config(arguments, extended_status=extended_status)
    except UsageError as error:
        raise UsageError(f"policy record: {error}") from None
    if not config.sandbox:
        raise ConfigError("policy record: without the sandbox (--disable-sandbox) is no filter")
    return config


def _run(config: RunConfig, settings: GlobalSettings, recorded: Recorded) -> int:
    """Run the VM; ``crosvm_py/__main__.py`` reports what is raised here, as always."""
    from crosvm_py import log
    from crosvm_py.exit_status import exit_status
    from crosvm_py.run import run_vm

    syslog = log.configure(settings.syslog_tag if settings.syslog else None)
    return exit_status(run_vm(config, syslog, recorded), extended=config.extended_status)


def _make(directory: str) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"policy record: -o {directory}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"policy record: -o {directory}: no permission to write there")


class _PolicyFile:
    """One policy in the directory: its present content, and what is recorded for it."""

    def __init__(self, directory: str, name: str, arguments: Arguments) -> None:
        from seccomp.loader import parse_policy, policy_path
        from seccomp.record import Recording
        from seccomp.syscalls import machine_arch

        self.name = name
        self._directory = directory
        self._path = policy_path(name, directory)
        self._arch = machine_arch()
        self._reference = parse_policy(policy_path(name))
        exact = arguments.has(EXACT)
        self.recording: Recording = Recording(self._arch, self._reference, exact=exact)
        self._earlier: PolicyTree | None = None
        self._runs: list[str] = []
        self._read(merge=arguments.has(MERGE))

    def _read(self, *, merge: bool) -> None:
        from seccomp.loader import parse_policy
        from seccomp.policy_text import is_copy, runs_of
        from seccomp.sources import read_sources

        if not os.path.lexists(self._path):
            return
        text = read_sources(self._path)[self._path]
        if is_copy(text):
            return
        if not merge:
            raise ConfigError(f"policy record: {self._path} is there already; --merge adds to it")
        self._earlier = parse_policy(self._path)
        self._runs = runs_of(text)

    def write(self, run: str) -> None:
        """Write the recorded policy, check that it can be loaded, and report the result."""
        from seccomp.loader import load_policy
        from seccomp.policy_text import policy_text, write_policy

        recording = self.recording
        if not recording.processes:
            write_error(f"policy record: {self.name}: no such process ran, nothing is written")
            return
        line = f"{_facts()}; {_extent(recording)}: {run}"
        text = policy_text(
            f"{self.name}: what was really called, made by crosvm policy record.",
            [*self._runs, line],
            self._arch,
            recording,
            self._reference,
            self._earlier,
        )
        write_policy(self._directory, os.path.basename(self._path), text.encode())
        load_policy(self.name, directory=self._directory)
        for told in self._summary():
            write_error(f"policy record: {told}")

    def _summary(self) -> Iterable[str]:
        from seccomp.loader import parse_policy
        from seccomp.policy_text import Writer
        from seccomp.record import excess

        tree = parse_policy(self._path)
        allowed = sum(bool(rule.allow) for rule in tree.rules.values())
        built_in = sum(bool(rule.allow) for rule in self._reference.rules.values())
        beyond = excess(tree, self._reference)
        within = "" if beyond else ", nothing beyond it"
        yield (
            f"{self._path}: allows {allowed} system calls, the built-in policy {built_in}{within}; "
            f"from {_extent(self.recording)}"
        )
        writer = Writer(self._arch)
        for name, clause in beyond:
            told = " ".join(writer.statement(name, (clause,), None))
            yield f"{self.name}: beyond the built-in policy: {told}"
        for name, count in sorted(self.recording.refused.items()):
            yield f"{self.name}: refused {count} times, and not recorded: {name}"


def _extent(recording: Recording) -> str:
    plural = "es" if recording.processes > 1 else ""
    return f"{recording.calls} calls of {recording.processes} process{plural}"


def _complete(directory: str) -> None:
    """Copy the policies that the directory lacks, so that a run can use the directory."""
    from seccomp.loader import policy_path
    from seccomp.policy_text import complete
    from seccomp.sources import read_sources

    for name in policy_names(None):
        complete(directory, read_sources(policy_path(name)).items())


def _facts() -> str:
    system = os.uname()
    version = sys.version_info
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or "unknown C library"
    except (OSError, ValueError):
        libc = "unknown C library"
    python = f"Python {version.major}.{version.minor}.{version.micro}"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"{when}; Linux {system.release} {system.machine}; {libc}; {python}"


def _describe_run(words: Sequence[str]) -> str:
    line = printable(shlex.join(["crosvm", "run", *words[words[0] == "run" :]]))
    return line if len(line) <= _MAX_COMMAND_CHARS else line[:_MAX_COMMAND_CHARS] + "…"


RECORD: Final = Command(
    "policy record",
    "run a VM whose guest you trust, and write policies that allow what its devices called",
    (OUTPUT, MERGE, EXACT),
    (
        Positional(
            "DEVICE",
            "device of that VM such as block or net, vmm or vcpu; or all for every device",
            1,
            64,
        ),
        Positional(
            "RUN ARGUMENTS",
            "the arguments of crosvm run, whose exit status is passed on",
            behind_dashes=True,
        ),
    ),
    _record,
    examples=("crosvm policy record all -o policies -- -r rootfs.img vmlinux",),
)
