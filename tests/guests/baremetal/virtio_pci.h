/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver's side of virtio-pci (virtio 1.3 §4.1) and of a split queue, for one device. */

#ifndef VIRTIO_PCI_H
#define VIRTIO_PCI_H

#include "interrupt.h"
#include "pci.h"

#define VIRTIO_VENDOR 0x1af4

#define CAP_COMMON 1
#define CAP_NOTIFY 2
#define CAP_DEVICE 4

#define COMMON_DEVICE_FEATURE_SELECT 0x00
#define COMMON_DEVICE_FEATURE 0x04
#define COMMON_DRIVER_FEATURE_SELECT 0x08
#define COMMON_DRIVER_FEATURE 0x0c
#define COMMON_MSIX_CONFIG 0x10
#define COMMON_STATUS 0x14
#define COMMON_QUEUE_SELECT 0x16
#define COMMON_QUEUE_SIZE 0x18
#define COMMON_QUEUE_MSIX_VECTOR 0x1a
#define COMMON_QUEUE_ENABLE 0x1c
#define COMMON_QUEUE_NOTIFY_OFF 0x1e
#define COMMON_QUEUE_DESC 0x20
#define COMMON_QUEUE_DRIVER 0x28
#define COMMON_QUEUE_DEVICE 0x30

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8

#define FEATURE_VERSION_1_HIGH 1 /* bit 32 */

#define NO_VECTOR 0xffff
#ifndef QUEUE_SIZE
#define QUEUE_SIZE 8
#endif

#define DESC_NEXT 1
#define DESC_WRITE 2

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct avail {
	uint16_t flags, idx, ring[QUEUE_SIZE], used_event;
};

struct used {
	uint16_t flags, idx;
	struct {
		uint32_t id, len;
	} ring[QUEUE_SIZE];
	uint16_t avail_event;
};

static struct desc desc_table[QUEUE_SIZE] __attribute__((aligned(16)));
static volatile struct avail avail __attribute__((aligned(2)));
static volatile struct used used __attribute__((aligned(4)));

struct virtio {
	int slot;
	uintptr_t common, device, notify;
	uint32_t notify_multiplier;
	int msix_cap;
};

/* Find where the parts of the device are. Returns what is missing, or NULL. */
static inline const char *virtio_find_parts(struct virtio *v)
{
	uintptr_t *parts[] = { [CAP_COMMON] = &v->common, [CAP_NOTIFY] = &v->notify,
			       [CAP_DEVICE] = &v->device };

	for (int cap = pci_read8(v->slot, PCI_CAPABILITIES); cap; cap = pci_read8(v->slot, cap + 1)) {
		int id = pci_read8(v->slot, cap), type = pci_read8(v->slot, cap + 3);

		if (id == PCI_CAP_MSIX)
			v->msix_cap = cap;
		if (id != PCI_CAP_VENDOR || type > CAP_DEVICE || !parts[type] || *parts[type])
			continue;
		*parts[type] = pci_bar(v->slot, pci_read8(v->slot, cap + 4)) +
			       pci_read32(v->slot, cap + 8);
		if (type == CAP_NOTIFY)
			v->notify_multiplier = pci_read32(v->slot, cap + 16);
	}
	if (!v->common || !v->notify || !v->device)
		return "virtio capabilities";
	return v->msix_cap ? NULL : "MSI-X capability";
}

/* Point table entry 0 of MSI-X at `vector` of this processor, and turn MSI-X on. */
static inline void virtio_enable_msix(struct virtio *v, int vector)
{
	uint32_t table = pci_read32(v->slot, v->msix_cap + 4);
	uintptr_t entry = pci_bar(v->slot, table & 7) + (table & ~7u);
	uint32_t control = pci_read32(v->slot, v->msix_cap);

	write32(entry, LAPIC | (read32(LAPIC + LAPIC_ID) >> 24) << 12);
	write32(entry + 4, 0);
	write32(entry + 8, vector);
	write32(entry + 12, 0); /* not masked */
	pci_write32(v->slot, v->msix_cap, control | 1u << 31);
}

/* Negotiate what the device offers of `features` (bits 0 to 31), and VIRTIO_F_VERSION_1. */
static inline const char *virtio_negotiate_features(struct virtio *v, uint32_t features)
{
	write8(v->common + COMMON_STATUS, 0);
	while (read8(v->common + COMMON_STATUS))
		;
	write8(v->common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	write32(v->common + COMMON_DEVICE_FEATURE_SELECT, 1);
	if (!(read32(v->common + COMMON_DEVICE_FEATURE) & FEATURE_VERSION_1_HIGH))
		return "VIRTIO_F_VERSION_1";
	write32(v->common + COMMON_DEVICE_FEATURE_SELECT, 0);
	features &= read32(v->common + COMMON_DEVICE_FEATURE);
	write32(v->common + COMMON_DRIVER_FEATURE_SELECT, 0);
	write32(v->common + COMMON_DRIVER_FEATURE, features);
	write32(v->common + COMMON_DRIVER_FEATURE_SELECT, 1);
	write32(v->common + COMMON_DRIVER_FEATURE, FEATURE_VERSION_1_HIGH);
	write8(v->common + COMMON_STATUS,
	       STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
	if (!(read8(v->common + COMMON_STATUS) & STATUS_FEATURES_OK))
		return "FEATURES_OK";
	return NULL;
}

static inline const char *virtio_negotiate(struct virtio *v)
{
	return virtio_negotiate_features(v, 0);
}

static inline void write_address(uintptr_t at, const volatile void *address)
{
	write32(at, (uint32_t)(uintptr_t)address);
	write32(at + 4, (uintptr_t)address >> 32);
}

/* Set queue 0 up with MSI-X table entry 0 and start the device. */
static inline const char *virtio_start(struct virtio *v)
{
	uintptr_t common = v->common;

	write16(common + COMMON_MSIX_CONFIG, NO_VECTOR);
	write16(common + COMMON_QUEUE_SELECT, 0);
	if (read16(common + COMMON_QUEUE_SIZE) < QUEUE_SIZE)
		return "queue";
	write16(common + COMMON_QUEUE_SIZE, QUEUE_SIZE);
	write16(common + COMMON_QUEUE_MSIX_VECTOR, 0);
	if (read16(common + COMMON_QUEUE_MSIX_VECTOR) != 0)
		return "vector";
	write_address(common + COMMON_QUEUE_DESC, desc_table);
	write_address(common + COMMON_QUEUE_DRIVER, &avail);
	write_address(common + COMMON_QUEUE_DEVICE, &used);
	v->notify += read16(common + COMMON_QUEUE_NOTIFY_OFF) * v->notify_multiplier;
	write16(common + COMMON_QUEUE_ENABLE, 1);
	write8(common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK |
					       STATUS_DRIVER_OK);
	return NULL;
}

/* Offer the chain at descriptor `head`, ring, and sleep until the device gave it back and its
 * interrupt came. */
static inline uint32_t virtio_request(struct virtio *v, uint16_t head)
{
	uint16_t before = used.idx, idx = avail.idx;
	uint32_t taken = interrupts;

	avail.ring[idx % QUEUE_SIZE] = head;
	__asm__ volatile("" : : : "memory"); /* stores are not reordered on x86 */
	avail.idx = idx + 1;
	write16(v->notify, 0);
	while (used.idx == before || interrupts == taken)
		wait_for_interrupt();
	return used.ring[before % QUEUE_SIZE].len;
}

#endif
