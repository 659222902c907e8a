#!/crosvm/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# The first process of a guest made by crosvm guest make. It loads the kernel modules, mounts the
# root disk that root= names, and starts /sbin/init there. If there is no /sbin/init, or if
# crosvm.session is on the kernel's command line, it starts /crosvm/session instead. A read-only
# root gets an overlay in memory for files that are written.
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module.ko" || echo "crosvm: no module $module"
done </modules/order

root= mode=rw type= init= session=
read -r line </proc/cmdline
for word in $line; do
    case $word in
    root=*) root=${word#*=} ;;
    rootfstype=*) type=${word#*=} ;;
    init=*) init=${word#*=} ;;
    ro | rw) mode=$word ;;
    crosvm.session) session=yes ;;
    esac
done

give_up() {
    echo "crosvm: $1; the guest ends" >/dev/console
    poweroff -f
}

tries=0
while [ ! -b "$root" ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || give_up "no root disk at '$root'"
    sleep 0.05
done
if [ "$mode" = ro ]; then
    mount ${type:+-t "$type"} -o ro "$root" /lower || give_up "cannot mount $root"
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/upper /run/work
    mount -t overlay -o lowerdir=/lower,upperdir=/run/upper,workdir=/run/work overlay /new ||
        give_up "cannot lay memory over $root"
else
    mount ${type:+-t "$type"} "$root" /new || give_up "cannot mount $root"
fi

for folder in dev proc sys run; do
    [ -d /new/$folder ] || mkdir /new/$folder
done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /new/run
mkdir /new/run/crosvm
cp -a /crosvm/. /new/run/crosvm/
mount --move /dev /new/dev
mount --move /proc /new/proc
for init in $init /sbin/init; do
    # /sbin/init may be a link, such as systemd's. Its target is a path inside the new root, so it
    # must not be checked from here.
    if [ -z "$session" ] && { [ -L "/new$init" ] || [ -x "/new$init" ]; }; then
        exec switch_root /new "$init"
    fi
done
exec switch_root /new /run/crosvm/session
