#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Make a guest of Debian's own kernel and busybox, boot it, look at its device processes, stop it. On
# this machine where its KVM has hardware virtualization; otherwise in a KVM test host.
set -eu
cd "$(dirname "$0")/.."
started=$(date +%s)
guest=.cache/demo-guest

say() {
    echo "demo: [$(($(date +%s) - started)) s] $*" >&2
}

if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
    host=
    say "on this machine: /dev/kvm is here, with hardware virtualization"
else
    host=host
    if [ ! -e /dev/kvm ]; then
        reason="this machine has no /dev/kvm"
    elif [ ! -w /dev/kvm ]; then
        reason="/dev/kvm is not writable for $(id -un)"
    else
        reason="this machine's KVM has no hardware virtualization, so stock kernels do not boot on it"
    fi
    say "in a KVM test host (QEMU in software emulation), because $reason"
fi

say "1/4 Debian packages to compile the project, and it (which goes on in the background)"
sh tests/setup.sh packages program
sh tests/setup.sh program &
setup=$!
say "2/4 the other Debian packages, and the guest, which needs nothing compiled"
sh tests/setup.sh packages guest $host
mkdir -p .cache
[ -e $guest ] || python3 -m crosvm_py guest make minimal -o $guest
say "3/4 the test host and the project, where they are not ready yet"
[ -z "$host" ] || python3 -m tests.kvmhost.small build
wait $setup

say "4/4 booting the guest"
if [ -z "$host" ]; then
    PATH=$PWD/.venv/bin:$PATH sh tests/demo-boot.sh $guest
else
    .venv/bin/python -m tests.kvmhost.small run $guest -- sh tests/demo-boot.sh /guests/guest
fi
say "done"
