# SPDX-License-Identifier: BSD-3-Clause
"""Read kernels for the monitors of the pool, once for all of them (``--prepare``)."""

from __future__ import annotations

import os
from contextlib import ExitStack

from crosvm_py.config import RunConfig
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from crosvm_py.vmm.prepared_kernel import MAX_ELF_BYTES, PreparedKernel, digest_of, status_of
from kernel_loader.source import FileSource
from sys_util.errors import ConfigError
from sys_util.typing import TypeAlias

# With the descriptor of the sealed memfd that has the unpacked kernel, or -1 if it needs none.
Kernel: TypeAlias = "tuple[PreparedKernel, int]"


def prepare_kernel(path: str) -> Kernel | None:
    """Read a kernel; the caller owns the descriptor.

    Return ``None`` if a run reads it as quickly itself; then the host has its pages in memory now.

    Raises:
        ConfigError: it is none, or changes meanwhile.
        HostError: the host cannot read it.
    """
    with ExitStack() as stack:
        source = FileSource.open("--prepare", path)
        stack.callback(source.close)
        before = status_of(source.fd)
        parser = start_kernel_parser(_config(path))
        stack.callback(parser.close)
        image = parser.image()
        stack.callback(image.close)
        digest = digest_of(source)
        if status_of(source.fd) != before:
            raise ConfigError(f"--prepare {path}: it was changed while it was read")
        kernel = image.parsed
        if kernel.unpacked_bytes:
            if not isinstance(image.source, FileSource):
                raise TypeError("an unpacked kernel is in a memfd")
            return PreparedKernel(before, digest, kernel), os.dup(image.source.fd)
        if source.size > MAX_ELF_BYTES:
            return None
        return PreparedKernel(before, digest, kernel), -1


def _config(kernel: str) -> RunConfig:
    """Return what reading a kernel needs to know of a run."""
    return RunConfig(
        kernel=kernel,
        params=(),
        cpus=1,
        memory_bytes=0,
        initrd=None,
        disks=(),
        serial=(),
        rng=None,
        socket=None,
        name="crosvm-pool",
        seccomp_policy_dir=None,
        seccomp_log_failures=False,
        sandbox=True,
        extended_status=False,
    )
