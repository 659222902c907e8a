# SPDX-License-Identifier: BSD-3-Clause
"""Do what devices and the vmm do, in an emulation of 64-bit Arm that records the system calls.

A line on stderr says which process's work follows. See record_aarch64.py.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Final

PATH: Final = f"{sys.argv[1]}/absent"
KEEP_AND_PUNCH: Final = 3
ZERO: Final = 0x10


def attempt(action: object, *args: object) -> None:
    try:
        action(*args)  # type: ignore[operator]  # every one is a function
    except OSError:
        return


def whose(name: str) -> None:
    os.write(2, f"={name}\n".encode())


libc: Final = ctypes.CDLL(None)
poll: Final = select.epoll()
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
kick: Final = os.eventfd(0, os.EFD_NONBLOCK)
disk: Final = os.open(f"{sys.argv[1]}/disk", os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(disk, 1 << 20)
reader, writer = os.pipe()
listener: Final = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(f"{sys.argv[1]}/socket")
listener.listen()
descriptor: Final = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", os.dup(kick)))
waiting: Final = select.poll()
waiting.register(reader, select.POLLIN)
left.sendmsg([b"queue"], [descriptor])
left.send(b"question")

whose("common_device")
poll.register(kick, select.EPOLLIN)
os.eventfd_write(kick, 1)
poll.poll(-1)
poll.poll(0.5)
os.eventfd_read(kick)
poll.modify(kick, select.EPOLLIN)
poll.unregister(kick)
right.recvmsg(64, 64, socket.MSG_CMSG_CLOEXEC)
right.send(b"done", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
left.recvmsg(64, 64, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
os.close(kick)
kept = [bytearray(size) for size in (1, 4000, 300_000, 5_000_000)]
for buffer in kept:
    buffer += bytes(6_000_000)
kept.clear()
objects = [object() for _ in range(200_000)]
del objects
time.monotonic()
time.time()
for action in (os.stat, os.lstat, os.readlink):
    attempt(action, PATH)
attempt(os.access, PATH, os.R_OK)
attempt(os.open, PATH, os.O_RDONLY)
os.getcwd()

whose("block_device")
os.pwritev(disk, [b"x" * 4096], 0)
os.preadv(disk, [bytearray(4096)], 0)
os.fdatasync(disk)
libc.fallocate(disk, KEEP_AND_PUNCH, ctypes.c_long(0), ctypes.c_long(4096))
libc.fallocate(disk, ZERO, ctypes.c_long(4096), ctypes.c_long(4096))

whose("balloon_device")
libc.fallocate(disk, KEEP_AND_PUNCH, ctypes.c_long(0), ctypes.c_long(4096))

whose("mem_device")
libc.fallocate(disk, KEEP_AND_PUNCH, ctypes.c_long(0), ctypes.c_long(4096))

whose("rng_device")
os.getrandom(65536)

whose("console_device")
os.writev(writer, [b"abc"])
os.readv(reader, [bytearray(3)])

whose("net_device")
os.writev(writer, [b"frame"])
os.readv(reader, [bytearray(5)])

whose("vsock_broker")
waiting.poll(0)
right.recvmsg(64, 64, socket.MSG_CMSG_CLOEXEC)
attempt(os.lstat, PATH)
near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
near.connect(f"{sys.argv[1]}/socket")
right.sendmsg([b"connected"], [descriptor])
right.send(b"not connected", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
time.sleep(0.001)

whose("vsock_device")
far, _ = listener.accept()
near.shutdown(socket.SHUT_WR)
far.close()
near.close()

whose("vmm")
waiting.poll(0)
os.getpgrp()
os.getpid()
os.geteuid()
attempt(os.lstat, PATH)
attempt(os.unlink, PATH)
time.sleep(0.001)
signal.signal(signal.SIGINT, signal.SIG_DFL)
left.sendall(b"answer")
right.recv(64)
os._exit(0)
