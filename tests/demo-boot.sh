#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# The part of the demo that runs where /dev/kvm is: demo-boot.sh DIR
set -eu
guest=$1
work=$(mktemp -d)
vmm=
finish() {
    [ -z "$vmm" ] || kill "$vmm" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

# In the guest: run this, then stay.
script='uname -a; cat /proc/partitions; echo "random: $(head -c 8 /dev/hwrng | xxd -p)"; date'
run=$(echo "$script" | base64 | tr -d '\n')
echo "demo: crosvm run -s SOCKET -p 'crosvm.run=… crosvm.end=stay' DIR"
crosvm run -s "$work/sock" -p "crosvm.run=$run crosvm.end=stay" "$guest" \
    </dev/null >"$work/console" 2>"$work/log" &
vmm=$!

tries=0
until grep -q '^guest: exit' "$work/console"; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ] || ! kill -0 "$vmm" 2>/dev/null; then
        echo "demo: the guest did not come up" >&2
        cat "$work/console" "$work/log" >&2
        exit 1
    fi
    sleep 0.3
done
echo "---- what the guest printed"
cat "$work/console"

descendants() { # PID: print it and all processes below it
    echo "$1"
    for child in $(pgrep -P "$1"); do
        descendants "$child"
    done
}
field() { # PID NAME: print a field of /proc/PID/status
    sed -n "s/^$2:[[:space:]]*\([^[:space:]]*\).*/\1/p" "/proc/$1/status"
}

echo "---- its processes"
ps -o pid,ppid,uid,rss,comm -p "$(descendants "$vmm" | paste -sd,)"
echo "---- their jails: own namespaces (compared with the first), capabilities, no-new-privs, seccomp"
for pid in $(descendants "$vmm"); do
    own=
    for kind in user mnt pid net ipc uts cgroup; do
        if [ "$(readlink "/proc/$pid/ns/$kind")" != "$(readlink "/proc/$vmm/ns/$kind")" ]; then
            own="$own $kind"
        fi
    done
    printf '%-6s %-14s uid %-6s CapEff %s NoNewPrivs %s Seccomp %s own:%s\n' "$pid" \
        "$(cat "/proc/$pid/comm")" "$(field "$pid" Uid)" "$(field "$pid" CapEff)" \
        "$(field "$pid" NoNewPrivs)" "$(field "$pid" Seccomp)" "${own:- none}"
done

echo "---- crosvm stop"
crosvm stop "$work/sock"
status=0
wait "$vmm" || status=$?
vmm=
echo "demo: crosvm run ended with exit status $status"
cat "$work/log" >&2
exit "$status"
