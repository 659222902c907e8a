#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Make a Debian 12 machine ready for the tests: Debian packages (as root), a virtual environment in
# .venv, the project in it. Does nothing when all of that is there and up to date.
#   tests/setup.sh                      everything
#   tests/setup.sh packages NAME…       the packages of tests/packages/NAME.txt alone
#   tests/setup.sh program              the project alone, without what its tests need
set -eu
cd "$(dirname "$0")/.."

say() {
    echo "setup: $*" >&2
}

packages() { # NAME…: install the packages of these files
    missing=
    for package in $(for name; do sed 's/#.*//' "tests/packages/$name.txt"; done); do
        case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) in
        installed) ;;
        *) missing="$missing $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "as root: apt-get install$missing"
        exit 1
    fi
    say "installing$missing"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing \
        </dev/null >/dev/null
}

project() { # EXTRAS: install the project into .venv, with [test] or nothing
    mkdir -p .cache
    inputs=$(cat setup.cfg setup.py pyproject.toml bin/crosvm tests/packages/*.txt \
        crosvm_py/version.py engine/Cargo.* engine/ffi/*.* engine/src/*.rs launcher/Cargo.* \
        launcher/src/*.rs forge/Cargo.* forge/src/*.rs kvm/ffi/*.* sys_util/ffi/*.* | sha256sum)
    if [ -x .venv/bin/python ] && ls kvm/_kvm.*.so sys_util/_linux.*.so >/dev/null 2>&1; then
        # What the tests have is enough for the program alone.
        for extras in "$1" '[test]'; do
            [ "$(cat .cache/setup.stamp 2>/dev/null)" != "$extras $inputs" ] || return 0
        done
    fi
    say "installing the project into .venv"
    # Debian's Python, which is also the one in the test host: compiled modules must fit both.
    [ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
    if ! .venv/bin/python -m pip install -e ".$1" >.cache/setup.log 2>&1; then
        tail -n 40 .cache/setup.log >&2
        exit 1
    fi
    echo "$1 $inputs" >.cache/setup.stamp
}

case ${1:-all} in
packages)
    shift
    packages "$@"
    ;;
program) project '' ;;
*)
    packages program guest host tests
    command -v cargo >/dev/null || packages engine
    project '[test]'
    ;;
esac
