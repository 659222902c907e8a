# SPDX-License-Identifier: BSD-3-Clause
"""The VM behind the API: its configuration, and the requests to the vmm."""

from __future__ import annotations

import json

from crosvm_py.api.device_ids import ids_by_name, with_ids
from crosvm_py.api.errors import ApiError
from crosvm_py.api.steps import expect
from crosvm_py.requests.plug import Confine
from crosvm_py.requests.protocol import Done
from crosvm_py.requests.vm import RUNNING, SUSPENDED, WAITING, QueryVm, VmFacts
from crosvm_py.vm_config import json_text
from crosvm_py.vm_config.codec import decode, encode
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import VmState
from crosvm_py.vm_config.landlock import landlock_problems, landlock_rules
from crosvm_py.vm_config.schema import VmConfig
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from crosvm_py.api.store import Store
    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.protocol import Request, Response

A = TypeVar("A", bound="Response")


class Ask(Protocol):
    """Passes a request on to the vmm, with descriptors, which stay the caller's."""

    def __call__(self, request: Request, fds: Sequence[int] = ()) -> Pending:
        """Return where the answer will be."""


_STATES: Final[dict[str, VmState]] = {RUNNING: "Running", SUSPENDED: "Paused"}

_log = get_logger("crosvm.control")


class ApiVm:
    """One VM, or none yet.

    ``ask`` passes a request on to the vmm, whose process id is ``pid``. ``store`` keeps the
    configuration when this process ends before the vmm.
    """

    def __init__(self, ask: Ask, store: Store, pid: int) -> None:
        self.ask = ask
        self.pid = pid
        self.is_booting = False  # the vmm answers nothing meanwhile
        self._store = store
        self.config: VmConfig | None = None
        # The configuration that the VM has: another one than ``config`` if clients have changed
        # that while the VM is shut down.
        self.held: VmConfig | None = None
        # The ids of devices, by the names that the vmm has for them.
        self.names: dict[str, str] = {}
        text, names, held = (*store.load().split(b"\n"), b"", b"")[:3]
        if text:
            try:
                self.config = config = with_ids(decode(text, VmConfig, keep_fds=True))
                self.held = decode(held, VmConfig, keep_fds=True) if held else config
                self.names = _read_names(names) or ids_by_name(config)
            except SchemaError as error:
                _log.error("the configuration is lost: %s", error)

    def keep(
        self,
        config: VmConfig | None,
        names: dict[str, str] | None = None,
        *,
        held: VmConfig | None = None,
    ) -> None:
        """Take a new configuration, or none; the names of devices stay unless there are new ones.

        ``held`` is the one that the VM has, if that is another. The first line in the store is the
        configuration, the second has the names, and the third ``held``, if it is another.
        """
        self.config = config
        self.held = config if held is None else held
        if names is not None:
            self.names = names
        if config is None:
            self.names = {}
            self._store.save(b"")
        else:
            lines = [encode(config), json.dumps(self.names).encode("ascii")]
            if self.held not in (None, config):
                lines.append(encode(self.held))
            self._store.save(b"\n".join(lines))

    def demand(
        self, request: Request, kind: type[A], fds: tuple[int, ...] = ()
    ) -> Generator[Pending, Response, A]:
        """Ask the vmm and return its answer; ``fds`` go with the request.

        Raises:
            ApiError: the vmm refuses.
        """
        answer = expect((yield self.ask(request, fds)))
        if not isinstance(answer, kind):
            raise ApiError(500, "the VM answers another question")
        return answer

    def confine(self, config: VmConfig) -> Generator[Pending, Response, None]:
        """Have the opener keep to the rules of a configuration, if it has any.

        Raises:
            ApiError: there is something wrong with them.
        """
        rules = landlock_rules(config)
        if rules is None:
            return
        for problem in landlock_problems(config):
            raise ApiError(400, problem.message())
        yield from self.demand(Confine(rules), Done)

    def facts(self) -> Generator[Pending, Response, VmFacts]:
        """Ask for the state of the VM."""
        if self.is_booting:
            return VmFacts(WAITING, 0, 0)
        return (yield from self.demand(QueryVm(), VmFacts))

    def known(self) -> VmConfig:
        """Return the configuration.

        Raises:
            ApiError: there is none.
        """
        if self.config is None:
            raise ApiError(404, "VM is not created")
        return self.config

    def booted(self) -> Generator[Pending, Response, VmFacts]:
        """Return the state of a VM that runs or is paused.

        Raises:
            ApiError: it does neither.
        """
        facts = yield from self.facts()
        if facts.state not in _STATES:
            raise ApiError(500, "VM is not running")
        return facts

    @staticmethod
    def state_of(facts: VmFacts) -> VmState:
        """Return the state as the API calls it; there is a configuration."""
        return _STATES.get(facts.state, "Created")


def _read_names(text: bytes) -> dict[str, str]:
    """Return the names that ``keep`` stored, or none."""
    try:
        found = json_text.parse(text or b"{}")
    except SchemaError:
        return {}
    return {str(name): str(each) for name, each in found.items()} if type(found) is dict else {}
