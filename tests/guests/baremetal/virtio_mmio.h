/* SPDX-License-Identifier: BSD-3-Clause */
/* Virtio over memory-mapped registers (virtio 1.3 §4.2), as QEMU's microvm has it, behind the same
 * functions as rings.h. */

#ifndef VIRTIO_MMIO_H
#define VIRTIO_MMIO_H

#include "rings.h"

#define MMIO_BASE 0xfeb00000
#define MMIO_STRIDE 0x200
#define MMIO_SLOTS 24
#define MMIO_DEVICE_ID 0x008
#define MMIO_DEVICE_FEATURES 0x010
#define MMIO_DEVICE_FEATURES_SEL 0x014
#define MMIO_DRIVER_FEATURES 0x020
#define MMIO_DRIVER_FEATURES_SEL 0x024
#define MMIO_QUEUE_SEL 0x030
#define MMIO_QUEUE_NUM 0x038
#define MMIO_QUEUE_READY 0x044
#define MMIO_QUEUE_NOTIFY 0x050
#define MMIO_STATUS 0x070
#define MMIO_QUEUE_DESC 0x080
#define MMIO_QUEUE_DRIVER 0x090
#define MMIO_QUEUE_DEVICE 0x0a0
#define MMIO_CONFIG 0x100

/* Find the `nth` device of a type. */
static inline const char *mmio_find(struct device *d, uint32_t type, int nth, int queues)
{
	for (int slot = 0; slot < MMIO_SLOTS; slot++) {
		uintptr_t base = MMIO_BASE + slot * MMIO_STRIDE;

		if (read32(base + MMIO_DEVICE_ID) != type || nth--)
			continue;
		d->v.common = base;
		d->v.device = base + MMIO_CONFIG;
		d->queues = queues;
		for (int i = 0; i < queues; i++) {
			d->ring[i] = &rings[rings_taken++];
			d->notify[i] = base + MMIO_QUEUE_NOTIFY;
		}
		return NULL;
	}
	return "device";
}

static inline const char *mmio_start(struct device *d)
{
	uintptr_t base = d->v.common;
	uint32_t status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;

	write32(base + MMIO_STATUS, 0);
	write32(base + MMIO_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	write32(base + MMIO_DEVICE_FEATURES_SEL, 0);
	d->features &= read32(base + MMIO_DEVICE_FEATURES);
	write32(base + MMIO_DRIVER_FEATURES_SEL, 0);
	write32(base + MMIO_DRIVER_FEATURES, d->features);
	write32(base + MMIO_DRIVER_FEATURES_SEL, 1);
	write32(base + MMIO_DRIVER_FEATURES, FEATURE_VERSION_1_HIGH);
	write32(base + MMIO_STATUS, status);
	if (read32(base + MMIO_STATUS) != status)
		return "FEATURES_OK";
	for (int i = 0; i < d->queues; i++) {
		ring_clear(d->ring[i]);
		write32(base + MMIO_QUEUE_SEL, i);
		write32(base + MMIO_QUEUE_NUM, QUEUE_SIZE);
		write_address(base + MMIO_QUEUE_DESC, d->ring[i]->desc);
		write_address(base + MMIO_QUEUE_DRIVER, &d->ring[i]->avail);
		write_address(base + MMIO_QUEUE_DEVICE, &d->ring[i]->used);
		write32(base + MMIO_QUEUE_READY, 1);
	}
	write32(base + MMIO_STATUS, status | STATUS_DRIVER_OK);
	return NULL;
}

#endif
