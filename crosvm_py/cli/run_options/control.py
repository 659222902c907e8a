# SPDX-License-Identifier: BSD-3-Clause
"""Options for the name and the control socket of a VM, and for a dry run."""

from __future__ import annotations

from crosvm_py.cli.grammar.options import Option, OptionGroup, switch, text_option
from crosvm_py.config import ApiSocketSpec
from sys_util.errors import UsageError
from sys_util.typing import Final


def _read_api_socket(option: str, text: str) -> ApiSocketSpec:
    """Read ``PATH``, ``path=PATH`` or ``fd=N``.

    Raises:
        UsageError: it is none of these.
    """
    if text.startswith("fd="):
        number = text.removeprefix("fd=")
        if not number.isdecimal() or len(number) > 9 or int(number) < 3:
            raise UsageError(f"{option}: fd={number:.20} is not the number of an inherited socket")
        return ApiSocketSpec(fd=int(number))
    path = text.removeprefix("path=")
    if not path:
        raise UsageError(f"{option}: the path is empty")
    return ApiSocketSpec(path)


SOCKET: Final = text_option(
    "-s --socket",
    "PATH",
    "make a socket there for crosvm stop, devices and other commands; if PATH is a directory, "
    "it is called crosvm-PID.sock",
)
API_SOCKET: Final = Option(
    "--api-socket",
    "PATH|fd=N",
    "serve Cloud Hypervisor's REST API on a socket that is made there, or that is inherited and "
    "listens",
    _read_api_socket,
)
NAME: Final = text_option(
    "--name", "NAME", "name of the main process, as ps shows it", default="crosvm"
)
POOL: Final = text_option(
    "--pool",
    "PATH",
    "let a monitor that crosvm pool has started there run the VM; without one start as usual",
)

DRY_RUN: Final = switch(
    "--dry-run",
    "start nothing: check what can be checked, and print what would run: kernel parameters, "
    "memory, devices, policies, jails",
)
JSON: Final = switch("--json", "print the plan of --dry-run as JSON for programs")

GROUP: Final = OptionGroup(
    "Control",
    (SOCKET, API_SOCKET, NAME, POOL, DRY_RUN, JSON),
    examples=(
        "crosvm run -s vm.sock … ; crosvm stop vm.sock",
        "crosvm run --dry-run --net user -r rootfs.img vmlinux",
    ),
)
