#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# /sbin/init of the root image. Few processes: everything here may run in an emulation of an
# emulation, where starting one costs milliseconds.
export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root TERM=vt100
[ -e /proc/self ] || mount -t proc proc /proc
[ -e /sys/kernel ] || mount -t sysfs sysfs /sys
[ -e /dev/null ] || mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ip link set lo up

run= script= end=
read -r line </proc/cmdline
for word in $line; do
    case $word in
    crosvm.run=*) run=${word#*=} ;;
    crosvm.script=*) script=${word#*=} ;;
    crosvm.end=*) end=${word#*=} ;;
    esac
done

read -r up idle </proc/uptime
echo "guest: up $up"
if [ -n "$run" ]; then
    echo "$run" | base64 -d >/run/command
    sh /run/command
    echo "guest: exit $?"
elif [ -n "$script" ]; then
    tr -d '\0' <"$script" >/run/command
    sh /run/command
    echo "guest: exit $?"
else
    setsid cttyhack sh
fi
sync
case $end in
reboot) reboot -f ;;
panic) echo c >/proc/sysrq-trigger ;;
stay) while :; do sleep 1000; done ;;
*) poweroff -f ;;
esac
