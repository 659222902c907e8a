#!/run/crosvm/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# What udhcpc calls with the answer of the DHCP server in its environment.
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
    $box rm -f /etc/resolv.conf # it may be a link to where nothing is
    for address in $dns; do
        echo "nameserver $address"
    done >/etc/resolv.conf
    ;;
esac
