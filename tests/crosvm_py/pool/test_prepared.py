# SPDX-License-Identifier: BSD-3-Clause
"""A kernel that was read before its run is used only if the run opens the same, unchanged."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from crosvm_py.pool.kernels import prepare_kernel
from crosvm_py.vmm import prepared_kernel
from crosvm_py.vmm.prepared_kernel import (
    MAX_ELF_BYTES,
    PreparedKernel,
    find_prepared,
    keep_prepared,
    prepared_fds,
)
from seccomp import keep_policy, load_policy, loader
from sys_util.errors import ConfigError
from sys_util.facts import replace
from sys_util.guest_memory import GuestMemory
from sys_util.wire import Codec, encode
from tests.kernel_loader.images import COMPRESSORS, RAM_BYTES, TEXT_GPA, Elf, Load, bzimage, write
from tests.support.command_line import config_of

if TYPE_CHECKING:
    from pathlib import Path

    from kernel_loader.image import KernelImage

CONTENT = b"text of a kernel" * 256


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_kernel, "_kernels", [])


def make_kernel(directory: Path, *, packed: bool) -> str:
    elf = Elf(loads=[Load(content=CONTENT)]).build()
    return write(directory, bzimage(COMPRESSORS["gzip"](elf)) if packed else elf)


def prepare(path: str) -> None:
    """Prepare a kernel and pass it on, as the pool does."""
    prepared = prepare_kernel(path)
    assert prepared is not None
    message = Codec((PreparedKernel,)).decode(encode(prepared[0]))
    assert isinstance(message, PreparedKernel)
    keep_prepared(message, prepared[1])


def text_of(image: KernelImage) -> bytes:
    memory = GuestMemory.create([(0, RAM_BYTES)])
    image.place(memory)
    text = memory.read(TEXT_GPA, len(CONTENT))
    memory.close()
    return text


@pytest.mark.parametrize("packed", [False, True], ids=["elf", "bzImage"])
def test_same_kernel_is_used_once(tmp_path: Path, packed: bool) -> None:
    path = make_kernel(tmp_path, packed=packed)
    prepare(path)
    assert len(prepared_fds()) == packed
    ready = find_prepared(config_of(path))
    assert ready is not None
    with closing(ready), closing(ready.image()) as image:
        assert text_of(image) == CONTENT
    assert find_prepared(config_of(path)) is None


def test_ready_kernel_closes_what_no_image_owns(tmp_path: Path) -> None:
    path = make_kernel(tmp_path, packed=True)
    before = len(os.listdir("/proc/self/fd"))
    prepare(path)
    ready = find_prepared(config_of(path))
    assert ready is not None
    ready.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_kernel_that_was_written_to_is_read_again(tmp_path: Path) -> None:
    path = make_kernel(tmp_path, packed=False)
    prepare(path)
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert find_prepared(config_of(path)) is None


def test_content_counts_and_not_only_times(tmp_path: Path) -> None:
    path = make_kernel(tmp_path, packed=False)
    prepared = prepare_kernel(path)
    assert prepared is not None
    keep_prepared(replace(prepared[0], digest=bytes(32)), -1)
    assert find_prepared(config_of(path)) is None


def test_other_file_at_the_same_path_is_read(tmp_path: Path) -> None:
    path = make_kernel(tmp_path, packed=False)
    prepare(path)
    other = write(tmp_path, Elf(loads=[Load(content=CONTENT)]).build(), "other")
    os.rename(other, path)
    assert find_prepared(config_of(path)) is None


def test_large_elf_is_not_kept(tmp_path: Path) -> None:
    path = write(tmp_path, Elf(loads=[Load(content=bytes(MAX_ELF_BYTES))]).build())
    assert prepare_kernel(path) is None


def test_what_is_no_kernel_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, b"#!/bin/sh\n")
    with pytest.raises(ConfigError):
        prepare_kernel(path)


def test_policy_that_was_kept_is_not_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loader, "_kept", {})
    keep_policy("vcpu")
    kept = load_policy("vcpu")
    assert load_policy("vcpu") is kept
    assert load_policy("vcpu", log_failures=True) is not kept
    (tmp_path / "vcpu.policy").write_text("read: 1\n")
    assert load_policy("vcpu", directory=str(tmp_path)).bpf != kept.bpf
