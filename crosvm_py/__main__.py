# SPDX-License-Identifier: BSD-3-Clause
"""The entry of ``crosvm`` and of ``python -m crosvm_py``: errors become exit statuses here."""

from __future__ import annotations

import sys

from crosvm_py.cli.command import execute
from crosvm_py.cli.output import write_error
from sys_util.errors import UsageError, VmmError, describe


def main() -> int:
    """Do what the command line asks for and return the exit status."""
    try:
        return execute(sys.argv[1:])
    except UsageError as error:
        from crosvm_py.exit_status import VmExit

        write_error(describe(error))
        return VmExit.USAGE
    except VmmError as error:
        from crosvm_py.exit_status import VmExit

        write_error(describe(error))
        return VmExit.ERROR
    except KeyboardInterrupt:
        from crosvm_py.exit_status import INTERRUPTED

        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the process entry: a bug of ours ends here
        from crosvm_py.exit_status import INTERNAL_ERROR
        from sys_util.log import get_logger

        get_logger("crosvm").exception(error, "internal error, please report it")
        return INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(main())
