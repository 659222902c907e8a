#!/run/crosvm/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# The init of a guest that has none: it mounts the file systems that programs expect, sets up the
# network by DHCP, and runs a shell on the console. When the shell ends, the guest ends. Words on
# the kernel's command line: crosvm.run=BASE64 runs a command instead of the shell;
# crosvm.size=ROWSxCOLUMNS is the size of the terminal; crosvm.status=DEVICE gets the exit status;
# with crosvm.end=stay the guest goes on after the shell has ended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export TERM="${TERM:-vt220}"
box=/run/crosvm/busybox
[ -e /sys/kernel ] || $box mount -t sysfs sysfs /sys
$box mkdir -p /dev/pts /dev/shm /tmp /root
$box mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$box mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$box ln -s /proc/self/fd /dev/fd
$box hostname crosvm
$box ip link set lo up

run= size= status_device= end=
read -r line </proc/cmdline
for word in $line; do
    case $word in
    crosvm.run=*) run=${word#*=} ;;
    crosvm.size=*) size=${word#*=} ;;
    crosvm.status=*) status_device=${word#*=} ;;
    crosvm.end=*) end=${word#*=} ;;
    TERM=*) export TERM="${word#*=}" ;;
    esac
done
if [ -e /sys/class/net/eth0 ]; then
    $box ip link set eth0 up
    $box udhcpc -i eth0 -q -n -t 10 -T 1 -s /run/crosvm/dhcp >/dev/null 2>&1 ||
        echo "crosvm: no address by DHCP"
fi

shell=/run/crosvm/busybox\ sh
for each in /bin/bash /bin/sh; do
    [ -x $each ] && shell=$each && break
done
cd /root || cd /
if [ -n "$run" ]; then
    echo "$run" | $box base64 -d >/run/crosvm/command
    $shell /run/crosvm/command </dev/console &
else
    [ -z "$size" ] || $box stty rows "${size%x*}" cols "${size#*x}" </dev/console
    $box setsid $box cttyhack $shell -l </dev/console &
fi
session=$!
# The signals that busybox's poweroff, halt and reboot send to the first process.
trap '$box poweroff -f' USR1 USR2
trap '$box reboot -f' TERM
wait $session
status=$?
$box sync
if [ -n "$status_device" ]; then
    echo $status >"$status_device"
    echo 0 0 0 0 >/proc/sys/kernel/printk # no message of the kernel on the user's terminal
elif [ -n "$run" ]; then
    echo "guest: exit $status"
fi
while [ "$end" = stay ]; do
    $box sleep 1000
done
$box poweroff -f
