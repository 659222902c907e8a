/* SPDX-License-Identifier: BSD-3-Clause */
/* Attacks on registers: configuration space, BARs, MSI-X, ports, addresses where nothing is. */

#ifndef ATTACK_REGISTERS_H
#define ATTACK_REGISTERS_H

#include "attack_queues.h"

#define BARS 0xd0000000
#define ECAM 0xf4000000
#define BAR_BYTES 0x8000
#define MSIX_TABLE 0x5000

/* One access of `1 << width` bytes, a read or a write. */
static void touch(uintptr_t address, int width, int writing)
{
	uint64_t value = (uint64_t)random32() << 32 | random32();

	switch (width & 3) {
	case 0:
		writing ? write8(address, value) : (void)read8(address);
		break;
	case 1:
		writing ? write16(address, value) : (void)read16(address);
		break;
	case 2:
		writing ? write32(address, value) : (void)read32(address);
		break;
	default:
		writing ? write64(address, value) : (void)read64(address);
	}
}

/* The configuration space of the device: reads of every width anywhere, writes behind the BAR. */
static void sweep_configuration(struct device *d)
{
	uintptr_t space = ECAM + (d->v.slot << 15);
	uint32_t bar = pci_read32(d->v.slot, PCI_BAR0);

	for (int at = 0; at < 4096; at++)
		touch(space + at, random32(), 0);
	for (int at = 0; at < 2048; at++)
		touch(space + (random32() & 0xff), random32(), 1);
	for (int at = 0; at < 500; at++) /* the whole bus, and 255 that are not there */
		touch(ECAM + (random32() & 0x3ffffff), random32(), 0);
	for (int at = 0; at < 500; at++) {
		outl(0xcf8, random32() & (at % 2 ? 0x8000ffff : 0xffffffff));
		(void)inl(0xcfc + random32() % 4);
	}
	pci_write32(d->v.slot, PCI_COMMAND, 0);
	pci_write32(d->v.slot, PCI_BAR0, bar);
	pci_write32(d->v.slot, PCI_BAR0 + 4, 0);
	pci_write32(d->v.slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

/* Every register of the BAR, with every width, at every alignment. */
static void sweep_bar(struct device *d)
{
	uintptr_t bar = pci_bar(d->v.slot, 0);

	for (int at = 0; at < BAR_BYTES; at += 1 + random32() % 16) {
		touch(bar + at, random32(), 0);
		touch(bar + at, random32(), 1);
	}
	for (int i = 0; i < 1500; i++)
		touch(bar + random32() % 0x40, random32(), random32() & 1);
}

/* The table and the pending bits, vectors that are not there, and masks that flutter. */
static void break_msix(struct device *d)
{
	uintptr_t common = d->v.common, table = pci_bar(d->v.slot, 0) + MSIX_TABLE;
	static const uint16_t vectors[] = { 3, 4, 63, 64, 0x7ff, 0x800, 0xfffe };

	device_start(d);
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
		write16(common + COMMON_MSIX_CONFIG, vectors[i]);
		expect(read16(common + COMMON_MSIX_CONFIG) == NO_VECTOR, "a vector of nobody's");
	}
	virtio_enable_msix(&d->v, 0x41);
	for (int i = 0; i < 1500; i++) /* the table, and far behind it */
		touch(table + random32() % 0x2000, random32(), 1);
	for (int i = 0; i < 1000; i++) {
		write32(table + 12, i & 1);
		if (i % 50 == 0)
			pci_write32(d->v.slot, d->v.msix_cap, (i & 1 ? 3u : 2u) << 30);
	}
	pci_write32(d->v.slot, d->v.msix_cap, 0);
	expect(block_io(d, 0, 0), "request without interrupts");
}

/* As many interrupts as there are requests, as fast as they go, to a processor that takes none. */
static void interrupt_storm(struct device *d)
{
	static uint8_t byte;

	virtio_negotiate(&d->v);
	virtio_enable_msix(&d->v, 0x41);
	queue_configure(d, 0);
	write8(d->v.common + COMMON_STATUS, 0);
	virtio_negotiate(&d->v);
	write16(d->v.common + COMMON_QUEUE_SELECT, 0);
	write_address(d->v.common + COMMON_QUEUE_DESC, d->ring[0]->desc);
	write_address(d->v.common + COMMON_QUEUE_DRIVER, &d->ring[0]->avail);
	write_address(d->v.common + COMMON_QUEUE_DEVICE, &d->ring[0]->used);
	write16(d->v.common + COMMON_QUEUE_SIZE, QUEUE_SIZE);
	write16(d->v.common + COMMON_QUEUE_MSIX_VECTOR, 0);
	write16(d->v.common + COMMON_QUEUE_ENABLE, 1);
	write8(d->v.common + COMMON_STATUS, 15);
	d->ring[0]->desc[0] = (struct desc){ (uintptr_t)&byte, 1, DESC_WRITE, 0 };
	for (int i = 0; i < 1500; i++)
		expect(request(d, 0, 0) == 1, "request in the storm");
	pci_write32(d->v.slot, d->v.msix_cap, 0);
}

/* What ends the machine is what it is for; everything else is for nothing. */
static int ends_the_machine(uint32_t port)
{
	return port == 0x64 || port == 0x505 || (port >= 0x600 && port < 0x608) ||
	       (port >= 0xcf9 && port < 0xd00); /* reset, and what 0xcf8 points to */
}

static int is_console(uint32_t port)
{
	return port + 3 >= COM1 && port <= COM1 + 7;
}

static void sweep_ports(void)
{
	uint8_t masks[] = { inb(0x21), inb(0xa1) };

	for (uint32_t port = 0; port < 0xfffd; port++) {
		if (is_console(port))
			continue;
		switch (random32() % 4) {
		case 0:
			(void)inb(port);
			break;
		case 1:
			(void)inw(port);
			break;
		default:
			(void)inl(port);
		}
		if (port >= 0x1000 && port % 64)
			continue;
		if (ends_the_machine(port) || ends_the_machine(port + 1) ||
		    ends_the_machine(port + 2) || ends_the_machine(port + 3))
			continue;
		switch (random32() % 3) {
		case 0:
			outb(port, random32());
			break;
		case 1:
			outw(port, random32());
			break;
		default:
			outl(port, random32());
		}
	}
	outb(0x21, masks[0] | 0xff);
	outb(0xa1, masks[1] | 0xff);
}

/* Thousands of accesses in one instruction, and so perhaps in one exit. */
static void string_io(void)
{
	static const uint16_t ports[] = { 0x60, 0x61, 0x70, 0x71, 0x2f8, 0x2fd, 0x3e8, 0x402,
					  0xcf8, 0xcfc, 0xcfe, 0x1000 };
	static uint8_t data[4096] __attribute__((aligned(4096)));

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = i % 251;
	for (size_t i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
		void *at = data;
		uint64_t count = sizeof(data);

		__asm__ volatile("rep insb" : "+D"(at), "+c"(count) : "d"(ports[i]) : "memory");
		at = data + 2;
		count = sizeof(data) / 4 - 1;
		__asm__ volatile("rep insl" : "+D"(at), "+c"(count) : "d"(ports[i]) : "memory");
		if (ends_the_machine(ports[i]))
			continue;
		at = data;
		count = sizeof(data);
		__asm__ volatile("rep outsb" : "+S"(at), "+c"(count) : "d"(ports[i]) : "memory");
	}
}

/* From the end of memory to the end of 32 bits, without the interrupt controllers. */
static void sweep_addresses(void)
{
	for (uint64_t address = 16 << 20; address < 0xfec00000; address += 0x101000 + random32() % 64) {
		int taken = address >= BARS && address < ECAM + (64u << 20);

		touch(address, random32(), 0);
		if (!taken || (address >= BARS + (16 << 20) && address < ECAM))
			touch(address, random32(), 1);
	}
}

#endif
