# SPDX-License-Identifier: BSD-3-Clause
"""Download Debian packages as any user, with signatures checked, into the user's cache.

apt does it, with lists and packages of its own below ``$XDG_CACHE_HOME/crosvm-py``: nothing of the
host's apt is changed, and of its configuration only how to reach mirrors (``Acquire``) is taken.
"""

from __future__ import annotations

import fcntl
import os
import re
import time

from crosvm_py.guest.tools import run
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crosvm_py.guest.tools import Progress

MIRROR: Final = "http://deb.debian.org/debian"
SECURITY: Final = "http://deb.debian.org/debian-security"
SUITE: Final = "bookworm"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
ARCHITECTURE: Final = "amd64"
# Lists older than this are asked for again.
LISTS_SECONDS: Final = 24 * 3600

# Ask what would be installed, and where it comes from.
_INSTALL: Final = (*("apt-get", "-q", "-y", "--no-install-recommends", "--print-uris", "install"),)
_URI: Final = re.compile(r"'[^']*' (?P<file>[\w.+%~:-]+) (?P<size>\d+)(?: \S+)?")
_DEPENDS: Final = re.compile(r"^ *\|?Depends: (\S+)$", re.MULTILINE)


class Source(NamedTuple):
    """Where packages come from: a release of Debian, a mirror of it."""

    suite: str = SUITE
    mirror: str = MIRROR

    def lines(self) -> str:
        """Return the entries of a sources.list; security updates are only with Debian's mirror."""
        entry = f"deb [arch={ARCHITECTURE} signed-by={KEYRING}]"
        places = [f"{self.mirror} {self.suite}"]
        if self.mirror == MIRROR and self.suite not in ("sid", "unstable"):
            places += [f"{MIRROR} {self.suite}-updates", f"{SECURITY} {self.suite}-security"]
        return "".join(f"{entry} {place} main\n" for place in places)


def cache_folder() -> str:
    """Return our folder in the user's cache, after making it."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # an empty or relative one is to be ignored
        home = os.path.expanduser("~/.cache")
    folder = os.path.join(home, "crosvm-py")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError("guest make: cache folder", folder) from error
    return folder


class _File(NamedTuple):
    """A package's file, as apt names it."""

    name: str
    size_bytes: int


class Apt:
    """A private apt for one source. Two processes that use one wait for each other."""

    def __init__(self, source: Source, progress: Progress) -> None:
        name = re.sub(r"\W+", "-", f"{source.suite}-{source.mirror.partition('://')[2]}")
        self._home = os.path.join(cache_folder(), f"apt-{name}")
        self._progress = progress
        self.archives = os.path.join(self._home, "packages")
        self.sources = os.path.join(self._home, "sources.list")
        self._settings = os.path.join(self._home, "apt.conf")
        for folder in ("packages", "state/lists/partial", "cache/archives/partial", "preferences"):
            os.makedirs(os.path.join(self._home, folder), exist_ok=True)
        self._lock = os.open(
            os.path.join(self._home, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        )
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._write("sources.list", source.lines())
        self._write("status", "")
        self._write("apt.conf", "".join(self._configuration()))

    def close(self) -> None:
        """Let the next one in."""
        os.close(self._lock)

    def refresh(self) -> None:
        """Ask for the lists of packages, unless these are of today; old ones do if none come."""
        stamp = os.path.join(self._home, "refreshed")
        age_seconds = time.time() - os.stat(stamp).st_mtime if os.path.exists(stamp) else None
        if age_seconds is not None and 0 <= age_seconds < LISTS_SECONDS:
            return
        self._progress.say("downloading the lists of packages")
        try:
            self._run(["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], "lists")
        except HostError as error:
            if age_seconds is None:
                raise
            self._progress.say(f"{error}; going on with older lists")
            return
        self._write("refreshed", "")

    def resolve(self, package: str) -> str:
        """Return the real package that a meta package depends on first.

        Raises:
            HostError: apt knows no such package.
        """
        shown = self._run(["apt-cache", "depends", "--important", package], package)
        found = _DEPENDS.search(shown)
        if found is None:
            raise HostError("guest make:", f"apt knows no package behind {package}")
        return found[1]

    def download(self, packages: Sequence[str]) -> list[str]:
        """Return the paths of packages, after downloading those that are not here yet.

        Raises:
            HostError: apt cannot, or does not know one.
        """
        # Where a package is already, apt says nothing of it: ask in a folder without packages.
        asking = ["apt-get", "download", "--print-uris", *packages]
        files = self._asked(asking)
        unknown = [package for package in packages if package not in files]
        if unknown:
            names = " ".join(unknown)
            raise HostError("guest make: asking for packages:", f"apt says nothing of {names}")
        return self._fetched({package: files[package] for package in packages})

    def download_all(self, packages: Sequence[str]) -> list[str]:
        """Return the paths of packages and of all that they depend on, which are here then.

        Raises:
            HostError: apt cannot, or does not know one.
        """
        return self._fetched(self._asked([*_INSTALL, *packages]))

    def check(self, packages: Sequence[str]) -> None:
        """Make sure that packages exist and can be installed together.

        Raises:
            HostError: they cannot, with apt's reason.
        """
        if packages:
            self._run([*_INSTALL, *packages], " ".join(packages), self._home)

    def _asked(self, asking: list[str]) -> dict[str, _File]:
        """Return the file of each package that apt names in an answer."""
        shown = self._run(asking, "asking for packages", self._home)
        files = [_File(found["file"], int(found["size"])) for found in _URI.finditer(shown)]
        return {file.name.partition("_")[0]: file for file in files}

    def _fetched(self, files: Mapping[str, _File]) -> list[str]:
        missing = [name for name, file in files.items() if self._size(file.name) != file.size_bytes]
        if missing:
            size_mib = sum(files[name].size_bytes for name in missing) / (1 << 20)
            what = missing[0] if len(missing) == 1 else f"{len(missing)} packages"
            self._progress.say(f"downloading {what} ({size_mib:.1f} MiB)")
            self._run(["apt-get", "-q", "download", *missing], f"download of {what}")
        return [os.path.join(self.archives, file.name) for file in files.values()]

    def _size(self, file: str) -> int:
        try:
            return os.stat(os.path.join(self.archives, file)).st_size
        except FileNotFoundError:
            return -1

    def _configuration(self) -> Iterator[str]:
        for line in run(["apt-config", "dump"], "apt's configuration").splitlines():
            if line.startswith("Acquire::") and "IndexTargets" not in line:
                yield f"{line}\n"
        settings = {
            "Dir::State": "state",
            "Dir::State::status": "status",
            "Dir::Cache": "cache",
            "Dir::Etc::SourceList": "sources.list",
            "Dir::Etc::PreferencesParts": "preferences",
        }
        for name, file in settings.items():
            yield f'{name} "{os.path.join(self._home, file)}";\n'
        for name in ("SourceParts", "Main", "Parts", "Preferences"):
            yield f'Dir::Etc::{name} "/dev/null";\n'
        yield f'APT::Architecture "{ARCHITECTURE}";\n'
        yield f'APT::Architectures {{ "{ARCHITECTURE}"; }};\n'
        yield 'APT::Sandbox::User "";\nAcquire::Languages "none";\n'
        yield 'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";\n'

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(self._home, name)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.new", path)

    def _run(self, argv: list[str], what: str, folder: str | None = None) -> str:
        environment = {"APT_CONFIG": self._settings}
        return run(argv, what, cwd=folder or self.archives, environment=environment)
