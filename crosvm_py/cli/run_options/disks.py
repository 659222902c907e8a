# SPDX-License-Identifier: BSD-3-Clause
"""Disks on the command line: ``--block``, and crosvm's four older options.

The values of each disk are checked where its image is opened.
"""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup
from crosvm_py.cli.run_options.limits import FIELDS as LIMIT_FIELDS
from crosvm_py.cli.run_options.limits import limits
from crosvm_py.cli.run_options.twice import first_twice
from crosvm_py.config import MAX_DISKS
from devices.virtio.block.spec import BlockSpec
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.cli.grammar.options import Arguments

log = get_logger("crosvm.run")

_PATH: Final = keyvalue.path("path", "the image: a raw file, or a block device").needed()
_RO: Final = keyvalue.flag("ro", "the guest cannot write")
_ROOT: Final = keyvalue.flag("root", "append root=/dev/vdX to the kernel command line")
_SPARSE: Final = keyvalue.flag(
    "sparse", "the guest may give blocks back to the file system of the image", default=True
)
_BLOCK_SIZE: Final = keyvalue.integer("block-size", "bytes in a logical block", 512)
_ID: Final = keyvalue.string("id", "serial number that the guest sees, up to 20 bytes")
_DIRECT: Final = keyvalue.flag("direct", "bypass the host's page cache (O_DIRECT)").also("o-direct")
_LOCK: Final = keyvalue.flag("lock", "refuse an image that another VM uses", default=True)

_PACKED: Final = keyvalue.flag("packed-queue", "packed virtqueues are not supported: only false")

_OTHERS: Final = (_SPARSE, _BLOCK_SIZE, _ID, _DIRECT, _LOCK, _PACKED, *LIMIT_FIELDS)
_COMMON: Final = (_PATH, *_OTHERS)
_ALL: Final = (_PATH, _RO, _ROOT, *_OTHERS)
PLUGGED_FIELDS: Final = (_PATH, _RO, *_OTHERS)


def _build_spec(option: str, values: keyvalue.Values, *, read_only: bool, root: bool) -> BlockSpec:
    if values[_PACKED]:
        raise ConfigError(f"{option}: packed-queue=true: there are only split virtqueues")
    return BlockSpec(
        path=values[_PATH],
        read_only=read_only,
        root=root,
        sparse=values[_SPARSE],
        block_size=values[_BLOCK_SIZE],
        id=values[_ID],
        direct=values[_DIRECT],
        lock=values[_LOCK],
        option=option,
        limits=limits(option, values),
    )


def _read_block(option: str, text: str) -> BlockSpec:
    values = keyvalue.parse(option, text, _ALL)
    return _build_spec(option, values, read_only=values[_RO], root=values[_ROOT])


def plugged_spec(option: str, values: keyvalue.Values) -> BlockSpec:
    """Return the disk that ``values`` of ``PLUGGED_FIELDS`` describe."""
    return _build_spec(option, values, read_only=values[_RO], root=False)


def _fixed(*, read_only: bool, root: bool) -> Callable[[str, str], BlockSpec]:
    def read(option: str, text: str) -> BlockSpec:
        values = keyvalue.parse(option, text, _COMMON)
        return _build_spec(option, values, read_only=read_only, root=root)

    return read


BLOCK: Final = Option(
    "-b --block",
    "PATH[,KEY=VALUE…]",
    "a disk, with any of the keys below",
    _read_block,
    repeatable=True,
    fields=_ALL,
)
ROOT: Final = Option(
    "-r --root",
    "PATH",
    "a read-only root disk",
    _fixed(read_only=True, root=True),
    repeatable=True,
)
RWROOT: Final = Option(
    "--rwroot",
    "PATH",
    "a writable root disk",
    _fixed(read_only=False, root=True),
    repeatable=True,
)
DISK: Final = Option(
    "-d --disk",
    "PATH",
    "a read-only disk",
    _fixed(read_only=True, root=False),
    repeatable=True,
)
RWDISK: Final = Option(
    "--rwdisk",
    "PATH",
    "a writable disk",
    _fixed(read_only=False, root=False),
    repeatable=True,
)
OPTIONS: Final[tuple[Option[BlockSpec], ...]] = (ROOT, RWROOT, DISK, RWDISK, BLOCK)
GROUP: Final = OptionGroup(
    "Disks",
    OPTIONS,
    examples=(
        "crosvm run -r rootfs.img --rwdisk data.img vmlinux",
        "crosvm run --block path=a.img,ro,root --block b.img,id=data vmlinux",
    ),
    note="All may be repeated and mixed: the first disk is /dev/vda, the next /dev/vdb. For a "
    "root disk, root=/dev/vdX is appended to the kernel's command line. -r, --rwroot, -d and "
    "--rwdisk take the keys of --block but for ro and root. A value with a comma needs quotes: "
    "-b 'path=\"a,b.img\"'.",
)


def disks(arguments: Arguments, guest_root: BlockSpec | None = None) -> tuple[BlockSpec, ...]:
    """Return the disks in the order of the command line.

    ``guest_root`` is the root disk of a guest's folder. It comes first, and is left out if the
    command line has a root disk of its own.

    Raises:
        ConfigError: there are too many disks, or more than one root disk.
    """
    specs = tuple(arguments.every(*OPTIONS))
    if guest_root is not None and not any(spec.root for spec in specs):
        specs = (guest_root, *specs)
    if len(specs) > MAX_DISKS:
        raise ConfigError(f"--block: {len(specs)} disks are above the limit of {MAX_DISKS}")
    roots = [spec.path for spec in specs if spec.root]
    if len(roots) > 1:
        raise ConfigError(f"--root: only one disk can be the root, got {' and '.join(roots)}")
    name = first_twice(spec.id for spec in specs)
    if name is not None:
        log.warning("--block: two disks have id=%s; a guest that looks for it finds one", name)
    return specs
