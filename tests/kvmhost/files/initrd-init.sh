#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# First process of the test host: its root image, read-only, under a tmpfs.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module"
done </modules/order
mount -t ext4 -o ro /dev/vda /lower
mount -t tmpfs -o mode=755,size=75% tmpfs /run
mkdir /run/upper /run/work
mount -t overlay -o lowerdir=/lower,upperdir=/run/upper,workdir=/run/work overlay /mnt
mount --move /dev /mnt/dev
umount /proc
exec switch_root /mnt /usr/sbin/kvmhost-init
