# SPDX-License-Identifier: BSD-3-Clause
"""The errors of this project. Their class says who is to blame, which decides what happens next."""

from __future__ import annotations

import errno

from sys_util.typing import Final, NoReturn

NO_MORE_PROCESSES: Final = "no more processes? see ulimit -u and pids.max of the cgroup"

# The likely cause of EPERM and ENOSYS from a call that should work: a container's seccomp profile.
_FILTERED: Final = "what filters system calls here may deny this one"

# What the user can do about an error whose number alone says what is missing.
_REMEDIES: Final = {
    errno.EMFILE: "ulimit -n raises the limit on open files",
    errno.ENFILE: "sysctl fs.file-max raises the limit on open files",
    errno.ENOMEM: "memory is short, or ulimit -v or the cgroup's memory.max allows no more",
    errno.EFBIG: "ulimit -f raises the limit on the size of files",
    errno.ENOSYS: f"the kernel is too old, or {_FILTERED}",
}


class VmmError(Exception):
    """The base class of the errors that this project raises on purpose."""


class ConfigError(VmmError):
    """The user asked for something impossible. Raised before there is a VM; exit status 1."""


class UsageError(ConfigError):
    """The command line itself cannot be parsed; exit status 35, as crosvm."""


class HostError(VmmError):
    """The host refused an operation. Raised ``from`` the OSError that caused it.

    ``hint`` says what the user can do about it, where we know.
    """

    def __init__(self, operation: str, target: str, hint: str = "") -> None:
        super().__init__(f"{operation} {target}" + (f" ({hint})" if hint else ""))
        self.operation = operation
        self.target = target
        self.hint = hint


class GuestError(VmmError):
    """The guest broke a rule. Never leaves the process that serves the guest."""


class GuestAddressError(GuestError):
    """``length`` bytes at guest-physical ``address`` are not all inside guest memory."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"no guest memory at {address:#x}+{length:#x}")
        self.address = address
        self.length = length


class ProtocolError(VmmError):
    """A peer process or a control client sent something that it must not send."""


class ChannelClosed(Exception):  # noqa: N818 - the peer's orderly end, not an error
    """The other side of a channel has gone."""


class ChannelFull(ProtocolError):  # noqa: N818 - no error where the peer is only slow
    """The other side of a channel does not read what it is sent."""


def describe(error: BaseException) -> str:
    """Return one line for people: the error, the operating system's reason and the remedy."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        remedy = "" if getattr(error, "hint", "") else remedy_for(cause)
        return f"{error}: {cause.strerror}{remedy}"
    return str(error)


def remedy_for(error: OSError) -> str:
    """Return what to do about an error, in brackets, or nothing if its number does not say."""
    remedy = _REMEDIES.get(error.errno or 0, "")
    return f" ({remedy})" if remedy else ""


# With these numbers any call can fail, because the host lacks or refuses something.
_HOSTS_FAULTS: Final = frozenset(
    {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSYS, errno.EPERM}
)


def is_hosts_fault(error: OSError) -> bool:
    """Return whether an unexpected error is due to the host, and not to a bug of ours."""
    return error.errno in _HOSTS_FAULTS


def refused_call(error: OSError) -> str:
    """Return what was tried when the host refused something that nobody expected it to refuse."""
    trace = error.__traceback__
    if trace is None:
        return "the host refuses a system call"
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    file = "/".join(code.co_filename.split("/")[-2:])
    of_what = f", {error.filename}" if isinstance(error.filename, str) else ""
    return f"the host refuses a system call ({code.co_qualname} of {file}{of_what})"


class Refusable:
    """A ``with`` statement that turns an ``OSError`` of its body into a ``HostError``."""

    def __init__(self, operation: str, target: str, *, forks: bool = False) -> None:
        """Remember what is tried. ``forks``: EAGAIN means that the limit of processes is reached.

        ``operation`` and ``target`` are those of ``HostError``.
        """
        self._operation = operation
        self._target = target
        self._hints = {errno.EPERM: _FILTERED}
        if forks:
            self._hints[errno.EAGAIN] = NO_MORE_PROCESSES

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        """Raise ``HostError`` if the body raised ``OSError``."""
        if isinstance(error, OSError):
            hint = self._hints.get(error.errno or 0, "")
            raise HostError(self._operation, self._target, hint) from error


def raise_host_error(operation: str, target: str, error: OSError, hint: str = "") -> NoReturn:
    """Raise ``HostError`` from ``error``."""
    raise HostError(operation, target, hint) from error
