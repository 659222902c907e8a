#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# First process of a guest with a modular kernel: load the modules, then start the root image that
# root= names, or do what the command line says here.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module" || echo "guest: no module $module"
done </modules/order

argument() { # NAME: print the value of NAME= on the kernel command line
    for word in $(cat /proc/cmdline); do
        case $word in "$1"=*) echo "${word#*=}" ;; esac
    done
}

root=$(argument root)
if [ -n "$root" ] && [ "$root" != /dev/ram0 ]; then
    mode=ro
    for word in $(cat /proc/cmdline); do
        case $word in ro | rw) mode=$word ;; esac
    done
    tries=0
    while [ ! -b "$root" ] && [ $tries -lt 50 ]; do
        usleep 20000
        tries=$((tries + 1))
    done
    type=$(argument rootfstype)
    if mount ${type:+-t "$type"} -o "$mode" "$root" /mnt; then
        mount --move /dev /mnt/dev
        umount /sys /proc
        exec switch_root /mnt /sbin/init
    fi
    echo "guest: no root at $root"
fi

read -r up idle </proc/uptime
echo "guest: up $up"
command=$(argument crosvm.run)
if [ -n "$command" ]; then
    echo "$command" | base64 -d | sh
    echo "guest: exit $?"
else
    setsid cttyhack sh
fi
case $(argument crosvm.end) in
reboot) reboot -f ;;
panic) echo c >/proc/sysrq-trigger ;;
stay) while :; do sleep 1000; done ;;
*) poweroff -f ;;
esac
