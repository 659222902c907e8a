# SPDX-License-Identifier: BSD-3-Clause
"""Download Debian packages as an ordinary user, with signatures checked, into the user's cache.

We run apt with its lists and packages below ``$XDG_CACHE_HOME/crosvm-py``. It does not change the
host's apt, and uses only the part of its configuration that says how to reach mirrors
(``Acquire``).
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
# Lists older than this are downloaded again.
LISTS_SECONDS: Final = 24 * 3600

# Print which packages would be installed, and their addresses.
_INSTALL: Final = (*("apt-get", "-q", "-y", "--no-install-recommends", "--print-uris", "install"),)
_URI: Final = re.compile(r"'[^']*' (?P<file>[\w.+%~:-]+) (?P<size>\d+)(?: \S+)?")
_DEPENDS: Final = re.compile(r"^ *\|?Depends: (\S+)$", re.MULTILINE)


class Source(NamedTuple):
    """Where packages come from: a release of Debian and a mirror."""

    suite: str = SUITE
    mirror: str = MIRROR

    def lines(self) -> str:
        """Return the lines of a sources.list, with updates if the mirror is Debian's own."""
        entry = f"deb [arch={ARCHITECTURE} signed-by={KEYRING}]"
        places = [f"{self.mirror} {self.suite}"]
        if self.mirror == MIRROR and self.suite not in ("sid", "unstable"):
            places += [f"{MIRROR} {self.suite}-updates", f"{SECURITY} {self.suite}-security"]
        return "".join(f"{entry} {place} main\n" for place in places)


def cache_folder() -> str:
    """Make our folder in the user's cache, if needed, and return its path."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # the XDG specification says to ignore an empty or relative one
        home = os.path.expanduser("~/.cache")
    folder = os.path.join(home, "crosvm-py")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError("guest make: cache folder", folder) from error
    return folder


class _File(NamedTuple):
    """The file of a package, with the name that apt gives it."""

    name: str
    size_bytes: int


class Apt:
    """A private apt for one source. A second process that uses the same one has to wait."""

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
        """Release the lock, so that another process can use this apt."""
        os.close(self._lock)

    def refresh(self) -> None:
        """Download the lists of packages if they are old; if that fails, keep the old ones."""
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
        """Return the first package that a meta package depends on.

        Raises:
            HostError: apt does not know such a package.
        """
        shown = self._run(["apt-cache", "depends", "--important", package], package)
        found = _DEPENDS.search(shown)
        if found is None:
            raise HostError("guest make:", f"apt knows no package behind {package}")
        return found[1]

    def download(self, packages: Sequence[str]) -> list[str]:
        """Download the packages that are not in the cache yet; return the paths of all.

        Raises:
            HostError: apt fails, or does not know one of them.
        """
        # apt does not list a package that is in the working directory, so use another directory.
        asking = ["apt-get", "download", "--print-uris", *packages]
        files = self._asked(asking)
        unknown = [package for package in packages if package not in files]
        if unknown:
            names = " ".join(unknown)
            raise HostError("guest make: asking for packages:", f"apt says nothing of {names}")
        return self._fetched({package: files[package] for package in packages})

    def download_all(self, packages: Sequence[str]) -> list[str]:
        """Download packages with all that they depend on; return the paths of all.

        Raises:
            HostError: apt fails, or does not know one of them.
        """
        return self._fetched(self._asked([*_INSTALL, *packages]))

    def check(self, packages: Sequence[str]) -> None:
        """Check that packages exist and can be installed together.

        Raises:
            HostError: they cannot; it contains apt's reason.
        """
        if packages:
            self._run([*_INSTALL, *packages], " ".join(packages), self._home)

    def _asked(self, asking: list[str]) -> dict[str, _File]:
        """Run an apt command that prints addresses; return the file of each package in them."""
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
