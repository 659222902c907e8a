# SPDX-License-Identifier: BSD-3-Clause
"""``python3 -m tests.kvmhost``: run commands on a machine with a working /dev/kvm."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from tests.guests.cache import BuildError
from tests.kvmhost import image, qemu
from tests.kvmhost.client import (
    STATUS_HOST_GONE,
    STATUS_TIMEOUT,
    HostGoneError,
    run_attached,
)
from tests.kvmhost.host import DEFAULT_NAME, STATES, Host, snapshot
from tests.kvmhost.protocol import RunRequest

if TYPE_CHECKING:
    from types import FrameType

STATUS_INTERRUPTED: Final = 130
VERBS: Final = {
    "build": "make the host's disks and its snapshot",
    "run": "run CMD in a fresh host",
    "up": "start a host that stays",
    "exec": "run CMD in the host that stays",
    "sync": "copy the project into the host that stays",
    "down": "end the host that stays",
}


def _say(message: str) -> None:
    sys.stderr.write(f"kvmhost: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.kvmhost", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text)
        if name in ("build", "run", "up"):
            choices, default = image.RELEASES, image.RELEASES[0]
            verb.add_argument("--release", choices=choices, default=default, help="which Debian")
        if name in ("up", "exec", "sync", "down"):
            verb.add_argument("--name", default=DEFAULT_NAME, help="to have several that stay")
        if name not in ("run", "exec"):
            continue
        verb.add_argument("--out", type=Path, help="folder that receives the host's /out")
        verb.add_argument("-t", "--timeout", type=float, default=600.0, metavar="SECONDS")
        verb.add_argument("-u", "--user", default="root", help="root (default) or tester")
        verb.add_argument("-C", "--cwd", default="/project", help="default: /project")
        verb.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
        verb.add_argument("command", nargs="+", metavar="CMD")
    return parser


def _attached(host: Host, options: argparse.Namespace) -> int:
    env = dict(pair.partition("=")[::2] for pair in options.env)
    request = RunRequest(options.command, options.cwd, options.user, env)
    connection = host.connect()
    try:
        stdin = None if os.isatty(0) else 0
        status = run_attached(connection, request, timeout=options.timeout, stdin=stdin)
    except TimeoutError as error:
        _say(str(error))
        status = STATUS_TIMEOUT
    finally:
        connection.close()
    if options.out:
        host.pull("/out", options.out)
    return status


def _execute(options: argparse.Namespace) -> int:
    if options.verb == "build":
        snapshot(image.build(options.release), options.release)
    elif options.verb == "run":
        with Host.start(release=options.release) as host:
            host.sync()
            return _attached(host, options)
    elif options.verb == "up":
        if qemu.is_alive(STATES / options.name):
            _say(f"host {options.name} is up already")
            return 1
        Host.start(options.name, options.release).sync()
    elif options.verb == "exec":
        return _attached(Host.staying(options.name), options)
    elif options.verb == "sync":
        Host.staying(options.name).sync()
    else:
        Host.staying(options.name).close()
    return 0


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    try:
        return _execute(_parser().parse_args(arguments))
    except BuildError as error:
        _say(str(error))
        return 1
    except HostGoneError as error:
        _say(str(error))
        return STATUS_HOST_GONE
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
