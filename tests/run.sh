#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# All tests: first the guests and their host are built, for unit tests read real kernels, too; then
# units and this machine's own KVM, with a newer Debian's Python and test host beside them; then guests
# in two KVM test hosts side by side. Arguments go to every run of pytest.
set -eu
cd "$(dirname "$0")/.."
sh tests/setup.sh
python=.venv/bin/python

# tests NAME PATH…: run them; what failed has one more try, which is told and counted.
tests() {
    $python -m tests.second_try "$@"
}

# newer: what meets the kernel and the C library, once more on a newer Debian.
newer() {
    $python -m tests.kvmhost build --release trixie &&
        $python -m tests.newer_debian -q -rs &&
        tests newer tests/newer_debian
}

echo "run: the guests and the KVM test host" >&2
$python -m tests.kvmhost build
echo "run: unit tests, and bare-metal guests on this machine's KVM; beside it a newer Debian" >&2
status=0
newer_output=.cache/newer-debian.log
newer >"$newer_output" 2>&1 &
newer=$!
tests units tests --ignore tests/e2e --ignore tests/newer_debian "$@" || status=$?
wait "$newer" || status=$?
cat "$newer_output"
[ "$status" = 0 ] || exit "$status"

# Each run of pytest has a test host of its own, and a host has one processor. The second half, of
# about the same length, reports when the first is done.
echo "run: guests" >&2
second="tests/e2e/test_boot.py tests/e2e/test_control_devices.py tests/e2e/test_disks.py
tests/e2e/test_net.py tests/e2e/test_vsock.py"
first=$(ls tests/e2e/test_*.py | grep -vFx "$(printf '%s\n' $second)")
output=.cache/second-half.log
tests second $second "$@" >"$output" 2>&1 &
other=$!
tests first $first "$@" || status=$?
wait "$other" || status=$?
cat "$output"
$python -m tests.second_try report || status=$?
exit "$status"
