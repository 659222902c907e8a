# SPDX-License-Identifier: BSD-3-Clause
"""Requests about the life of a VM; each is answered with ``Done``."""

from __future__ import annotations

from crosvm_py.requests.protocol import Done
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sys_util.wire import Check, Message


@fact
class Stop:
    """End the VM at once. ``Done`` comes first; the connection is closed when the VM has ended."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done


@fact
class Reboot:
    """Reset the machine and boot the guest again; ``Done`` means that it runs."""

    TYPE: ClassVar[int] = 48
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done


@fact
class Suspend:
    """Pause all vCPUs. ``Done`` means that none runs guest code any more."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done


@fact
class Resume:
    """Let the vCPUs of a suspended VM run."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done


@fact
class PowerButton:
    """Press the ACPI power button; the guest decides what to do."""

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done
