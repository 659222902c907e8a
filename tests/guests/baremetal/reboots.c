/* SPDX-License-Identifier: BSD-3-Clause */
/* Print what a machine has at its start, change all of it, and wait for a key: '9' resets by port
 * 0xCF9, 'k' by the keyboard controller, 't' by a triple fault, 'p' powers off. */

#include "interrupt.h"
#include "pci.h"

#define COM_MCR 4
#define COM_SCR 7
#define COM_MCR_DTR_RTS 3
#define COM_LSR_DATA_READY 1
#define MEMORY 0xc00000 /* nothing of the guest is there */
#define MSR_PAT 0x277
#define MSR_KVM_SYSTEM_TIME 0x4b564d01
#define CMOS_FREE 0x50
#define PM1_ENABLE 0x602
#define PM1_CONTROL 0x604
#define PCI_INTERRUPT 0x3c
#define BRIDGE 0

static uint64_t get_msr(uint32_t index)
{
	uint32_t low, high;
	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (uint64_t)high << 32 | low;
}

static void set_msr(uint32_t index, uint64_t value)
{
	__asm__ volatile("wrmsr" : : "a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(index));
}

static void field(const char *name, uint64_t value, int digits)
{
	put(" ");
	put(name);
	put("=");
	put_hex(value, digits);
}

static void print_state(void)
{
	uint64_t used = 0;

	for (uintptr_t at = MEMORY; at < MEMORY + 0x100000; at += 4096)
		used += read64(at) != 0;
	put("state");
	field("memory", used, 4);
	field("scratch", inb(COM1 + COM_SCR), 2);
	field("apic", read32(LAPIC + LAPIC_SPURIOUS), 3);
	field("pat", get_msr(MSR_PAT), 16);
	field("clock", get_msr(MSR_KVM_SYSTEM_TIME), 16);
	outb(0x70, CMOS_FREE);
	field("cmos", inb(0x71), 2);
	field("mask", inb(0x21), 2);
	field("enable", inw(PM1_ENABLE), 4);
	field("bridge", pci_read32(BRIDGE, PCI_INTERRUPT), 2);
	put(" end\n");
}

static void change_state(void)
{
	for (uintptr_t at = MEMORY; at < MEMORY + 0x100000; at += 4096)
		write64(at, at);
	outb(COM1 + COM_SCR, 0x77);
	write32(LAPIC + LAPIC_SPURIOUS, 0x1aa);
	set_msr(MSR_PAT, 0x0606060606060606);
	set_msr(MSR_KVM_SYSTEM_TIME, MEMORY + 0x2000 + 1);
	outb(0x70, CMOS_FREE);
	outb(0x71, 0x66);
	outb(0x21, 0x5a);
	outw(PM1_ENABLE, 0x100);
	pci_write32(BRIDGE, PCI_INTERRUPT, 0x0b);
}

static uint8_t get(void)
{
	while (!(inb(COM1 + COM_LSR) & COM_LSR_DATA_READY))
		;
	return inb(COM1);
}

void main(void)
{
	print_state();
	change_state();
	outb(COM1 + COM_MCR, COM_MCR_DTR_RTS); /* ready to receive */
	for (;;) {
		switch (get()) {
		case '9':
			return;
		case 'k':
			outb(0x64, 0xfe);
			break;
		case 't':
			triple_fault();
		case 'p':
			outw(PM1_CONTROL, 0x2000);
			break;
		}
	}
}
