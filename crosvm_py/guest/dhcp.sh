#!/run/crosvm/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# udhcpc calls this script with the answer of the DHCP server in the environment.
box=/run/crosvm/busybox
case $1 in
bound | renew)
    $box ip addr flush dev "$interface"
    $box ip addr add "$ip/${mask:-24}" dev "$interface"
    [ -z "$mtu" ] || $box ip link set "$interface" mtu "$mtu"
    for address in $router; do
        $box ip route add default via "$address" dev "$interface" onlink
        break
    done
    $box rm -f /etc/resolv.conf # it may be a dangling link
    for address in $dns; do
        echo "nameserver $address"
    done >/etc/resolv.conf
    ;;
esac
