# SPDX-License-Identifier: BSD-3-Clause
"""What the commands for policies share: names, options, text that is safe to print."""

from __future__ import annotations

import os

from crosvm_py.cli.grammar.options import Option, text_option
from crosvm_py.cli.grammar.suggest import suggestion
from crosvm_py.kinds.table import DEVICE_KINDS
from seccomp.loader import policy_path
from seccomp.syscalls import ARCHITECTURES
from sys_util.errors import ConfigError, UsageError
from sys_util.log import printable
from sys_util.typing import Final

_SUFFIX: Final = ".policy"
_PARTS: Final = "common"  # files whose names begin so are only included by others


DEVICE_HELP: Final = (
    "device such as block, net:0 or vhost-vsock, or policy such as block_device or vmm"
)


def _read_arch(option: str, text: str) -> str:
    if text not in ARCHITECTURES:
        raise UsageError(f"{option}: {text!r:.40} is none of {', '.join(ARCHITECTURES)}")
    return text


ARCH: Final = Option("--arch", "ARCH", "x86_64 or aarch64 (this machine's)", _read_arch)
POLICY_DIR: Final = text_option(
    "--policy-dir", "DIR", "read the policies there, not those that are built in"
)


def policy_names(directory: str | None, arch: str | None = None) -> list[str]:
    """Return the names of the policies in a directory, or of the built-in ones.

    Raises:
        ConfigError: the directory cannot be read.
    """
    folder = os.path.dirname(policy_path("vmm", directory, arch)) or "."
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"policies of {folder}") from error
    stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return [stem for stem in stems if stem and not stem.startswith((_PARTS, "."))]


def policy_name(device: str, directory: str | None, arch: str | None = None) -> str:
    """Return the name of a device's policy; ``device`` is a kind, a device or a policy.

    Raises:
        UsageError: there is no such policy.
    """
    kinds = {kind.replace("_", "-"): each.policy_name for kind, each in DEVICE_KINDS.items()}
    kind, colon, index = device.partition(":")
    if kind in kinds and (not colon or index.isdecimal()):
        return kinds[kind]
    known = policy_names(directory, arch)
    if device in known:
        return device
    where = "" if directory is None else f" in {directory}"
    hint = suggestion(device, [*kinds, *known])
    raise UsageError(f"no device or policy {device!r:.60}{where}{hint}")


def named_policy(command: str, device: str, directory: str | None, arch: str) -> str:
    """Return what ``policy_name`` returns, with errors that name ``crosvm policy COMMAND``.

    Raises:
        UsageError: there is no such policy.
    """
    try:
        return policy_name(device, directory, arch)
    except UsageError as error:
        raise UsageError(f"policy {command}: {error}") from None


def printable_lines(text: str) -> str:
    """Return ``text`` without terminal control characters, which a stranger's policy may have."""
    return "\n".join(printable(line) for line in text.split("\n"))
