# SPDX-License-Identifier: BSD-3-Clause
"""The world around the inmates: a vmm, its warden, a device of every kind, and what they aim at."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NamedTuple

import msgpack

from crosvm_py.kinds.order import DeviceOrder, pack_spec
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.socket_path import bind_control_socket
from devices.virtio.rng.device import RngSpec
from seccomp import load_policy
from seccomp.simulate import simulate
from seccomp.syscalls import get_constants, machine_arch
from sys_util.stranger import unpack_fields
from sys_util.wire import Message
from tests.breakout.attempt import KINDS
from tests.breakout.descriptors import FILE_BYTES, Orders
from tests.breakout.hands import SYSCALLS
from tests.breakout.inmate import EARLY, Attempts, Lie, Outcomes, Told, filters_left_out, taken_over
from tests.breakout.lies import LIES
from tests.breakout.table import ATTEMPTS
from tests.crosvm_py.device_rig import DeviceRig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crosvm_py.vmm.device_proxy import DeviceProcess

# One answer has 16 KiB.
_ATTEMPTS_PER_COMMAND: Final = 40
_LIARS_AT_ONCE: Final = 16
# Each of the floods may write 1,000 lines in 10 s; see crosvm_py/vmm/device_proxy.py.
_MAX_LINES: Final = 20_000


class Refusal(NamedTuple):
    """How a call was refused; ``error`` 0 is the filter's trap."""

    call: str
    number: int
    error: int
    words: tuple[int, ...]


class Prison:
    """A rig with an inmate of each kind."""

    def __init__(self, rig: DeviceRig, orders: Orders, world: World) -> None:
        self.rig = rig
        self._orders = orders
        self.sibling = rig.start(DeviceOrder("sibling", "rng", pack_spec(RngSpec()), (), 0))
        (self._queue,) = rig.activate(self.sibling)
        self._devices: dict[str, DeviceProcess] = {}
        self._world = world

    def spawn(self, kind: str, early_lie: int | None = None) -> DeviceProcess:
        """Make one more inmate, which may tell a lie before it is ready."""
        order = self._orders.order(kind)
        if early_lie is not None:
            order = order._replace(spec=EARLY + early_lie.to_bytes(2, "big") + order.spec)
        return self.rig.spawn(order)

    def device(self, kind: str) -> DeviceProcess:
        """Return the inmate of a kind that makes the attempts."""
        if kind not in self._devices:
            self._devices[kind] = self.spawn(kind)
            self.wait_ready([self._devices[kind]])
        return self._devices[kind]

    def wait_ready(self, devices: Sequence[DeviceProcess]) -> None:
        """Serve the loop until these are ready."""
        self.rig.until(lambda: all(device.status.ready for device in devices))

    def lie(self, kind: str, numbers: Sequence[int], *, times: int = 1) -> dict[int, str]:
        """Have a fresh inmate tell each lie; return for what the vmm ended it, "" where not.

        Or the call by which it was refused.
        """
        found: dict[int, str] = {}
        for first in range(0, len(numbers), _LIARS_AT_ONCE):
            chunk = numbers[first : first + _LIARS_AT_ONCE]
            liars = {n: self.spawn(kind, n if LIES[n].early else None) for n in chunk}
            self.wait_ready([liar for n, liar in liars.items() if not LIES[n].early])
            for number, liar in liars.items():
                found[number] = self._tell(liar, number, times)
            self.check_unharmed()
            del self.rig.lines[:]
        return found

    def _tell(self, liar: DeviceProcess, number: int, times: int) -> str:
        if LIES[number].early:
            self.rig.until(lambda: liar.death.status is not None and not liar.is_open)
            return liar.death.verdict
        answers: list[Message] = []
        liar.command(Lie(number, 1, times), answers.append)
        if LIES[number].repeated:
            while not answers:
                self.check_unharmed()
        self.rig.until(lambda: bool(answers))
        refusal = answers[0].refused if isinstance(answers[0], Told) else ""
        if LIES[number].ends and not refusal:
            self.rig.until(lambda: not liar.is_open)
            self.rig.until(lambda: liar.death.status is not None)
        liar.close()
        return refusal or liar.death.verdict

    def check_unharmed(self) -> None:
        """Fail unless the vmm, the warden and the sibling do what they always do.

        And the log has neither more than a bounded number of lines, nor a line that is none.
        """
        used, data = self._queue.request([], [64])
        assert used == 64
        assert any(data)
        assert os.waitid(os.P_PID, self.rig.warden.pid, os.WEXITED | os.WNOHANG) is None
        assert len(self.rig.lines) < _MAX_LINES
        assert all(line.isprintable() for line in self.rig.lines)

    def attempt(self, kind: str, numbers: Sequence[int]) -> dict[int, Refusal | None]:
        """Have the inmate of ``kind`` make attempts; return how each was refused, if it was.

        Raises:
            RuntimeError: it did not survive them.
        """
        found: dict[int, Refusal | None] = {}
        for first in range(0, len(numbers), _ATTEMPTS_PER_COMMAND):
            chunk = list(numbers[first : first + _ATTEMPTS_PER_COMMAND])
            answers = self._ask(kind, chunk)
            if len(answers) < len(chunk):
                death = self.device(kind).death
                raise RuntimeError(f"{kind}: {death.describe('')} {death.report}")
            for at, answer in answers.items():
                found[int(at)] = _refusal(answer)
        return found

    def attempt_alone(self, kind: str, number: int) -> int | Refusal | None:
        """Have a fresh inmate make an attempt that may end it; return its exit status then.

        If it survived, how the attempt was refused, if it was.
        """
        inmate = self.spawn(kind)
        self.wait_ready([inmate])
        before, self._devices[kind] = self._devices[kind], inmate
        answers = self._ask(kind, [number])
        self._devices[kind] = before
        if answers:
            inmate.close()
            return _refusal(answers[str(number)])
        self.rig.until(lambda: inmate.death.status is not None)
        return inmate.death.status

    def _ask(self, kind: str, numbers: list[int]) -> dict[str, object]:
        device = self.device(kind)
        results: list[Message] = []
        world = msgpack.packb(self._world.fields(self, kind))
        device.command(Attempts(tuple(numbers), world), results.append)
        self.rig.until(lambda: bool(results))
        (answer,) = results
        return unpack_fields(answer.packed) if isinstance(answer, Outcomes) else {}


