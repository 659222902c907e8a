# SPDX-License-Identifier: BSD-3-Clause
"""Disks to be measured, and the monitors that have them: ours twice, QEMU twice."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench import install
from tests.bench.monitors import MICROVM, baremetal_command
from tests.bench.results import OURS
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from typing import Self

PYTHON: Final = "crosvm-py, Python alone"
IOTHREAD: Final = "QEMU microvm, iothread"

MEMORY_MIB: Final = 64
IMAGE_BYTES: Final = 32 << 20


def installed(directory: Path, *, engine: bool) -> str:
    """Install the project, with its engine or without, unless it is there; return its command."""
    folder = directory / f"engine-{engine}"
    crosvm = folder / "bin" / "crosvm"
    return str(crosvm if crosvm.exists() else install.install(folder, engine=engine))


class Disks:
    """Images and command lines, in the order that ``block_speed.c`` expects.

    One image is in the host's page cache, one in a file system in memory, one is read from its disk
    each time.
    """

    def __init__(self, directory: Path) -> None:
        """``directory`` must be on a disk."""
        self.commands: dict[str, list[str]] = {}
        self._directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        in_memory = self._stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        images = [
            self._directory / "cached.img",
            Path(in_memory, "memory.img"),
            self._directory / "direct.img",
        ]
        for image in images:
            image.write_bytes(os.urandom(1 << 20) * (IMAGE_BYTES >> 20))
        os.sync()
        for monitor, engine in ((OURS, True), (PYTHON, False)):
            self.commands[monitor] = self._ours(installed(self._directory, engine=engine), images)
        for monitor, iothread in ((MICROVM, False), (IOTHREAD, True)):
            self.commands[monitor] = self._qemu(images, iothread=iothread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _ours(self, crosvm: str, images: list[Path]) -> list[str]:
        guest = build_guest("block_speed", self._directory)
        command = baremetal_command(OURS, crosvm, guest, MEMORY_MIB)
        disks = [*map(str, images[:-1]), f"{images[-1]},direct=true"]
        command[2:2] = [word for disk in disks for word in ("--block", disk)]
        return command

    def _qemu(self, images: list[Path], *, iothread: bool) -> list[str]:
        guest = build_guest("block_speed", self._directory, pvh=True)
        command = baremetal_command(MICROVM, "", guest, MEMORY_MIB)
        command += ["-name", "guest,debug-threads=on"]
        command += ["-global", "virtio-mmio.force-legacy=false"]
        if iothread:
            command += ["-object", "iothread,id=own"]
        for image, cache in zip(images, ("writeback", "writeback", "none"), strict=True):
            drive = f"if=none,id={image.stem},format=raw,aio=io_uring,cache={cache},file={image}"
            device = f"virtio-blk-device,drive={image.stem}{',iothread=own' * iothread}"
            command += ["-drive", drive, "-device", device]
        return command
