/* SPDX-License-Identifier: BSD-3-Clause */
/* Calls of KVM that cffi cannot make by itself, and CPUID. */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/kvm.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kvm.h"

int crosvm_ioctl(int fd, unsigned long request, void *arg)
{
    int result = ioctl(fd, request, arg);
    return result < 0 ? -errno : result;
}

int crosvm_ioctl_int(int fd, unsigned long request, unsigned long arg)
{
    int result = ioctl(fd, request, arg);
    return result < 0 ? -errno : result;
}

int crosvm_vcpu_run(int fd)
{
    return ioctl(fd, KVM_RUN, 0) < 0 ? -errno : 0;
}

/* Return NULL if the kernel refuses. For a valid vCPU the only possible cause is lack of memory. */
void *crosvm_map_run(int fd, size_t size)
{
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return page == MAP_FAILED ? NULL : page;
}

/* The entries contain unions, which cffi cannot declare without all their members. */
void crosvm_chip_route(struct kvm_irq_routing *table, unsigned int at, unsigned int gsi,
                       unsigned int chip, unsigned int pin)
{
    struct kvm_irq_routing_entry *entry = &table->entries[at];

    memset(entry, 0, sizeof(*entry));
    entry->gsi = gsi;
    entry->type = KVM_IRQ_ROUTING_IRQCHIP;
    entry->u.irqchip.irqchip = chip;
    entry->u.irqchip.pin = pin;
}

void crosvm_msi_route(struct kvm_irq_routing *table, unsigned int at, unsigned int gsi,
                      uint64_t address, unsigned int data)
{
    struct kvm_irq_routing_entry *entry = &table->entries[at];

    memset(entry, 0, sizeof(*entry));
    entry->gsi = gsi;
    entry->type = KVM_IRQ_ROUTING_MSI;
    entry->u.msi.address_lo = (uint32_t)address;
    entry->u.msi.address_hi = (uint32_t)(address >> 32);
    entry->u.msi.data = data;
}

static void ignore_kick(int signo)
{
    (void)signo;
}

/* The handler is in C, so that the signal interrupts KVM_RUN without any work for Python. */
int crosvm_install_kick_handler(int signo)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = ignore_kick;
    sigemptyset(&action.sa_mask);
    return sigaction(signo, &action, NULL) < 0 ? -errno : 0;
}

int crosvm_kick(int tid, int signo)
{
    return syscall(SYS_tgkill, getpid(), tid, signo) < 0 ? -errno : 0;
}

/* Store EAX, EBX, ECX, EDX of a leaf without subleaves; return 0 if there is no such leaf. */
int crosvm_host_cpuid(unsigned int leaf, unsigned int registers[4])
{
#if defined(__x86_64__)
    return __get_cpuid(leaf, &registers[0], &registers[1], &registers[2], &registers[3]);
#else
    (void)leaf;
    (void)registers;
    return 0;
#endif
}

/* This uses CPUID and not /proc/cpuinfo, because a sandbox may not have that file. */
int crosvm_has_hardware_virtualization(void)
{
#if defined(__x86_64__)
    unsigned int eax, ebx, ecx, edx;

    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 5)))
        return 1; /* VMX */
    if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 2)))
        return 1; /* SVM */
    return 0;
#else
    return 1;
#endif
}
