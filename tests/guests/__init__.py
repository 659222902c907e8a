# SPDX-License-Identifier: BSD-3-Clause
"""Guests for the tests, all made from Debian packages by the scripts in this folder.

``python3 -m tests.guests build`` makes them (as root, cached in ``.cache/guests`` by the content
of what goes in) and prints where they are; ``python3 -m tests.guests path NAME`` prints one path.

==================  ==========================================================================
``builtin/``        a kernel compiled from ``linux-source`` with ``linux.config``: virtio, ext4 and
                    squashfs built in, so that ``crosvm run -r rootfs.squashfs vmlinux`` is all
``cloud/``          Debian's ``linux-image-cloud-amd64``, unmodified, as ``bzImage`` and as
``generic/``        ``vmlinux`` (its unpacked payload), with an ``initrd.img`` that loads its
                    virtio modules; and the same of ``linux-image-amd64``
``root.squashfs``   one root image in both formats: busybox, fio, iperf3, e2fsprogs, socat, …
``root.ext4``
==================  ==========================================================================

What a guest does is said on its kernel command line, read by ``init-root.sh`` (in the root
image) and ``init-initrd.sh`` (in the initrd, when there is no ``root=``):

``crosvm.run=BASE64``  run this shell command
``crosvm.script=DEV``  run the shell script that stands on this block device, padded with zeros
``crosvm.end=WHAT``    then ``poweroff`` (default), ``reboot``, ``panic`` or ``stay``

Without a command there is a shell on the console. The lines ``guest: up SECONDS`` before the
command and ``guest: exit STATUS`` after it are meant for tests to look for.
"""
