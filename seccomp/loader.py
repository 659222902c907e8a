# SPDX-License-Identifier: BSD-3-Clause
"""Find the BPF program for the name of a policy, in the cache or by compiling it.

If the cache has the program, we read only the policy's files and the cache entry: we parse nothing,
and import neither the parser nor libseccomp.
"""

from __future__ import annotations

import os

from seccomp import cache
from seccomp.errors import PolicyError
from seccomp.sources import read_sources
from seccomp.syscalls import machine_arch
from sys_util.errors import NO_MORE_PROCESSES, HostError, remedy_for
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from seccomp.rules import PolicyTree, Rule


class Policy(NamedTuple):
    """A compiled policy: its name, the file that it came from, the program for seccomp(2).

    ``recorder`` is the socket to which the listener of a recording filter is sent (record.py).
    ``log_failures``: calls that the policy would deny are allowed and logged.
    """

    name: str
    path: str
    bpf: bytes
    arch: str = machine_arch()
    recorder: int | None = None
    log_failures: bool = False


def policy_path(name: str, directory: str | None = None, arch: str | None = None) -> str:
    """Return the path of a policy: in ``directory``, or among those that are part of this package.

    Raises:
        PolicyError: the name could refer to a file in another folder.
    """
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise PolicyError(f"{name!r} is no policy name")
    if directory is None:
        folder = os.path.dirname(os.path.abspath(__file__))
        directory = os.path.join(folder, arch or machine_arch())
    return os.path.join(directory, f"{name}.policy")


_kept: dict[str, Policy] = {}


def keep_policy(name: str) -> None:
    """Load one of the program's own policies now; every later ``load_policy`` returns that.

    Raises:
        PolicyError: the file is missing or wrong.
    """
    _kept[name] = load_policy(name)


def load_policy(
    name: str,
    *,
    directory: str | None = None,
    arch: str | None = None,
    log_failures: bool = False,
) -> Policy:
    """Return the compiled policy; ``arch`` defaults to this machine's.

    ``log_failures`` allows and logs calls that the policy would deny, except where the policy says
    ``return ERRNO``.

    Raises:
        PolicyError: the file is missing or wrong.
    """
    if name in _kept and directory is None and arch is None and not log_failures:
        return _kept[name]
    arch = arch or machine_arch()
    path = policy_path(name, directory, arch)
    sources = read_sources(path)
    key = cache.cache_key(sources, f"{arch} {'log' if log_failures else 'deny'}")
    bpf = cache.load(key)
    if bpf is None:
        bpf = _compile(sources, arch, log_failures=log_failures)
        cache.store(key, bpf, _library())
    return Policy(name, path, bpf, arch, log_failures=log_failures)


def _compile(sources: dict[str, bytes], arch_name: str, *, log_failures: bool) -> bytes:
    from seccomp.parser import parse
    from seccomp.syscalls import get_arch

    arch = get_arch(arch_name)
    tree = parse(sources, arch.name, arch.syscalls)
    try:
        from seccomp.compiler import compile_tree
    except (ImportError, RuntimeError, OSError) as error:  # pyseccomp raises RuntimeError
        hint = f"install libseccomp2, or let ldconfig run, which finds it: {NO_MORE_PROCESSES}"
        raise PolicyError(f"libseccomp cannot be used: {error} ({hint})") from error
    try:
        return compile_tree(tree, arch, log_failures=log_failures)
    except OSError as error:
        remedy = remedy_for(error) or " (is seccomp(2) denied here, or /tmp full?)"
        raise PolicyError(f"libseccomp cannot compile policies: {error.strerror}{remedy}") from None
    except PolicyError as error:
        raise PolicyError(f"{next(iter(sources))}: {error}") from error


def _library() -> cache.LibraryStamp | None:
    from seccomp.compiler import libseccomp_path

    try:
        return cache.LibraryStamp.of(libseccomp_path())
    except OSError as error:
        raise HostError("read", "/proc/self/maps", "mount a proc(5) at /proc") from error


def parse_policy(path: str, arch: str | None = None) -> PolicyTree:
    """Parse a policy file without compiling it.

    Raises:
        PolicyError: the file is missing or wrong.
    """
    from seccomp.parser import parse
    from seccomp.syscalls import get_arch

    known = get_arch(arch or machine_arch())
    return parse(read_sources(path), known.name, known.syscalls)


def describe(policy: Policy) -> list[tuple[str, str]]:
    """Return each system call that the policy mentions and the text of its rule, by name."""
    rules = parse_policy(policy.path, policy.arch).rules.values()
    return sorted((rule.name, rule.text) for rule in rules)


def count(policy: Policy) -> int:
    """Return how many system calls the policy allows, with any or only some arguments."""
    rules = parse_policy(policy.path, policy.arch).rules.values()
    return sum(1 for rule in rules if _allows_some(rule))


def _allows_some(rule: Rule) -> bool:
    return bool(rule.allow)
