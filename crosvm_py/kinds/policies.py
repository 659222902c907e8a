# SPDX-License-Identifier: BSD-3-Clause
"""Every seccomp filter of a run, compiled before the warden is forked."""

from __future__ import annotations

from crosvm_py.kinds.later import LATER_KINDS
from crosvm_py.kinds.table import DEVICE_KINDS, policies_of
from seccomp import Policy, keep_policy, load_policy
from seccomp.syscalls import machine_arch
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

# By whether the guest's memory can change its size, and whether a reset boots the guest again.
_MAIN: Final = {
    (False, False): "vmm",
    (True, False): "vmm_memory",
    (False, True): "vmm_reboot",
    (True, True): "vmm_memory_reboot",
}
_VCPU: Final = "vcpu"
# Children inherit the warden's filter, so its policy allows what theirs allow. There are two of it:
# for runs without and with a broker; a run with a control process may get one.
_WARDENS: Final = ("warden", "warden_vsock")
# Once the guest runs, the warden makes no processes itself, and loads this as well.
_SEALED: Final = "warden_sealed"
_FORGE: Final = "forge"
# For clients of the control socket alone, and with a REST API.
CONTROL: Final = "control"
CONTROL_API: Final = "control_api"
_OPENER: Final = "opener"


class Recorded(NamedTuple):
    """Which policies are recorded in a run, and the socket of the recorder.

    The vmm, the warden and, until they have loaded their filters, the devices hold the socket. With
    ``every`` it is no error if some of the ``names`` do not occur in the run.
    """

    names: frozenset[str]
    fd: int
    every: bool = False


class RunPolicies(NamedTuple):
    """The filters of one run; ``devices`` has those of devices and brokers, by policy name.

    The warden loads ``warden`` first, and ``sealed`` as well before the guest runs.
    ``control`` and ``opener`` are ``None`` if the run has no control process.
    """

    devices: dict[str, Policy]
    warden: Policy
    sealed: Policy
    forge: Policy
    main: Policy
    vcpu: Policy
    control: Policy | None = None
    opener: Policy | None = None


def load_run_policies(
    kinds: Collection[str],
    *,
    directory: str | None = None,
    log_failures: bool = False,
    recorded: Recorded | None = None,
    control: str | None = None,
    grows: bool = False,
    reboots: bool = False,
) -> RunPolicies:
    """Return the filters of a run with devices of these ``kinds``.

    ``control`` is the policy of its control process, if it has one. If the guest's memory
    ``grows``, the vmm may change it. ``reboots``: a reset boots the guest again.

    If there is one, devices of ``LATER_KINDS`` may be plugged in, so their filters are needed too.

    Raises:
        PolicyError: one is missing or wrong.
        ConfigError: a policy that is to be recorded does not occur in the run.
    """
    kinds = kinds if control is None else {*kinds, *LATER_KINDS}
    names = policies_of(kinds)
    main = _MAIN[grows, reboots]
    if recorded is not None:
        missing = recorded.names - {*names, main, _VCPU}
        if missing and not recorded.every:
            named = ", ".join(sorted(missing))
            raise ConfigError(f"policy record: nothing in this run has the policy {named}")

    def load(name: str) -> Policy:
        if recorded is not None and name in recorded.names:
            return _recording(name, recorded)
        return load_policy(name, directory=directory, log_failures=log_failures)

    def load_outer(name: str) -> Policy:
        # Recorded processes run under this filter as well, so it must deny nothing.
        return load_policy(
            name, directory=directory, log_failures=log_failures or recorded is not None
        )

    warden = _WARDENS[any(DEVICE_KINDS[kind].broker is not None for kind in kinds)]
    return RunPolicies(
        {name: load(name) for name in names},
        load_outer(warden),
        load_policy(_SEALED, directory=directory, log_failures=log_failures),
        load_outer(_FORGE),
        load(main),
        load(_VCPU),
        None if control is None else load(control),
        None if control is None else load(_OPENER),
    )


def load_spare_policies() -> tuple[RunPolicies, Policy]:
    """Return the filters for a warden that does not know its run, and its tighter filter.

    Its first filter is that of a run with a broker. It has to load the tighter one as well if the
    run turns out to have no need of one.

    Raises:
        PolicyError: one is missing or wrong.
    """
    return load_run_policies(DEVICE_KINDS, control=CONTROL), load_policy(_WARDENS[0])


def keep_run_policies() -> None:
    """Load every filter that a run may need, so that it need not be read again.

    Raises:
        PolicyError: one is missing or wrong.
    """
    for name in (*policies_of(DEVICE_KINDS), *_WARDENS, _FORGE, *_MAIN.values(), _VCPU):
        keep_policy(name)


def _recording(name: str, recorded: Recorded) -> Policy:
    """Return a filter that asks the recorder about each system call."""
    from seccomp.record import recording_filter

    arch = machine_arch()
    return Policy(name, "", recording_filter(arch), arch, recorded.fd)
