/* SPDX-License-Identifier: BSD-3-Clause */
/* Find the first virtio block device over PCI, read its first sectors with MSI-X, print them. */

#include "virtio_pci.h"

#define VIRTIO_BLOCK 0x1042
#define VECTOR 0x41
#define SECTOR_BYTES 512
#define BLK_T_IN 0

static struct {
	uint32_t type, reserved;
	uint64_t sector;
} header;
static uint8_t data[SECTOR_BYTES];
static volatile uint8_t status;

static uint32_t read_sector(struct virtio *v, uint64_t sector)
{
	header.type = BLK_T_IN;
	header.sector = sector;
	status = 0xff;
	desc_table[0] = (struct desc){ (uintptr_t)&header, sizeof(header), DESC_NEXT, 1 };
	desc_table[1] = (struct desc){ (uintptr_t)data, sizeof(data), DESC_NEXT | DESC_WRITE, 2 };
	desc_table[2] = (struct desc){ (uintptr_t)&status, 1, DESC_WRITE, 0 };
	return virtio_request(v, 0);
}

static void print_sector(uint64_t sector, uint32_t written)
{
	uint32_t sum = 0;

	for (int i = 0; i < SECTOR_BYTES; i++)
		sum = sum * 31 + data[i];
	put("sector ");
	put_hex(sector, 1);
	put(": status ");
	put_hex(status, 2);
	put(" written ");
	put_hex(written, 4);
	put(" data ");
	for (int i = 0; i < 8; i++)
		put_hex(data[i], 2);
	put(" sum ");
	put_hex(sum, 8);
	put("\n");
}

static const char *run(void)
{
	struct virtio v = { .slot = pci_find(VIRTIO_VENDOR, VIRTIO_BLOCK) };
	const char *missing;
	uint64_t capacity;

	if (v.slot < 0)
		return "device";
	missing = virtio_find_parts(&v);
	if (missing)
		return missing;
	pci_write32(v.slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	enable_interrupt(VECTOR);
	virtio_enable_msix(&v, VECTOR);
	missing = virtio_negotiate(&v);
	if (missing)
		return missing;
	missing = virtio_start(&v);
	if (missing)
		return missing;
	capacity = read32(v.device) | (uint64_t)read32(v.device + 4) << 32;
	put("capacity ");
	put_hex(capacity, 8);
	put("\n");
	for (uint64_t sector = 0; sector < 3; sector++)
		print_sector(sector, read_sector(&v, sector));
	return NULL;
}

void main(void)
{
	const char *missing = run();

	put("pci_block: ");
	if (missing) {
		put("no ");
		put(missing);
	} else {
		put("interrupts ");
		put_hex(interrupts, 1);
	}
	put("\n");
}
