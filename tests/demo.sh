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
    where=here
    say "on this machine: /dev/kvm is here, with hardware virtualization"
    packages=program
else
    where=host
    packages="program host"
    if [ ! -e /dev/kvm ]; then
        reason="this machine has no /dev/kvm"
    elif [ ! -w /dev/kvm ]; then
        reason="/dev/kvm is not writable for $(id -un)"
    else
        reason="this machine's KVM has no hardware virtualization, so stock kernels do not boot on it"
    fi
    say "in a KVM test host (QEMU in software emulation), because $reason"
fi

say "1/4 Debian packages of this machine"
sh tests/setup.sh packages $packages

# The project is compiled and installed while the guest is made, which needs neither.
say "2/4 the project (in the background)"
sh tests/setup.sh program &
setup=$!
say "3/4 the guest"
mkdir -p .cache
[ -e $guest ] || python3 -m crosvm_py guest make minimal -o $guest
if [ $where = host ]; then
    python3 -m tests.kvmhost.small build
fi
wait $setup

say "4/4 booting the guest"
if [ $where = here ]; then
    PATH=$PWD/.venv/bin:$PATH sh tests/demo-boot.sh $guest
else
    .venv/bin/python -m tests.kvmhost.small run $guest -- sh tests/demo-boot.sh /guests/guest
fi
say "done"
