#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# All tests: units and this machine's KVM first, then guests in the KVM test host. Arguments go to
# both runs of pytest.
set -eu
cd "$(dirname "$0")/.."
sh tests/setup.sh
python=.venv/bin/python

echo "run: unit tests" >&2
$python -m pytest -q tests --ignore tests/e2e "$@"
echo "run: the KVM test host" >&2
$python -m tests.kvmhost build
echo "run: guests" >&2
$python -m pytest -q tests/e2e "$@"
