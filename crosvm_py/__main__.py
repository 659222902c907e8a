# SPDX-License-Identifier: BSD-3-Clause
"""The entry of ``crosvm`` and of ``python -m crosvm_py``: errors become exit statuses here."""

from __future__ import annotations

import gc
import os
import sys

from crosvm_py.cli.output import write_error
from sys_util.errors import (
    UsageError,
    VmmError,
    describe,
    is_hosts_fault,
    refused_call,
    remedy_for,
)


def main() -> int:
    """Run the command line and return the exit status.

    If a filter was loaded, end the process here instead (see ``leaving``).
    """
    if any(word.startswith("--pool") for word in sys.argv):
        from crosvm_py.pool.client import run_in_pool

        status_of_monitor = run_in_pool(sys.argv[1:])
        if status_of_monitor is not None:
            return status_of_monitor
    status = run_command_line()
    if "crosvm_py.run" in sys.modules:
        from crosvm_py.leaving import is_confined

        if is_confined():
            os._exit(status)
    return status


def run_command_line() -> int:
    """Run the command line and return the exit status; tell the user about every error."""
    gc.disable()  # imports leave no garbage, and collections would take several milliseconds
    _open_standard_fds()
    try:
        from crosvm_py.cli.dispatch import execute

        return execute(sys.argv[1:])
    except UsageError as error:
        from crosvm_py.exit_status import VmExit

        write_error(describe(error))
        return VmExit.USAGE
    except VmmError as error:
        from crosvm_py.exit_status import VmExit

        write_error(describe(error))
        return VmExit.ERROR
    except OSError as error:
        if not is_hosts_fault(error):
            return _tell_of_bug(error)
        from crosvm_py.exit_status import VmExit

        write_error(f"{refused_call(error)}: {error.strerror}{remedy_for(error)}")
        return VmExit.ERROR
    except KeyboardInterrupt:
        from crosvm_py.exit_status import INTERRUPTED

        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        return _tell_of_bug(error)


def _tell_of_bug(error: Exception) -> int:
    from crosvm_py.exit_status import EXIT_BUG
    from sys_util.log import get_logger

    get_logger("crosvm").exception(error, "internal error, please report it")
    return EXIT_BUG


def _open_standard_fds() -> None:
    """Open /dev/null as stdin, stdout or stderr if one of them is closed.

    Otherwise the next file that is opened, such as a disk, would get its number, and log lines
    would be written into the file.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets this number, because it is the lowest free one
            os.set_inheritable(fd, True)


if __name__ == "__main__":
    sys.exit(main())
