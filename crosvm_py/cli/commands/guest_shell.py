# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm guest shell``: a throw-away guest with a shell on the terminal.

In the guest, ``crosvm_py/guest/session.sh`` writes the exit status of the shell to the second
serial port. On the host that port is a pipe, so a guest that writes more cannot fill our memory.
"""

from __future__ import annotations

import os

from crosvm_py.cli.commands.run import COMMAND as RUN
from crosvm_py.cli.commands.run import run_config
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.keyvalue import typed_bool
from crosvm_py.cli.grammar.options import Option, Positional, parse, text_option
from crosvm_py.cli.output import write_error
from crosvm_py.cli.run_options import boot, machine
from crosvm_py.cli.run_options.run_config import build_config
from crosvm_py.end_signals import reset_inherited_signals
from crosvm_py.inherited import drop_inherited
from crosvm_py.tunables import run_without_huge_pages
from sys_util.errors import UsageError, VmmError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

NETWORKS: Final = ("user", "none")
# A status has at most three digits and a line end, which a terminal turns into two bytes.
STATUS_BYTES: Final = 5
MAX_STATUS: Final = 255
MAX_TERM_CHARS: Final = 40


def _read_network(option: str, text: str) -> str:
    if text not in NETWORKS:
        raise UsageError(f"{option}: {text!r:.40} is neither user nor none")
    return text


EXEC: Final = text_option(
    "-e --exec", "COMMAND", "run this instead of a shell; its exit status is that of crosvm"
)
NET: Final = Option(
    "--net",
    "user|none",
    "a network through passt, or none; without the option it is user where passt is installed",
    _read_network,
)


def _shell(arguments: Arguments, settings: GlobalSettings) -> int:
    reset_inherited_signals()
    run_without_huge_pages()
    folder = arguments.positional[0] if arguments.positional else _own_guest()
    words = _words(arguments, folder)
    drop_inherited()  # after guest make and _words, which use the environment
    # Made after that, because a run closes all descriptors that were open before.
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    words.append(f"--serial=num=2,type=file,path=/proc/self/fd/{writing}")
    config = build_config(
        parse(words, RUN.options, RUN.positional), extended_status=settings.extended_status
    )
    end = run_config(config, settings)
    status = session_status(_said(reading))
    return end if status is None or end else status


def session_status(said: bytes) -> int | None:
    """Return the exit status that a guest's session has written, or None if it wrote none."""
    text = said.strip()
    if not text.isdigit() or int(text) > MAX_STATUS:
        return None
    return int(text)


def _said(reading: int) -> bytes:
    try:
        return os.read(reading, STATUS_BYTES)
    except BlockingIOError:
        return b""


def _own_guest() -> str:
    """Return the folder of the user's own minimal guest; make it the first time."""
    from crosvm_py.guest.apt import Source, cache_folder
    from crosvm_py.guest.make import GuestOrder, make_guest

    guests = os.path.join(cache_folder(), "guests")
    folder = os.path.join(guests, "minimal")
    if not os.path.isdir(folder):
        os.makedirs(guests, exist_ok=True)
        try:
            make_guest(GuestOrder("minimal", Source()), folder, write_error)
        except VmmError:
            if not os.path.isdir(folder):  # otherwise another crosvm has made it meanwhile
                raise
    return folder


def _words(arguments: Arguments, folder: str) -> list[str]:
    """Return the equivalent command line of ``crosvm run``, without the second serial port."""
    from crosvm_py.file_parser.guest import read_guest

    words = [folder, "-p", "crosvm.session crosvm.status=/dev/ttyS1"]
    words += ["--serial=num=1,type=stdout,stdin,console"]
    words += [word for it in arguments.every(boot.PARAMS) for word in ("-p", it)]
    cpus, memory = arguments.get(machine.CPUS), arguments.get(machine.MEMORY)
    if cpus is not None:
        most = f",max={cpus.spec.most}" if cpus.spec.most else ""
        words.append(f"{machine.CPUS.name}={cpus.vcpus}{most}")
    if memory is not None:
        words.append(f"{machine.MEMORY.name}={_typed_memory(memory)}")
    image = read_guest(folder).rwroot
    if image is not None:
        from crosvm_py.guest.throwaway import throwaway_copy

        words.append(f"--rwroot=/proc/self/fd/{throwaway_copy(image)}")
    command = arguments.get(EXEC)
    if command is not None:
        from binascii import b2a_base64

        words += ["-p", f"crosvm.run={b2a_base64(os.fsencode(command), newline=False).decode()}"]
    return [*words, *_network(arguments.get(NET)), *_terminal()]


def _network(wanted: str | None) -> list[str]:
    if wanted is None:
        from shutil import which

        if which("passt") is None:
            write_error("guest shell: no network: passt is not installed (apt install passt)")
            return []
    return [] if wanted == "none" else ["--net=user"]


def _terminal() -> list[str]:
    """Return kernel parameters that tell the guest the type and the size of this terminal."""
    words = []
    term = os.environ.get("TERM", "")
    if term.isascii() and term.replace("-", "").isalnum() and len(term) <= MAX_TERM_CHARS:
        words.append(f"TERM={term}")
    try:
        columns, rows = os.get_terminal_size(0)
        words.append(f"crosvm.size={rows}x{columns}")
    except OSError:
        pass  # no terminal, no size
    return ["-p", " ".join(words)] if words else []


def _typed_memory(memory: machine.MemoryOption) -> str:
    """Return the value as a user would type it."""
    values = [f"{memory.size_bytes // machine.MIB}", f"thp={typed_bool(memory.huge_pages)}"]
    if memory.hotplug_bytes:
        most = memory.size_bytes + memory.hotplug_bytes
        values += [f"max={most // machine.MIB}", f"hotplug-method={memory.hotplug_method}"]
    if memory.pool_page_bytes:
        values += ["hugepages", f"hugepage-size={memory.pool_page_bytes}"]
    if memory.prefault:
        values.append("prefault")
    return ",".join(values)


SHELL: Final = Command(
    "guest shell",
    "a shell in a throw-away guest",
    (EXEC, NET, machine.CPUS, machine.MEMORY, boot.PARAMS),
    (
        Positional(
            "DIR",
            "the guest's folder, from crosvm guest make; without it a minimal one of your own, "
            "which is made the first time",
            at_least=0,
        ),
    ),
    _shell,
    examples=(
        "crosvm guest shell",
        "crosvm guest shell -m 1g work",
        "crosvm guest shell -e 'wget -qO- http://deb.debian.org/ | head' --net user",
    ),
    details="Nothing of what the guest writes stays. The exit status is that of the shell or the "
    "command. Ctrl-A x leaves the guest.",
)
