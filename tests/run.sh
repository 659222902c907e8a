#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# All tests, in the phases of tests/phases.py. Arguments go to pytest, but not to the checkers.
set -eu
cd "$(dirname "$0")/.."
sh tests/setup.sh
exec .venv/bin/python -m tests.phases "$@"
