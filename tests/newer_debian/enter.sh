#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# enter.sh TREE PROJECT CMD...: run CMD with the tree of another Debian as its root, on this
# machine's kernel. The tree stays as it is: what is written goes to a tmpfs. The project, read-only,
# and /tmp are where they were; this machine's own root is at /run/host, for its compiler.
# Not a chroot, from which the kernel makes no user namespaces.
set -eu
tree=$1 project=$2
shift 2
new=/tmp/newer-debian.$$
mkdir "$new"
mount -t tmpfs tmpfs "$new"
mkdir "$new/upper" "$new/work" "$new/root"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$new/upper,workdir=$new/work" "$new/root"
cd "$new/root"
mkdir -p "./$project" run/host
cat >usr/local/bin/gcc <<'END'
#!/bin/sh
exec chroot /run/host gcc "$@"
END
chmod 755 usr/local/bin/gcc
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount --bind "$project" "./$project"
mount -o remount,bind,ro "./$project"
mount --bind /tmp tmp
pivot_root . run/host
cd "$project"
umount -l "/run/host$new"
rmdir "$new"
# Not with exec: process 1 of a namespace is not like others, and tests want to be others.
"$@"
