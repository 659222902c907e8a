/* SPDX-License-Identifier: BSD-3-Clause */
/* Attacks on what is behind the queues: the kinds of devices, and memory that changes in between. */

#ifndef ATTACK_DEVICES_H
#define ATTACK_DEVICES_H

#include "attack_queues.h"

#define MEMORY_BYTES (16u << 20)
#define AP_GPA 0x80000

/* More bytes than there is memory, from the same few megabytes again and again. */
static void overlapping_sums(struct device *rng)
{
	struct ring *r = rng->ring[0];

	for (int i = 0; i < QUEUE_SIZE; i++) /* 7 x 8 MiB, far from the program */
		r->desc[i] = (struct desc){ 4 << 20, 8 << 20, DESC_WRITE | (i < 7 ? DESC_NEXT : 0),
					    i + 1 };
	for (int i = 0; i < 3; i++)
		expect(request(rng, 0, 0) > 0, "entropy for all of memory");
}

/* Inflate the balloon with the page where its own ring is, and with the ring of a disk. */
static void inflate_rings(struct device *balloon, struct device *disk)
{
	static volatile uint32_t pages[2];

	block_io(disk, 0, 0);
	pages[0] = (uintptr_t)disk->ring[0] / PAGE;
	pages[1] = (uintptr_t)balloon->ring[0] / PAGE;
	balloon->ring[0]->desc[0] = (struct desc){ (uintptr_t)pages, sizeof(pages), 0, 0 };
	offer(balloon, 0, 0);
	while (disk->ring[0]->avail.idx) /* until the page is gone */
		;
	write16(disk->notify[0], 0);
	while (!(device_status(disk) & NEEDS_RESET))
		;
	for (int i = 0; i < 2000; i++)
		write16(balloon->notify[0], 0);
	device_start(balloon);
	for (uint32_t page = 0; page < 100; page++) { /* pages that are none */
		pages[0] = MEMORY_BYTES / PAGE + page * 0x1000003;
		pages[1] = 0xffffffff - page;
		balloon->ring[0]->desc[0] = (struct desc){ (uintptr_t)pages, sizeof(pages), 0, 0 };
		expect(request(balloon, 0, 0) == 0, "pages that are none");
	}
}

/* Output without an end, for somebody who does not read. */
static void flood_console(struct device *console)
{
	struct ring *r = console->ring[1];

	for (int i = 0; i < QUEUE_SIZE; i++)
		r->desc[i] = (struct desc){ 4 << 20, 1 << 20, i < 7 ? DESC_NEXT : 0, i + 1 };
	for (int i = 0; i < 12; i++)
		expect(request(console, 1, 0) >= 0, "a console that is flooded");
}

/* Packets of every kind with lies about lengths, addresses and credit. */
static void lie_about_credit(struct device *vsock)
{
	static volatile struct {
		uint64_t src_cid, dst_cid;
		uint32_t src_port, dst_port, len;
		uint16_t type, op;
		uint32_t flags, buf_alloc, fwd_cnt;
	} __attribute__((packed)) packet;
	static volatile uint8_t answers[QUEUE_SIZE][128];
	struct ring *rx = vsock->ring[0], *tx = vsock->ring[1];

	for (int i = 0; i < 300; i++) {
		packet.src_cid = i % 9 ? 3 : random32();
		packet.dst_cid = i % 11 ? 2 : random32();
		packet.src_port = random32() % 4;
		packet.dst_port = random32() % 4;
		packet.len = i % 3 ? 0 : random32();
		packet.type = i % 7 ? 1 + random32() % 2 : random32();
		packet.op = random32() % 9;
		packet.flags = random32();
		packet.buf_alloc = i % 2 ? random32() : 0;
		packet.fwd_cnt = random32();
		for (int j = 0; i % QUEUE_SIZE == 0 && j < QUEUE_SIZE; j++) {
			rx->desc[j] = (struct desc){ (uintptr_t)answers[j], random32() % 128,
						     DESC_WRITE, 0 };
			if ((uint16_t)(rx->avail.idx - rx->used.idx) < QUEUE_SIZE)
				offer(vsock, 0, j);
		}
		tx->desc[0] = (struct desc){ (uintptr_t)&packet, i % 5 ? 44 : random32() % 60, 0, 0 };
		offer(vsock, 1, 0);
		/* Nobody may be left to take its answers: such a device waits for buffers. */
		for (int spin = 0; spin < 50 && tx->used.idx != tx->avail.idx; spin++)
			(void)device_status(vsock);
		if (tx->used.idx != tx->avail.idx || device_status(vsock) & NEEDS_RESET)
			device_start(vsock);
	}
}

/* Frames for a TAP of the host with offloads that make no sense, of every length. */
static void absurd_frames(struct device *net)
{
	static volatile struct {
		uint8_t flags, gso_type;
		uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
		uint8_t frame[1500];
	} __attribute__((packed)) packet;
	static const uint8_t gso_types[] = { 0, 1, 3, 4, 5, 0x81, 0x84, 0xff };
	struct ring *tx = net->ring[1];

	net->features = 0x7fff; /* checksums and segmentation of every sort */
	device_start(net);
	for (int i = 0; i < 400; i++) {
		packet.flags = random32() % 8;
		packet.gso_type = gso_types[random32() % sizeof(gso_types)];
		packet.hdr_len = i % 3 ? random32() % 100 : random32();
		packet.gso_size = i % 5 ? random32() % 2000 : random32();
		packet.csum_start = i % 2 ? random32() % 60 : random32();
		packet.csum_offset = i % 2 ? random32() % 20 : random32();
		for (int j = 0; j < 64; j++)
			packet.frame[j] = random32();
		packet.frame[12] = i % 3 ? 0x08 : 0x86; /* IPv4 or IPv6 */
		packet.frame[13] = i % 3 ? 0x00 : 0xdd;
		packet.frame[14] = i % 3 ? 0x45 : 0x60;
		tx->desc[0] = (struct desc){ (uintptr_t)&packet, random32() % 1512, DESC_NEXT, 1 };
		tx->desc[1] = (struct desc){ 4 << 20, i % 4 ? 0 : random32() % 70000, 0, 0 };
		expect(request(net, 1, 0) == 0, "a frame");
	}
	act_at_random(net, 0, 100);
	net->features = 0;
}

