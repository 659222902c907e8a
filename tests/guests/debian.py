# SPDX-License-Identifier: BSD-3-Clause
"""Take things out of Debian packages, through apt as this machine has it configured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.guests.cache import CACHE, BuildError, need_root, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SUITE: Final = "bookworm"
SOURCES: Final = Path("/etc/apt")
NO_DOCUMENTS: Final = ("man", "doc", "info", "locale", "lintian", "bash-completion")


def package_list(text: str) -> list[str]:
    """Return the names in a file with one package a line and ``#`` comments."""
    return [word for line in text.splitlines() for word in line.partition("#")[0].split()]


def suite_sources(texts: Iterable[str]) -> str:
    """Return, as one-line entries, the apt sources that serve our suite.

    A machine may have others besides (vendors' repositories), which must not end up in an image.
    """
    entries: list[str] = []
    for text in texts:
        if "URIs:" in text:
            for stanza in text.split("\n\n"):
                entries += _stanza_entries(stanza)
        else:
            entries += [
                line
                for line in text.splitlines()
                if line.startswith("deb ") and f" {SUITE}" in line
            ]
    return "".join(f"{line}\n" for line in entries)


def _stanza_entries(stanza: str) -> list[str]:
    fields: dict[str, str] = {}
    for line in stanza.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.startswith(("#", " ")):
            fields[name.strip().lower()] = value.strip()
    suites = [word for word in fields.get("suites", "").split() if word.startswith(SUITE)]
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
        return []
    signed = fields.get("signed-by", "")
    option = f"[signed-by={signed}] " if signed else ""
    return [
        f"deb {option}{uri} {suite} {fields.get('components', 'main')}"
        for uri in fields.get("uris", "").split()
        for suite in suites
    ]


def machine_sources(suite: str) -> str:
    """Return the apt sources of this machine's mirrors for a suite, ours or another.

    Raises:
        BuildError: this machine has none for our own.
    """
    parts = (*SOURCES.glob("sources.list.d/*.sources"), *SOURCES.glob("sources.list.d/*.list"))
    found = suite_sources(
        path.read_text() for path in (SOURCES / "sources.list", *sorted(parts)) if path.is_file()
    )
    if not found:
        raise BuildError(f"no apt source of Debian {SUITE} under {SOURCES}")
    return found.replace(f" {SUITE}", f" {suite}")


def tree(
    target: Path,
    packages: Sequence[str],
    suite: str = SUITE,
    hooks: Sequence[str] = (),
    foreign: str = "",
) -> None:
    """Unpack and configure a minimal Debian with ``packages`` into ``target``.

    Another ``suite`` comes from the same mirrors; ``hooks`` are shell commands that may still use
    apt in the tree, ``$1``. A ``foreign`` architecture's packages are unpacked only.
    """
    need_root("a Debian tree")
    sources = target.with_suffix(".list")
    sources.write_text(machine_sources(suite))
    run(
        "mmdebstrap",
        [
            *("mmdebstrap", "--mode=root", "--format=directory"),
            *(("--variant=extract", f"--arch={foreign}") if foreign else ("--variant=minbase",)),
            f"--include={','.join(packages)}",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in NO_DOCUMENTS),
            *(f"--customize-hook={hook}" for hook in hooks),
            *(suite, target, sources),
        ],
    )
    sources.unlink()


def resolve(package: str) -> str:
    """Return the real package that a meta package depends on first; asked once, then kept."""
    kept = _store() / f"{package}.depends"
    if kept.exists():
        return kept.read_text()
    for line in run("apt-cache", ["apt-cache", "depends", "--important", package]).splitlines():
        if "Depends: " in line:
            found = line.split()[-1]
            kept.write_text(found)
            return found
    raise BuildError(f"apt knows no package {package} (apt-get update?)")


def unpack(package: str, target: Path) -> None:
    """Download a package, without installing it, and unpack its files into ``target``."""
    store = _store()
    if not list(store.glob(f"{package}_*.deb")):
        # apt drops to its own user, who must be able to write here; as root it may stay root.
        run(f"download {package}", _download(package), cwd=store)
    (found,) = store.glob(f"{package}_*.deb")
    run(f"unpack {package}", ["dpkg-deb", "-x", found, target])


def _store() -> Path:
    store = CACHE / "packages"
    store.mkdir(parents=True, exist_ok=True)
    return store


def _download(package: str) -> list[str]:
    return ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
