# SPDX-License-Identifier: BSD-3-Clause
"""Read a policy and every file that it includes, each once, as bytes.

Because no file is read twice, the text that is hashed for the cache is the text that is parsed.
"""

from __future__ import annotations

import os
import stat

from seccomp.errors import PolicyError
from sys_util.typing import Final

MAX_FILE_BYTES: Final = 256 * 1024  # crosvm's longest policy has 5 KiB
MAX_FILES: Final = 64

_DIRECTIVES: Final = (b"@include", b"@frequency")


def resolve(including: str, path: str) -> str:
    """Return the path of an included file, which is relative to the file that includes it."""
    return os.path.normpath(os.path.join(os.path.dirname(including), path))


def read_sources(path: str) -> dict[str, bytes]:
    """Return the text of the policy and of all files that it includes, by path, the policy first.

    An included file that does not exist is left out: the parser reports it with the line.

    Raises:
        PolicyError: the policy is missing, or a file is no regular file or too large.
    """
    found: dict[str, bytes] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        try:
            text = _read_file(current)
        except FileNotFoundError as error:
            if current == path:
                raise PolicyError(f"policy {path} does not exist") from error
            continue
        except OSError as error:
            raise PolicyError(f"policy {current}: {error.strerror}") from error
        found[current] = text
        if len(found) > MAX_FILES:
            raise PolicyError(f"{path}: includes more than {MAX_FILES} files")
        if b"@" in text:
            waiting += _included_paths(current, text)
    return found


def _included_paths(path: str, text: bytes) -> list[str]:
    """Search for the files that a policy includes. It may find too many, but never too few."""
    found = []
    for line in text.splitlines():
        words = line.split(None, 2)
        if len(words) > 1 and words[0] in _DIRECTIVES:
            found.append(resolve(path, os.fsdecode(words[1])))
    return found


def _read_file(path: str) -> bytes:
    if "\0" in path:
        raise PolicyError(f"policy {path!r}: NUL in the path")
    # O_NONBLOCK, so that opening a FIFO does not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PolicyError(f"policy {path} is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise PolicyError(f"policy {path} is larger than {MAX_FILE_BYTES} bytes")
        text = os.read(fd, MAX_FILE_BYTES + 1)
    finally:
        os.close(fd)
    if len(text) > MAX_FILE_BYTES:
        raise PolicyError(f"policy {path} is larger than {MAX_FILE_BYTES} bytes")
    return text