class World:
    """What is outside and must stay out of reach: listening sockets of every sort."""

    def __init__(self, folder: Path, sweep_step: int) -> None:
        self._folder = folder
        self._sweep_step = sweep_step
        self._abstract = f"crosvm-breakout-{os.getpid()}".encode()
        self._beside = str(folder / "beside").encode()
        self._sockets = [
            self._listen(socket.AF_UNIX, b"\0" + self._abstract),
            self._listen(socket.AF_UNIX, self._beside),
            self._listen(socket.AF_INET, ("127.0.0.1", 0)),
        ]
        control = bind_control_socket(str(folder / "control"))
        self._control = control.path.encode()
        self._sockets.append(control.sock)
        self._port: int = self._sockets[2].getsockname()[1]

    @staticmethod
    def _listen(family: int, address: object) -> socket.socket:
        sock = socket.socket(family)
        sock.bind(address)  # type: ignore[arg-type]  # each family has its own
        sock.listen()
        return sock

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def fields(self, prison: Prison, kind: str) -> dict[str, object]:
        """Return what an inmate is told, as far as it can be told by a message."""
        return {
            "vmm": os.getpid(),
            "warden": prison.rig.warden.pid,
            "sibling": prison.sibling.pid,
            "abstract": self._abstract,
            "beside": self._beside,
            "control": self._control,
            "port": self._port,
            "file_bytes": FILE_BYTES,
            "allowed_ioctls": allowed_ioctls(DEVICE_KINDS[kind].policy_name),
            "sweep_step": self._sweep_step,
        }


@cache
def allowed_ioctls(policy_name: str) -> list[int]:
    """Return the requests that a policy lets pass: they are the device's business, no attempt."""
    bpf, number = load_policy(policy_name).bpf, SYSCALLS["ioctl"]
    requests = {value for value in get_constants(machine_arch()).values() if value > 0}
    return sorted(
        request for request in requests if simulate(bpf, number, [0, request]).kind == "allow"
    )


@contextmanager
def prison(
    kinds: Sequence[str] = KINDS,
    *,
    filters: bool = True,
    jail: bool = True,
    sweep_step: int = 1,
    thread: bool = False,
) -> Iterator[Prison]:
    """Make a prison: without ``filters`` only they are left out, without ``jail`` all of it.

    With ``thread`` the attempts are those of a thread; see ``taken_over``.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="crosvm-breakout-")))
        folder.chmod(0o711)  # the vsock device finds its directory as the user who owns that
        world = World(folder, sweep_step)
        stack.callback(world.close)
        orders = Orders(folder)
        stack.callback(orders.close)
        stack.enter_context(taken_over(kinds, orders.stand_ins, thread=thread))
        if not filters:
            stack.enter_context(filters_left_out())
        rig = stack.enter_context(DeviceRig(sandbox=jail))
        yield Prison(rig, orders, world)


def _refusal(answer: object) -> Refusal | None:
    if not isinstance(answer, list):
        raise ValueError(f"no outcome: {answer!r}")
    if answer == ["out"]:
        return None
    call, number, error, words = answer
    return Refusal(str(call), int(number), int(error), tuple(words))


def numbers_for(kind: str, *, alone: bool) -> list[int]:
    """Return which attempts a device of ``kind`` makes, in one process or each in its own."""
    return [
        at for at, attempt in enumerate(ATTEMPTS) if attempt.is_for(kind) and attempt.alone == alone
    ]
