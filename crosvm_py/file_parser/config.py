# SPDX-License-Identifier: BSD-3-Clause
"""A configuration in JSON, read by a process of its own: only values that fit the schema leave it.

They come back as msgpack, of which every value is checked again while it becomes the object.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from crosvm_py.file_parser.child import start_parser
from crosvm_py.file_parser.protocol import (
    MAX_CONVERTED_BYTES,
    MAX_REASON_CHARS,
    Converted,
    Unfit,
)
from crosvm_py.vm_config.codec import built, builtins, decode
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.schema import VmConfig
from sys_util import msgpack
from sys_util.errors import raise_host_error
from sys_util.stranger import judged, unpack
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys_util.wire import Message


class _ConfigJob:
    """The text of a configuration, and an empty file in memory for its values."""

    def __init__(self, what: str, text: bytes, out_fd: int) -> None:
        self.what = what
        self.fds = (out_fd,)
        self.size_bytes = len(text)
        self._text = text
        self._out_fd = out_fd

    def prepare(self) -> None:
        """Everything is imported."""

    def work(self) -> Message:
        try:
            config = decode(self._text, VmConfig)
        except SchemaError as error:
            return Unfit(error.place[:MAX_REASON_CHARS], error.reason[:MAX_REASON_CHARS])
        data = msgpack.packb(builtins(config))
        if len(data) > MAX_CONVERTED_BYTES:
            return Unfit("", f"{len(data)} bytes are more than {MAX_CONVERTED_BYTES}")
        os.pwrite(self._out_fd, data, 0)
        return Converted(len(data))


def read_config(
    what: str, text: bytes, *, sandbox: bool = True, log_failures: bool = False
) -> VmConfig:
    """Return what a JSON text says. ``what`` names it in messages; the caller has one thread.

    Raises:
        SchemaError: it does not fit the schema; the message does not name the file.
        ConfigError: it crashes the process that reads it.
        HostError: the host refuses to start a process.
    """
    with ExitStack() as stack:
        try:
            out_fd = os.memfd_create("crosvm_config", os.MFD_CLOEXEC)
        except OSError as error:
            raise_host_error("start", f"a process that reads {what}", error)
        stack.callback(os.close, out_fd)
        job = _ConfigJob(what, text, out_fd)
        parser = start_parser(job, sandbox=sandbox, log_failures=log_failures)
        stack.callback(parser.close)
        answer = parser.answer()
        if isinstance(answer, Unfit):
            raise SchemaError(answer.place, answer.reason)
        if not isinstance(answer, Converted):
            raise parser.nonsense(f"an unexpected {type(answer).__name__}")
        data = os.pread(out_fd, answer.size_bytes, 0)
        if len(data) < answer.size_bytes:
            raise parser.nonsense(f"{answer.size_bytes} bytes that are not there")
        try:
            config: VmConfig = judged(f"the values of {what}", built, unpack(data), VmConfig)
        except SchemaError as error:
            raise parser.nonsense(error) from error
        return config
