# SPDX-License-Identifier: BSD-3-Clause
"""Errors of the API, and the bytes of every answer."""

from __future__ import annotations

import json

from crosvm_py.api import http
from sys_util.typing import Final

NO_CONTENT: Final = http.answer(204)

_MAX_REASON_CHARS: Final = 2000


class ApiError(Exception):
    """A call that was not carried out.

    ``reasons`` go from the outermost to the cause of all. With the statuses below, the body has
    fixed words instead.
    """

    def __init__(self, status: int, *reasons: str) -> None:
        super().__init__(": ".join(reasons))
        self.status = status
        self.reasons = reasons


def failure(what: str, error: ApiError) -> bytes:
    """Return the answer to a call that failed; ``what`` says which call that was."""
    if error.status == 429:
        return _answer(429, "Too Many Requests")
    return _answer(error.status, "Error from API", what, *error.reasons)


def bad_request(reason: str) -> bytes:
    """Return the answer to what is no HTTP request of ours."""
    return _answer(400, "Bad Request", reason)


def bad_json(reason: str) -> bytes:
    """Return the answer to a body that does not fit its schema."""
    return _answer(400, "Failed to deserialize JSON", reason)


def internal() -> bytes:
    """Return the answer to a request that met a bug of ours."""
    return _answer(500, "Internal Server Error")


# A path that is no endpoint; another method or a body where there should be none, or none where
# one is needed; and that for vm.create.
NOT_FOUND: Final = http.answer(404, b'["Not Found"]')
BAD_REQUEST: Final = http.answer(400, b'["Bad Request"]')
BAD_REQUEST_EMPTY: Final = http.answer(400, b"")


def _answer(status: int, *texts: str) -> bytes:
    """Return an error whose body is an array of these texts, as ASCII on one line each."""
    words = [" ".join(text[:_MAX_REASON_CHARS].split()) for text in texts]
    return http.answer(status, json.dumps(words, separators=(",", ":")).encode("ascii"))
