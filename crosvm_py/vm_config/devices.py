# SPDX-License-Identifier: BSD-3-Clause
"""The devices of a VM."""

# Without "from __future__ import annotations": msgspec would compile each annotation's text.

from typing import Annotated

from crosvm_py.vm_config.field_types import (
    I32,
    U8,
    U16,
    U32,
    U64,
    ByteSize,
    ConsoleMode,
    DeviceType,
    ImageType,
    LockGranularity,
    PciDevice,
    Record,
    VhostMode,
    about,
    about_cli,
)


class TokenBucket(Record, frozen=True, kw_only=True):
    """A rate limit: ``size`` bytes or operations in ``refill_time`` milliseconds."""

    size: Annotated[ByteSize, about("bytes or operations that may pass in refill_time")]
    one_time_burst: Annotated[ByteSize | None, about("what may pass before that, once")] = None
    refill_time: Annotated[U64, about("milliseconds")]


class RateLimiterConfig(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a device. This object alone refuses unknown keys, as in Cloud Hypervisor."""

    bandwidth: Annotated[TokenBucket | None, about_cli("of bytes", "bw")] = None
    ops: Annotated[TokenBucket | None, about("of operations")] = None


class RateLimiterGroupConfig(Record, frozen=True, kw_only=True):
    """Limits that disks have together."""

    id: Annotated[str, about("name of the group")] = ""
    rate_limiter_config: Annotated[RateLimiterConfig, about("the limits")] = RateLimiterConfig()


class VirtQueueAffinity(Record, frozen=True, kw_only=True):
    """On which processors of the host one queue is served."""

    queue_index: Annotated[U16, about("number of the queue")]
    host_cpus: Annotated[tuple[U64, ...], about("processors of the host")]


class DiskConfig(PciDevice, frozen=True, kw_only=True):
    """A disk (virtio-blk)."""

    path: Annotated[str | None, about("the image, or a block device")] = None
    readonly: Annotated[bool, about("the guest cannot write")] = False
    direct: Annotated[bool, about("bypass the host's page cache (O_DIRECT)")] = False
    num_queues: Annotated[U32, about("queues, at most one for each vCPU")] = 1
    queue_size: Annotated[U16, about("entries of a queue, a power of two, 4 to 32768")] = 128
    vhost_user: Annotated[bool, about("served by another program")] = False
    vhost_socket: Annotated[str | None, about_cli("socket of that program", "socket")] = None
    rate_limit_group: Annotated[str | None, about("limits shared with other disks")] = None
    rate_limiter_config: Annotated[RateLimiterConfig | None, about("limits of its own")] = None
    serial: Annotated[str | None, about("serial number, up to 20 bytes")] = None
    queue_affinity: Annotated[
        tuple[VirtQueueAffinity, ...] | None, about("where each queue is served")
    ] = None
    backing_files: Annotated[bool, about("the image may name a backing file")] = False
    sparse: Annotated[bool, about("the guest may give blocks back")] = True
    image_type: Annotated[ImageType, about("format of the image")] = "Unknown"
    lock_granularity: Annotated[LockGranularity, about("how the image is locked")] = "ByteRange"
    disable_io_uring: Annotated[bool, about_cli("do without io_uring", None)] = False
    disable_aio: Annotated[bool, about_cli("do without Linux AIO", None)] = False


class NetConfig(PciDevice, frozen=True, kw_only=True):
    """A network card (virtio-net)."""

    tap: Annotated[str | None, about("name of the TAP")] = None
    ip: Annotated[str | None, about("the host's address on the TAP")] = None
    mask: Annotated[str | None, about("netmask of ip")] = None
    mac: Annotated[str | None, about("the guest's MAC address; random without")] = None
    host_mac: Annotated[str | None, about("the host's MAC address on the TAP")] = None
    mtu: Annotated[U16 | None, about("longest packet, 1280 or more")] = None
    num_queues: Annotated[U32, about("queues, two for each pair")] = 2
    queue_size: Annotated[U16, about("entries of a queue, a power of two")] = 256
    vhost_user: Annotated[bool, about("served by another program")] = False
    vhost_socket: Annotated[str | None, about_cli("socket of that program", "socket")] = None
    vhost_mode: Annotated[VhostMode, about("who makes that socket")] = "Client"
    fds: Annotated[tuple[I32, ...] | None, about_cli("descriptors of a TAP", "fd")] = None
    rate_limiter_config: Annotated[RateLimiterConfig | None, about("limits")] = None
    offload_tso: Annotated[bool, about("TCP segmentation offload")] = True
    offload_ufo: Annotated[bool, about("UDP fragmentation offload")] = True
    offload_csum: Annotated[bool, about("checksum offload")] = True


class RngConfig(PciDevice, frozen=True, kw_only=True):
    """The entropy device (virtio-rng)."""

    src: Annotated[str, about("where entropy comes from")]


class RtcConfig(PciDevice, frozen=True, kw_only=True):
    """A clock (virtio-rtc)."""


class BalloonConfig(PciDevice, frozen=True, kw_only=True):
    """The memory balloon."""

    size: Annotated[ByteSize, about("bytes that it takes at the start; may be 0")]
    deflate_on_oom: Annotated[bool, about("the guest takes memory back in need")] = False
    free_page_reporting: Annotated[bool, about("the guest gives free memory back")] = False


class FsConfig(PciDevice, frozen=True, kw_only=True):
    """A shared directory (vhost-user-fs)."""

    tag: Annotated[str, about("name for mounting, up to 36 bytes")]
    socket: Annotated[str, about("socket of virtiofsd")]
    num_queues: Annotated[U32, about("request queues")] = 1
    queue_size: Annotated[U16, about("entries of a queue, a power of two")] = 1024


class GenericVhostUserConfig(PciDevice, frozen=True, kw_only=True):
    """Any virtio device that another program serves (vhost-user)."""

    socket: Annotated[str, about("socket of that program")]
    queue_sizes: Annotated[tuple[U16, ...], about("entries of each queue")]
    device_type: Annotated[DeviceType, about("virtio's number of the device type")]


class PmemConfig(PciDevice, frozen=True, kw_only=True):
    """Persistent memory (virtio-pmem)."""

    file: Annotated[str, about("the file, or a directory for one without a name")]
    size: Annotated[ByteSize | None, about("bytes; needed for a directory")] = None
    discard_writes: Annotated[bool, about("forget what the guest writes")] = False


class ConsoleConfig(PciDevice, frozen=True, kw_only=True):
    """The virtio console."""

    file: Annotated[str | None, about("file for mode File; the path of the pty")] = None
    mode: Annotated[ConsoleMode, about("where output goes")]
    socket: Annotated[str | None, about("not for the virtio console")] = None


class SerialConfig(Record, frozen=True, kw_only=True):
    """The serial port COM1."""

    file: Annotated[str | None, about("file for mode File; the path of the pty")] = None
    mode: Annotated[ConsoleMode, about("where output goes")]
    socket: Annotated[str | None, about("UNIX socket that is made for mode Socket")] = None


class DebugConsoleConfig(Record, frozen=True, kw_only=True):
    """A console of one I/O port, without interrupts, as Bochs and firmware use it."""

    file: Annotated[str | None, about("file for mode File; the path of the pty")] = None
    mode: Annotated[ConsoleMode, about("where output goes")]
    iobase: Annotated[U16 | None, about("the I/O port; 0xe9 without")] = None


class DeviceConfig(PciDevice, frozen=True, kw_only=True):
    """A device of the host, passed through (VFIO)."""

    path: Annotated[str | None, about("the device in sysfs")] = None
    fd: Annotated[I32 | None, about("descriptor of the device instead")] = None
    x_nv_gpudirect_clique: Annotated[U8 | None, about("NVIDIA GPUDirect clique")] = None
    x_exclude_mmap_bars: Annotated[tuple[U64, ...] | None, about("BARs not mapped")] = None


class UserDeviceConfig(PciDevice, frozen=True, kw_only=True):
    """A device that another program serves (vfio-user)."""

    socket: Annotated[str, about("socket of that program")]


class VdpaConfig(PciDevice, frozen=True, kw_only=True):
    """A vDPA device of the host."""

    path: Annotated[str, about("the character device")]
    num_queues: Annotated[U32, about("queues")] = 1


class VsockConfig(PciDevice, frozen=True, kw_only=True):
    """Sockets between host and guest (virtio-vsock)."""

    cid: Annotated[U32, about("the guest's address, 3 or higher")]
    socket: Annotated[str, about("UNIX socket that is made for programs of the host")]


class TpmConfig(Record, frozen=True, kw_only=True):
    """A TPM that swtpm serves."""

    socket: Annotated[str, about("socket of swtpm")]
