/* SPDX-License-Identifier: BSD-3-Clause */
/* Several virtio-pci devices at once, each with rings of its own that the guest polls. */

#ifndef RINGS_H
#define RINGS_H

#include "virtio_pci.h"

#define PAGE 4096
#define RINGS 12
#define MAX_QUEUES 3

/* Each on a page of its own, so that a balloon can take one away. */
static struct ring {
	struct desc desc[QUEUE_SIZE];
	volatile struct avail avail __attribute__((aligned(4)));
	volatile struct used used __attribute__((aligned(4)));
} __attribute__((aligned(PAGE))) rings[RINGS];
static int rings_taken;

struct device {
	struct virtio v;
	int queues;
	uint32_t features; /* that it takes if they are on offer */
	struct ring *ring[MAX_QUEUES];
	uintptr_t notify[MAX_QUEUES];
};

static inline uint8_t device_status(struct device *d)
{
	return read8(d->v.common + COMMON_STATUS);
}

/* Find the `nth` device of a kind. Returns what is missing, or NULL. */
static inline const char *device_find(struct device *d, uint16_t id, int nth, int queues)
{
	const char *missing;

	for (d->v.slot = 0; d->v.slot < 32; d->v.slot++) {
		if (pci_read32(d->v.slot, 0) == ((uint32_t)id << 16 | VIRTIO_VENDOR) && !nth--)
			break;
	}
	if (d->v.slot == 32)
		return "device";
	missing = virtio_find_parts(&d->v);
	d->queues = queues;
	for (int i = 0; i < queues; i++)
		d->ring[i] = &rings[rings_taken++];
	return missing;
}

static inline void ring_clear(struct ring *r)
{
	for (unsigned i = 0; i < sizeof(*r) / 8; i++)
		((volatile uint64_t *)r)[i] = 0;
}

static inline void queue_configure(struct device *d, int index)
{
	uintptr_t common = d->v.common;
	struct ring *r = d->ring[index];

	ring_clear(r);
	write16(common + COMMON_QUEUE_SELECT, index);
	write16(common + COMMON_QUEUE_SIZE, QUEUE_SIZE);
	write16(common + COMMON_QUEUE_MSIX_VECTOR, NO_VECTOR);
	write_address(common + COMMON_QUEUE_DESC, r->desc);
	write_address(common + COMMON_QUEUE_DRIVER, &r->avail);
	write_address(common + COMMON_QUEUE_DEVICE, &r->used);
	d->notify[index] =
		d->v.notify + read16(common + COMMON_QUEUE_NOTIFY_OFF) * d->v.notify_multiplier;
	write16(common + COMMON_QUEUE_ENABLE, 1);
}

/* Reset the device and start it with all of its queues. */
static inline const char *device_start(struct device *d)
{
	const char *missing;

	pci_write32(d->v.slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	missing = virtio_negotiate_features(&d->v, d->features);
	if (missing)
		return missing;
	for (int i = 0; i < d->queues; i++)
		queue_configure(d, i);
	write8(d->v.common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER |
						    STATUS_FEATURES_OK | STATUS_DRIVER_OK);
	return NULL;
}

/* Offer a chain, and kick. */
static inline void offer(struct device *d, int index, uint16_t head)
{
	struct ring *r = d->ring[index];
	uint16_t idx = r->avail.idx;

	r->avail.ring[idx % QUEUE_SIZE] = head;
	__asm__ volatile("" : : : "memory");
	r->avail.idx = idx + 1;
	write16(d->notify[index], index);
}

/* Wait until everything that was offered is used, or until the device gives up. */
static inline int drain(struct device *d, int index)
{
	struct ring *r = d->ring[index];

	while (r->used.idx != r->avail.idx) {
		if (device_status(d) & 0x40)
			return 0;
	}
	return 1;
}

/* Returns the used length of the chain, or -1 when the device gave up. */
static inline int64_t request(struct device *d, int index, uint16_t head)
{
	struct ring *r = d->ring[index];
	uint16_t at = r->used.idx;

	offer(d, index, head);
	if (!drain(d, index))
		return -1;
	return r->used.ring[at % QUEUE_SIZE].len;
}

/* Block devices. */

struct block_header {
	uint32_t type, reserved;
	uint64_t sector;
};
static volatile struct block_header block_header;
static volatile uint8_t block_data[512];
static volatile uint8_t block_status;

static inline void block_describe(struct device *d, uint32_t type, uint64_t sector)
{
	struct desc *desc = d->ring[0]->desc;

	block_header.type = type;
	block_header.sector = sector;
	block_status = 0xee;
	desc[0] = (struct desc){ (uintptr_t)&block_header, 16, DESC_NEXT, 1 };
	desc[1] = (struct desc){ (uintptr_t)block_data, sizeof(block_data),
				 DESC_NEXT | (type ? 0 : DESC_WRITE), 2 };
	desc[2] = (struct desc){ (uintptr_t)&block_status, 1, DESC_WRITE, 0 };
}

/* Read (0) or write (1) a sector; returns whether it worked. */
static inline int block_io(struct device *d, uint32_t type, uint64_t sector)
{
	block_describe(d, type, sector);
	return request(d, 0, 0) >= 1 && block_status == 0;
}

static inline int rng_works(struct device *d)
{
	static uint8_t bytes[32];

	d->ring[0]->desc[0] = (struct desc){ (uintptr_t)bytes, sizeof(bytes), DESC_WRITE, 0 };
	return request(d, 0, 0) == sizeof(bytes);
}

#endif