/* What other programs would take for an image with files behind it. */
static void write_qcow2_header(struct device *d)
{
	static const uint8_t header[] = { 'Q', 'F', 'I', 0xfb, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 104,
					  0,   0,   0,	 11,   0, 0, 0, 16 };
	static const char backing[] = "/etc/passwd";

	for (size_t i = 0; i < sizeof(header); i++)
		block_data[i] = header[i];
	for (size_t i = 0; i < sizeof(backing); i++)
		block_data[104 + i] = backing[i];
	expect(block_io(d, 1, 0), "sector 0");
}

static void print_sector_0(struct device *d)
{
	expect(block_io(d, 0, 0), "sector 0");
	put("capacity ");
	put_hex(read32(d->v.device), 8);
	put(" sector ");
	for (int i = 0; i < 8; i++)
		put_hex(block_data[i], 2);
	put("\n");
}

/* The second processor: it changes what the first one has just handed over, all the time. */

extern const uint8_t ap_start[], ap_end[];
extern volatile uint64_t ap_cr3;
static volatile int ap_state; /* 1 running, 2 to stop, 3 stopped */
static struct device *volatile ap_victim;

static void change_requests(void)
{
	struct ring *r = ap_victim->ring[0];
	volatile struct desc *desc = (volatile struct desc *)r->desc;

	for (uint32_t i = 0; ap_state == 1; i++) {
		desc[1].len = i & 1 ? 512 : 0xffffffff;
		desc[1].addr = i & 2 ? (uintptr_t)block_data : (uintptr_t)r;
		desc[1].flags = i & 4 ? DESC_NEXT | DESC_WRITE : DESC_NEXT;
		desc[2].next = i;
		desc[2].flags = i & 8 ? DESC_WRITE : DESC_WRITE | DESC_NEXT;
		desc[0].next = i & 16 ? 1 : 0;
		block_header.sector = i & 1 ? 3 : ~0ull;
		block_header.type = i & 2 ? 0 : 8;
		if (i % 64 == 0)
			r->avail.ring[i / 64 % QUEUE_SIZE] = i % 3 ? 0 : 0xffff;
		if (i % 1024 == 0)
			r->avail.idx += 3;
	}
}

/* What is dear: each turn of these registers makes KVM change its tables. */
static void toggle(void)
{
	int slot = ap_victim->v.slot, cap = ap_victim->v.msix_cap;

	virtio_enable_msix(&ap_victim->v, 0x41);
	for (uint32_t i = 0;; i++) {
		pci_write32(slot, PCI_COMMAND, i & 1 ? PCI_COMMAND_MEMORY : 6);
		pci_write32(slot, cap, (i & 2 ? 3u : 2u) << 30);
	}
}

/* Registers of every sort, without an end: each access is an exit, and takes the devices' lock. */
static void hammer(void)
{
	uintptr_t common = ap_victim->v.common;

	for (uint32_t i = 0;; i++) {
		write32(common + COMMON_DRIVER_FEATURE_SELECT, i);
		(void)read8(common + COMMON_STATUS);
		(void)pci_read32(ap_victim->v.slot, 0);
		(void)inb(0x71);
	}
}

static void (*ap_job)(void);

void ap_main(void)
{
	ap_state = 1;
	ap_job();
	ap_state = 3;
}

/* Start the second processor on a job. */
static void start_ap(struct device *victim, void (*job)(void))
{
	uint64_t cr3;

	ap_state = 0;
	ap_victim = victim;
	ap_job = job;
	__asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
	ap_cr3 = cr3;
	for (int i = 0; i < ap_end - ap_start; i++)
		write8(AP_GPA + i, ap_start[i]);
	write32(LAPIC + LAPIC_SPURIOUS, LAPIC_ENABLED | SPURIOUS_VECTOR);
	write32(LAPIC + LAPIC_ICR_HIGH, 1u << 24);
	write32(LAPIC + LAPIC_ICR_LOW, 0x4500); /* INIT */
	write32(LAPIC + LAPIC_ICR_LOW, 0x4600 | AP_GPA / PAGE); /* start-up */
	while (ap_state != 1)
		;
}

static void race(struct device *d)
{
	int resets = 0;

	device_start(d);
	start_ap(d, change_requests);
	for (int i = 0; i < 1000; i++) {
		struct ring *r = d->ring[0];

		block_describe(d, 0, 3);
		offer(d, 0, 0);
		if ((uint16_t)(r->avail.idx - r->used.idx) < QUEUE_SIZE)
			continue;
		for (int spin = 0; spin < 20 && !(device_status(d) & NEEDS_RESET); spin++)
			;
		if (device_status(d) & NEEDS_RESET) {
			resets++;
			device_start(d);
		}
	}
	ap_state = 2;
	while (ap_state != 3)
		;
	expect(resets > 0, "a race that was noticed");
}

/* Both processors; it does not return. */
static void hammer_for_ever(struct device *d)
{
	start_ap(d, toggle);
	put("hammering\n");
	hammer();
}

#endif
