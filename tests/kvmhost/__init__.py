# SPDX-License-Identifier: BSD-3-Clause
"""A machine with a working /dev/kvm, anywhere: QEMU in software emulation with AMD's SVM.

The host ("L1") is a Debian system with one processor whose kernel has ``kvm-amd``; unmodified
guests run in it, and this project is copied to ``/project``. It is started from a snapshot that
is taken once after boot, so that each run gets a fresh, warm machine in about a second. ::

    python3 -m tests.kvmhost build                    once; cached by content
    python3 -m tests.kvmhost run -- CMD...            in a fresh host
    python3 -m tests.kvmhost up | exec -- CMD... | sync | down

``--release trixie`` makes it of a newer Debian, with another C library, Python and kernel.

``image`` makes the disks, ``snapshot`` boots and saves, ``qemu`` starts the emulator
(``mended`` without a fault of its own), ``agent`` is
what runs commands inside, ``protocol`` what it and ``client`` say to each other, ``host`` ties
these together, ``fixture`` gives it to pytest. One processor always: with two, KVM guests hang
under emulation while they do I/O.
"""
