# SPDX-License-Identifier: BSD-3-Clause
"""The names of policies, as commands take them."""

from __future__ import annotations

import os

from crosvm_py.cli.grammar.options import suggestion
from crosvm_py.device_process.kinds import DEVICE_KINDS
from seccomp.loader import policy_path
from sys_util.errors import ConfigError, UsageError
from sys_util.typing import Final

_SUFFIX: Final = ".policy"
_PARTS: Final = "common"  # files that are there to be included begin so


def policy_names(directory: str | None, arch: str | None = None) -> list[str]:
    """Return the policies of a directory, or the built-in ones.

    Raises:
        ConfigError: it cannot be read.
    """
    folder = os.path.dirname(policy_path("vmm", directory, arch)) or "."
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"policies of {folder}") from error
    stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return [stem for stem in stems if stem and not stem.startswith((_PARTS, "."))]


def policy_name(device: str, directory: str | None, arch: str | None = None) -> str:
    """Return the policy of a device, which may be named as ``crosvm devices`` does.

    Raises:
        UsageError: there is none.
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
