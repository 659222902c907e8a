# SPDX-License-Identifier: BSD-3-Clause
"""Make the jail of a device's process from its kind and the facts of the device."""

from __future__ import annotations

from jail.plan import device_jail
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.kinds.kind import DeviceKind
    from jail.plan import JailPlan
    from seccomp import Policy


def jail_for(
    kind: DeviceKind,
    policy: Policy,
    *,
    keep_fds: Iterable[int],
    max_file_bytes: int,
    guest_bytes: int,
    ids: tuple[int | None, int | None],
) -> JailPlan:
    """Return the jail of one process.

    Args:
        kind: the kind of the device.
        policy: the compiled policy of that kind.
        keep_fds: the descriptors that stay open.
        max_file_bytes: the highest offset that it may write at in any file.
        guest_bytes: the size of guest memory.
        ids: user and group of the process inside its user namespace.
    """
    return device_jail(
        policy_name=policy.name,
        bpf=policy.bpf,
        keep_fds=keep_fds,
        max_file_bytes=max_file_bytes,
        max_open_files=kind.max_open_files,
        max_processes=kind.max_processes,
        threads=kind.threads,
        recorder=policy.recorder,
        memory_bytes=guest_bytes,
        ids=ids,
    )
