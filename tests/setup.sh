#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Make a Debian 12 machine ready for the demo and the tests: Debian packages (as root), a virtual
# environment in .venv, the project in it. Does nothing when all of that is there and up to date.
set -eu
cd "$(dirname "$0")/.."

say() {
    echo "setup: $*" >&2
}

missing=
for package in $(sed 's/#.*//' tests/debian-packages.txt); do
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) in
    installed) ;;
    *) missing="$missing $package" ;;
    esac
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "as root: apt-get install$missing"
        exit 1
    fi
    say "installing$missing"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing \
        </dev/null >/dev/null
fi

mkdir -p .cache
inputs=$(cat setup.cfg setup.py pyproject.toml tests/debian-packages.txt \
    kvm/ffi/*.* sys_util/ffi/*.* | sha256sum)
if [ ! -x .venv/bin/python ] || [ "$(cat .cache/setup.stamp 2>/dev/null)" != "$inputs" ] ||
    ! ls kvm/_kvm.*.so sys_util/_linux.*.so >/dev/null 2>&1; then
    say "installing the project into .venv"
    # Debian's Python, which is also the one in the test host: compiled modules must fit both.
    [ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
    if ! .venv/bin/python -m pip install -e '.[test]' >.cache/setup.log 2>&1; then
        tail -n 40 .cache/setup.log >&2
        exit 1
    fi
    echo "$inputs" >.cache/setup.stamp
fi
