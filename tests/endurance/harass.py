# SPDX-License-Identifier: BSD-3-Clause
"""Kill and stop the device processes of a running VM: ``harass.py SOCKET SEED LIMIT NAME…``.

LIMIT is a number of victims (``14``) or of seconds (``60s``). Each victim is left alone again until
its next process serves. Without a NAME the time passes in peace. Prints what was done, as JSON;
runs where crosvm is installed, by itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TypedDict

# Every so many victims one is stopped, and not killed: then the vmm has to notice.
STOP_EVERY = 7

# After this long without a new process that serves, something is wrong.
PATIENCE_SECONDS = 300.0


class Device(TypedDict):
    """What ``crosvm devices --json`` says of one device, as far as it matters here."""

    name: str
    pid: int
    state: str
    counters: dict[str, int]


def devices(socket: str) -> dict[str, Device]:
    words = ["crosvm", "devices", "--json", socket]
    found: list[Device] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return {device["name"]: device for device in found}


def wait_until_it_serves(socket: str, name: str, restarts: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        now = devices(socket)[name]
        if now["state"] in ("dead", "needs-reset"):
            sys.exit(f"{name} is {now['state']}")
        if now["counters"]["restarts"] > restarts and now["state"] == "active":
            return
        time.sleep(0.05)
    sys.exit(f"{name} does not serve again")


def main() -> None:
    socket, seed, limit, *names = sys.argv[1:]
    victims = sys.maxsize if limit.endswith("s") else int(limit)
    end = time.monotonic() + (float(limit[:-1]) if limit.endswith("s") else 1e9)
    moments = random.Random(int(seed))
    done = {"killed": 0, "stopped": 0}
    turn = 0
    while not names and time.monotonic() < end:
        time.sleep(1)
    while turn < victims and time.monotonic() < end:
        name = names[turn % len(names)]
        turn += 1
        time.sleep(moments.random() / 2)
        victim = devices(socket)[name]
        stops = turn % STOP_EVERY == 0
        os.kill(victim["pid"], signal.SIGSTOP if stops else signal.SIGKILL)
        done["stopped" if stops else "killed"] += 1
        wait_until_it_serves(socket, name, victim["counters"]["restarts"])
    counters = {name: device["counters"] for name, device in devices(socket).items()}
    sys.stdout.write(json.dumps(done | {"counters": counters}) + "\n")


if __name__ == "__main__":
    main()
