/* SPDX-License-Identifier: BSD-3-Clause */
/* PCI configuration by ports 0xCF8 and 0xCFC, bus 0 only. */

#ifndef PCI_H
#define PCI_H

#include "guest.h"

#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4
#define PCI_BAR0 0x10
#define PCI_CAPABILITIES 0x34
#define PCI_CAP_VENDOR 0x09
#define PCI_CAP_MSIX 0x11

#define PCI_BAR_64BIT 0x4
#define PCI_WINDOW 0xe0000000

static inline uint32_t pci_read32(int slot, int offset)
{
	outl(0xcf8, 0x80000000u | slot << 11 | (offset & 0xfc));
	return inl(0xcfc);
}

static inline void pci_write32(int slot, int offset, uint32_t value)
{
	outl(0xcf8, 0x80000000u | slot << 11 | (offset & 0xfc));
	outl(0xcfc, value);
}

static inline uint16_t pci_read16(int slot, int offset)
{
	return pci_read32(slot, offset) >> 8 * (offset & 2);
}

static inline uint8_t pci_read8(int slot, int offset)
{
	return pci_read32(slot, offset) >> 8 * (offset & 3);
}

/* The slot of the first function with this id, or -1. */
static inline int pci_find(uint16_t vendor, uint16_t device)
{
	for (int slot = 0; slot < 32; slot++) {
		if (pci_read32(slot, 0) == ((uint32_t)device << 16 | vendor))
			return slot;
	}
	return -1;
}

/* Where a memory BAR lies. One that the firmware left empty gets a place of its own size. */
static inline uintptr_t pci_bar(int slot, int bar)
{
	static uintptr_t next = PCI_WINDOW;
	int offset = PCI_BAR0 + 4 * bar;
	uint32_t low = pci_read32(slot, offset), size;
	uint64_t address = low & ~0xfu;

	if (low & PCI_BAR_64BIT)
		address |= (uint64_t)pci_read32(slot, offset + 4) << 32;
	if (address)
		return address;
	pci_write32(slot, offset, 0xffffffff);
	size = -(pci_read32(slot, offset) & ~0xfu);
	next = (next + size - 1) & -(uintptr_t)size;
	address = next;
	next += size;
	pci_write32(slot, offset, address);
	if (low & PCI_BAR_64BIT)
		pci_write32(slot, offset + 4, 0);
	return address;
}

#endif
