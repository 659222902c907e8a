# SPDX-License-Identifier: BSD-3-Clause
"""Start QEMU for the test host, and ask it to save its state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.guests.cache import BuildError, run
from tests.kvmhost import mended
from tests.kvmhost.protocol import PORT_PREFIX, PORTS

if TYPE_CHECKING:
    from tests.kvmhost.image import Image

CPU: Final = "EPYC,+svm,+npt"
MEMORY_MIB: Final = 4096
MONITOR: Final = "monitor"
PID_FILE: Final = "pid"
ALIVE: Final = "alive"  # QEMU holds a lock on it as long as it lives, and nobody after it
CONSOLE: Final = "console.log"
ERRORS: Final = "qemu.log"
SCRATCH: Final = "scratch.ext4"
STATE: Final = "state.bin"
SAVE_SECONDS: Final = 120.0
START_SECONDS: Final = 60.0
# One that stays is ended after this even if nobody takes it down.
STAY_LIMIT: Final = "12h"
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check cryptomgr.notests"
    " quiet loglevel=3"
)


def version() -> str:
    """Return QEMU's version line; a snapshot is good for one version only."""
    return run("QEMU's version", [mended.BINARY, "--version"]).splitlines()[0]


def command(image: Image) -> list[str]:
    """Return the command line, with paths of sockets and logs relative to the state folder."""
    words = [
        *(mended.binary(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512"),
        *("-cpu", CPU, "-smp", "1", "-m", str(MEMORY_MIB)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL_ARGUMENTS),
        *("-chardev", f"file,id=console,path={CONSOLE}", "-serial", "chardev:console"),
        *("-qmp", f"unix:{MONITOR},server=on,wait=off", "-pidfile", PID_FILE),
        *("-device", f"virtio-serial-pci,max_ports={PORTS + 1}"),
    ]
    for name, file, options in (
        ("system", image.system, "readonly=on"),
        ("guests", image.guests, "readonly=on"),
        ("scratch", SCRATCH, "cache=unsafe,discard=unmap"),
    ):
        drive = f"if=none,id={name},file={_escaped(file)},format=raw,{options}"
        words += ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]
    for number in range(PORTS):
        words += ["-chardev", f"socket,id=port{number},path={port(number)},server=on,wait=off"]
        device = f"virtserialport,chardev=port{number},name={PORT_PREFIX}{number},nr={number + 1}"
        words += ["-device", device]
    return words


def _escaped(value: object) -> str:
    return str(value).replace(",", ",,")


def port(number: int) -> str:
    """Return the name of a port's socket in the state folder."""
    return f"port.{number}"


def start(
    image: Image, state: Path, snapshot: Path | None, *, stay: bool
) -> subprocess.Popen[bytes]:
    """Start QEMU in ``state``, from a snapshot if there is one.

    Unless it shall ``stay``, the kernel kills it when the calling thread ends, however it ends.
    """
    source = snapshot / SCRATCH if snapshot else image.scratch
    run("copy the scratch disk", ["cp", "--sparse=always", source, state / SCRATCH])
    words = ["timeout", "--signal=KILL", STAY_LIMIT] if stay else ["setpriv", "--pdeathsig=KILL"]
    words += command(image)
    if snapshot:
        words += ["-incoming", f"exec:cat {shlex.quote(str(snapshot / STATE))}"]
    if not shutil.which(mended.BINARY):
        raise BuildError(f"{mended.BINARY} is not installed (tests/setup.sh does it)")
    alive = os.open(state / ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(alive, fcntl.LOCK_EX)
        with (state / ERRORS).open("wb") as errors:
            return subprocess.Popen(
                words,
                cwd=state,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                pass_fds=[alive],
            )
    finally:
        os.close(alive)


def is_alive(state: Path) -> bool:
    """Say whether a QEMU of this state folder runs, or may be about to."""
    try:
        alive = os.open(state / ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - state.stat().st_mtime < START_SECONDS
        return False
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(alive)
    return False


def connect(state: Path, name: str) -> socket.socket:
    """Connect to a socket in the state folder, however long the folder's path is.

    Raises:
        OSError: nobody listens there (yet).
    """
    folder = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        found = socket.socket(socket.AF_UNIX)
        try:
            found.connect(f"/proc/self/fd/{folder}/{name}")
        except OSError:
            found.close()
            raise
        return found
    finally:
        os.close(folder)


def save(state: Path) -> None:
    """Write the running machine's state to ``state.bin`` in the state folder, and stop it.

    Raises:
        BuildError: QEMU refused or took too long.
    """
    deadline = time.monotonic() + SAVE_SECONDS
    with connect(state, MONITOR) as monitor, monitor.makefile("rw") as stream:

        def ask(name: str, **arguments: object) -> dict[str, object]:
            stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            stream.flush()
            while True:
                answer: dict[str, object] = json.loads(stream.readline())
                if "error" in answer:
                    raise BuildError(f"QEMU: {name}: {answer['error']}")
                if "return" in answer:
                    found = answer["return"]
                    return found if isinstance(found, dict) else {}

        stream.readline()
        ask("qmp_capabilities")
        ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        ask("migrate", uri=f"exec:cat > {STATE}")
        while (status := ask("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise BuildError(f"QEMU: saving the state: {status}")
            time.sleep(0.05)
        ask("quit")


def kill(state: Path) -> None:
    """Kill the QEMU of a state folder, if it still runs."""
    try:
        number = int((state / PID_FILE).read_text())
        arguments = Path(f"/proc/{number}/cmdline").read_bytes()
        if mended.BINARY.encode() in arguments and os.path.samefile(f"/proc/{number}/cwd", state):
            os.kill(number, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return
