# SPDX-License-Identifier: BSD-3-Clause
"""Build ``tests.breakout._hands``: bare system calls that survive the filter's trap.

Whoever takes a process over is not bound to return from a handler as the kernel expects
(rt_sigreturn is denied as well): the handler of SIGSYS jumps back to where the call was made, and
so one process makes hundreds of denied calls one after the other.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    long hands_arm(void);
    long hands_be_a_thread(void);
    long hands_call(long nr, unsigned long a, unsigned long b, unsigned long c,
                    unsigned long d, unsigned long e, unsigned long f);
    long hands_fork(long nr, unsigned long a, unsigned long b, unsigned long c,
                    unsigned long d, unsigned long e);
    unsigned long hands_sweep_ioctl(int fd, unsigned long first, unsigned long count,
                                    unsigned long step, const unsigned long *skip,
                                    unsigned long skips);
    long hands_int80(long nr);
    #define HANDS_TRAPPED ...
    """
)

ffibuilder.set_source(
    "tests.breakout._hands",
    r"""
    #include <errno.h>
    #include <linux/futex.h>
    #include <pthread.h>
    #include <setjmp.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #define HANDS_TRAPPED (-100000L)

    static jmp_buf back;
    static volatile sig_atomic_t armed;

    static void trapped(int signal, siginfo_t *info, void *context)
    {
        (void)signal, (void)info, (void)context;
        if (armed) _longjmp(back, 1);
        syscall(SYS_exit_group, 159);
    }

    static long hands_arm(void)
    {
        struct sigaction action;
        memset(&action, 0, sizeof(action));
        action.sa_sigaction = trapped;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        return sigaction(SIGSYS, &action, 0);
    }

    static long here(long nr, const unsigned long *words)
    {
        long result;
        armed = 1;
        if (_setjmp(back)) {
            armed = 0;
            return HANDS_TRAPPED;
        }
        result = syscall(nr, words[0], words[1], words[2], words[3], words[4], words[5]);
        armed = 0;
        return result < 0 ? -errno : result;
    }

    /* A thread that was started before the filter was loaded, and makes the calls instead. */
    static int asked = 1, has_thread;
    static struct { long nr; unsigned long words[6]; long result; } order;

    static void *serve(void *nothing)
    {
        (void)nothing;
        __atomic_store_n(&asked, 0, __ATOMIC_RELEASE);
        for (;;) {
            while (!__atomic_load_n(&asked, __ATOMIC_ACQUIRE))
                syscall(SYS_futex, &asked, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
            order.result = here(order.nr, order.words);
            __atomic_store_n(&asked, 0, __ATOMIC_RELEASE);
            syscall(SYS_futex, &asked, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
        }
    }

    static long hands_be_a_thread(void)
    {
        pthread_t thread;
        int error = pthread_create(&thread, 0, serve, 0);
        if (error) return -error;
        has_thread = 1;
        /* How a thread starts needs calls that the filter denies. */
        while (__atomic_load_n(&asked, __ATOMIC_ACQUIRE)) continue;
        return 0;
    }

    static long hands_call(long nr, unsigned long a, unsigned long b, unsigned long c,
                           unsigned long d, unsigned long e, unsigned long f)
    {
        unsigned long words[] = { a, b, c, d, e, f };
        if (!has_thread) return here(nr, words);
        order.nr = nr;
        memcpy(order.words, words, sizeof(words));
        __atomic_store_n(&asked, 1, __ATOMIC_RELEASE);
        syscall(SYS_futex, &asked, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
        while (__atomic_load_n(&asked, __ATOMIC_ACQUIRE))
            syscall(SYS_futex, &asked, FUTEX_WAIT_PRIVATE, 1, 0, 0, 0);
        return order.result;
    }

    /* For fork and its kin: a child, whatever it shares with us, ends before it touches a stack. */
    static long bare_fork(long nr, unsigned long a, unsigned long b, unsigned long c,
                          unsigned long d, unsigned long e)
    {
    #if defined(__x86_64__)
        long result;
        register unsigned long r10 __asm__("r10") = d;
        register unsigned long r8 __asm__("r8") = e;
        __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\t"
                         "mov $60, %%eax\n\txor %%edi, %%edi\n\tsyscall\n1:"
                         : "=a"(result)
                         : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                         : "rcx", "r11", "memory");
        return result;
    #elif defined(__aarch64__)
        register long x8 __asm__("x8") = nr;
        register unsigned long x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
        register unsigned long x3 __asm__("x3") = d, x4 __asm__("x4") = e;
        __asm__ volatile("svc 0\n\tcbnz x0, 1f\n\tmov x8, #93\n\tsvc 0\n1:"
                         : "+r"(x0), "+r"(x8) : "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
        return (long)x0;
    #else
    #error "no bare fork for this architecture"
    #endif
    }

    static long hands_fork(long nr, unsigned long a, unsigned long b, unsigned long c,
                           unsigned long d, unsigned long e)
    {
        long result;
        armed = 1;
        if (_setjmp(back)) {
            armed = 0;
            return HANDS_TRAPPED;
        }
        result = bare_fork(nr, a, b, c, d, e);
        armed = 0;
        return result;
    }

    /* Return the first request that is let pass to the kernel, plus one; 0 for none. */
    static unsigned long hands_sweep_ioctl(int fd, unsigned long first, unsigned long count,
                                           unsigned long step, const unsigned long *skip,
                                           unsigned long skips)
    {
        volatile unsigned long at;
        unsigned long request, i;
        for (at = 0; at < count; at++) {
            request = first + at * step;
            for (i = 0; i < skips && skip[i] != request; i++) continue;
            if (i < skips) continue;
            if (hands_call(SYS_ioctl, (unsigned long)fd, request, 0, 0, 0, 0) != HANDS_TRAPPED)
                return request + 1;
        }
        return 0;
    }

    /* The 32-bit entry to the kernel; the filter kills what uses it. */
    static long hands_int80(long nr)
    {
    #if defined(__x86_64__)
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(nr) : "memory");
        return result;
    #else
        (void)nr;
        return -ENOSYS;
    #endif
    }
    """,
    py_limited_api=True,
)

HERE: Final = Path(__file__).parent


def build() -> Path:
    """Compile the module and put it beside this file."""
    with TemporaryDirectory(prefix=".hands-", dir=HERE) as folder:
        made = Path(ffibuilder.compile(tmpdir=folder))
        return made.replace(HERE / made.name)


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
