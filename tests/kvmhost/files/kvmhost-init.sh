#!/bin/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# Second process of the test host: mounts, modules, device permissions as on Debian; then the agent.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /project
mount -t tmpfs tmpfs /out
mount -t ext4 -o ro /dev/vdb /guests
mount -t ext4 -o discard /dev/vdc /scratch
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
chmod 1777 /scratch /out
ip link set lo up
hostname kvmhost
ln -sfT /proc/self/fd /dev/fd
ln -sfT /proc/self/fd/0 /dev/stdin
ln -sfT /proc/self/fd/1 /dev/stdout
ln -sfT /proc/self/fd/2 /dev/stderr
# Guests with more memory than this machine has touch only a part of it.
echo 1 >/proc/sys/vm/overcommit_memory
busybox modprobe -a virtio_console kvm-amd vhost_vsock vhost_net tun loop
for device in kvm vhost-vsock vhost-net; do
    chgrp kvm /dev/$device
    chmod 660 /dev/$device
done
chmod 666 /dev/net/tun
cd /
PYTHONPATH=/usr/lib/kvmhost python3 -S -m tests.kvmhost.agent </dev/null >/dev/console 2>&1
echo "kvmhost: the agent ended" >/dev/console
busybox poweroff -f
