#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Boot an unmodified Linux from a disk image, look at its device processes, stop it. On this
# machine where its KVM has hardware virtualization; otherwise in the KVM test host.
set -eu
cd "$(dirname "$0")/.."
sh tests/setup.sh

if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
    echo "demo: on this machine: /dev/kvm is here, with hardware virtualization" >&2
    guests=$(.venv/bin/python -m tests.guests path builtin root)
    kernel=$(echo "$guests" | sed -n 1p)/vmlinux
    root=$(echo "$guests" | sed -n 2p)/root.squashfs
    PATH=$PWD/.venv/bin:$PATH exec sh tests/demo-boot.sh "$kernel" "$root"
fi

if [ ! -e /dev/kvm ]; then
    reason="this machine has no /dev/kvm"
elif [ ! -w /dev/kvm ]; then
    reason="/dev/kvm is not writable for $(id -un)"
else
    reason="this machine's KVM has no hardware virtualization, so stock kernels do not boot on it"
fi
echo "demo: in the KVM test host (QEMU in software emulation), because $reason" >&2
exec .venv/bin/python -m tests.kvmhost run -t 300 -- \
    sh tests/demo-boot.sh /guests/builtin/vmlinux /guests/root.squashfs
