# SPDX-License-Identifier: BSD-3-Clause
"""Drive a VM from Python, by the REST API of ``cloud-hypervisor``: ours, or the original.

    from crosvm_py.client.vm import VM
    from crosvm_py.vm_config.machine import MemoryConfig, PayloadConfig
    from crosvm_py.vm_config.schema import VmConfig

    config = VmConfig(payload=PayloadConfig(kernel="vmlinux"), memory=MemoryConfig(size=1 << 30))
    with VM.launch(config) as vm:
        vm.pause()
        print(vm.info().state)
        for event in vm.events():
            print(event.source, event.event)

Methods have the names of the endpoints. Each makes a connection of its own and waits for its
answer, so an object may be used by several threads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress

from crosvm_py.client.connection import ApiError, ConnectionFailedError, call
from crosvm_py.client.events import Event, read_events
from crosvm_py.vm_config import json_text
from crosvm_py.vm_config.answers import PciDeviceInfo, VmInfo, VmmPingResponse
from crosvm_py.vm_config.codec import decode, encode
from crosvm_py.vm_config.devices import DiskConfig, NetConfig, VsockConfig
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.requests import VmRemoveDevice, VmResize, VmResizeDisk
from crosvm_py.vm_config.schema import VmConfig
from sys_util.typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from crosvm_py.vm_config.field_types import Record

    R = TypeVar("R", bound=Record)

__all__ = ["VM", "ApiError", "ConnectionFailedError", "Event"]

PROGRAM: Final = "cloud-hypervisor"
# How long a program may take to serve its socket, and to end.
START_SECONDS: Final = 30.0
END_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.002


class VM:
    """A VM behind the socket at ``path``. Calls wait ``timeout_seconds``, or without an end."""

    def __init__(self, path: str, *, timeout_seconds: float | None = None) -> None:
        self.path = path
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    @classmethod
    def launch(
        cls,
        config: VmConfig | None = None,
        *,
        program: Sequence[str] = (PROGRAM,),
        arguments: Sequence[str] = (),
        timeout_seconds: float | None = None,
    ) -> Self:
        """Start ``program``, and create and boot a VM in it if there is a ``config``.

        The object owns the process: leave its ``with`` statement or call ``close`` to end it.

        Raises:
            ApiError: the VM cannot be booted.
            ConnectionFailedError: the program has ended, or does not serve its socket in time.
            OSError: it cannot be started.
        """
        folder = tempfile.mkdtemp(prefix="crosvm-vm-")
        vm = cls(os.path.join(folder, "api.sock"), timeout_seconds=timeout_seconds)
        vm._folder = folder
        try:
            options = ("--api-socket", vm.path, "--event-monitor", f"path={vm._events_path}")
            vm._process = subprocess.Popen([*program, *options, *arguments])
            vm._wait_for_start(vm._process)
            if config is not None:
                vm.create(config)
                vm.boot()
        except BaseException:
            vm.close()
            raise
        return vm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program if this object has started it."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ApiError, ConnectionFailedError):
                if process.poll() is None:
                    self.shutdown_vmm()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""

    @property
    def _events_path(self) -> str:
        return os.path.join(self._folder, "events")

    def events(self, path: str | None = None) -> Iterator[Event]:
        """Yield what has happened and what happens, until the program has ended.

        ``path`` is the file of ``--event-monitor``, if this object has not started the program.
        """
        process = self._process
        has_ended = (lambda: False) if process is None else (lambda: process.poll() is not None)
        return read_events(self._events_path if path is None else path, has_ended)

    def ping(self) -> VmmPingResponse:
        """vmm.ping: who serves the socket."""
        return self._get("vmm.ping", VmmPingResponse)

    def shutdown_vmm(self) -> None:
        """vmm.shutdown: end the VM and the program."""
        self._put("vmm.shutdown")

    def create(self, config: VmConfig) -> None:
        """vm.create: take a configuration, which is checked by ``boot``."""
        self._put("vm.create", config)

    def boot(self) -> None:
        """vm.boot: start the VM that was created."""
        self._put("vm.boot")

    def info(self) -> VmInfo:
        """vm.info: configuration, state and devices."""
        return self._get("vm.info", VmInfo)

    def counters(self) -> dict[str, dict[str, int]]:
        """vm.counters: of each device its counters by name."""
        body = self._call("GET", "vm.counters")
        try:
            return _counters(json_text.parse(body or b"{}"))
        except (SchemaError, TypeError) as error:
            raise ConnectionFailedError(f"{self.path}: what is no counters: {error}") from None

    def pause(self) -> None:
        """vm.pause: hold the VM still."""
        self._put("vm.pause")

    def resume(self) -> None:
        """vm.resume: let it go on."""
        self._put("vm.resume")

    def shutdown(self) -> None:
        """vm.shutdown: end the VM, not the program."""
        self._put("vm.shutdown")

    def reboot(self) -> None:
        """vm.reboot: start the VM anew."""
        self._put("vm.reboot")

    def delete(self) -> None:
        """vm.delete: end the VM and forget its configuration."""
        self._put("vm.delete")

    def power_button(self) -> None:
        """vm.power-button: ask the guest to shut down."""
        self._put("vm.power-button")

    def nmi(self) -> None:
        """vm.nmi: send every vCPU a non-maskable interrupt."""
        self._put("vm.nmi")

    def resize(
        self, *, vcpus: int | None = None, ram: int | None = None, balloon: int | None = None
    ) -> None:
        """vm.resize: change the number of vCPUs, and sizes in bytes."""
        self._put(
            "vm.resize",
            VmResize(desired_vcpus=vcpus, desired_ram=ram, desired_balloon=balloon),
        )

    def resize_disk(self, disk_id: str, size: int) -> None:
        """vm.resize-disk: give a disk another size in bytes."""
        self._put("vm.resize-disk", VmResizeDisk(id=disk_id, desired_size=size))

    def add_disk(self, disk: DiskConfig) -> PciDeviceInfo | None:
        """vm.add-disk; before the boot there is no place yet, so the answer is ``None``."""
        return self._add("vm.add-disk", disk)

    def add_net(self, card: NetConfig, fds: Sequence[int] = ()) -> PciDeviceInfo | None:
        """vm.add-net; ``fds`` are the descriptors of a TAP and stay the caller's."""
        return self._add("vm.add-net", card, fds)

    def add_vsock(self, vsock: VsockConfig) -> PciDeviceInfo | None:
        """vm.add-vsock."""
        return self._add("vm.add-vsock", vsock)

    def remove_device(self, device_id: str) -> None:
        """vm.remove-device: ask for it; the guest may take its time."""
        self._put("vm.remove-device", VmRemoveDevice(id=device_id))

    def _wait_for_start(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ping()
            except ConnectionFailedError:
                if process.poll() is not None:
                    status = process.returncode
                    raise ConnectionFailedError(f"the program ended with {status}") from None
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _add(self, endpoint: str, device: Record, fds: Sequence[int] = ()) -> PciDeviceInfo | None:
        body = self._call("PUT", endpoint, encode(device), fds)
        return self._read(body, PciDeviceInfo) if body else None

    def _put(self, endpoint: str, body: Record | None = None) -> None:
        self._call("PUT", endpoint, None if body is None else encode(body))

    def _get(self, endpoint: str, kind: type[R]) -> R:
        return self._read(self._call("GET", endpoint), kind)

    def _read(self, body: bytes | None, kind: type[R]) -> R:
        try:
            return decode(body or b"", kind, keep_fds=True)
        except SchemaError as error:
            raise ConnectionFailedError(f"{self.path}: an answer that is none: {error}") from None

    def _call(
        self, method: str, endpoint: str, body: bytes | None = None, fds: Sequence[int] = ()
    ) -> bytes | None:
        return call(self.path, method, endpoint, body, fds, timeout_seconds=self._timeout_seconds)


def _counters(found: object) -> dict[str, dict[str, int]]:
    """Check what a server said of its devices.

    Raises:
        TypeError: it is something else.
    """
    devices = found if isinstance(found, dict) else {"": found}
    if not all(
        isinstance(counters, dict) and all(type(value) is int for value in counters.values())
        for counters in devices.values()
    ):
        raise TypeError("a number by name by device was expected")
    return cast("dict[str, dict[str, int]]", devices)
