/* SPDX-License-Identifier: BSD-3-Clause */
/* One attack for each letter from COM1; after each of them the devices must work: the others as
 * they are, the one that was attacked after a reset. A dot is answered with a dot. */

#include "attack_devices.h"
#include "attack_queues.h"
#include "attack_registers.h"

#define COM_MCR 4
#define COM_MCR_DTR_RTS 3
#define COM_LSR_DATA_READY 1

static struct device victim, other, rng, balloon, console, vsock, net;

static const struct {
	struct device *device;
	const char *name;
	uint16_t id;
	int nth, queues;
} devices[] = {
	{ &victim, "block:0", 0x1042, 0, 1 }, { &other, "block:1", 0x1042, 1, 1 },
	{ &rng, "rng", 0x1044, 0, 1 },	      { &balloon, "balloon", 0x1045, 0, 1 },
	{ &console, "console", 0x1043, 0, 2 }, { &vsock, "vsock", 0x1053, 0, 3 },
	{ &net, "net", 0x1041, 0, 2 },
};
#define NET 6
#define DEVICES (sizeof(devices) / sizeof(devices[0]))

static size_t found;

static uint8_t get(void)
{
	while (!(inb(COM1 + COM_LSR) & COM_LSR_DATA_READY))
		;
	return inb(COM1);
}

/* Write the sector that `check` reads. */
static void restore(struct device *d, uint8_t value)
{
	for (int i = 0; i < 512; i++)
		block_data[i] = value;
	expect(block_io(d, 1, 1), "sector 1 as it was");
}

static void attack(uint8_t key)
{
	switch (key) {
	case 'a':
		move_rings(&victim);
		break;
	case 'b':
		jump_avail(&victim);
		break;
	case 'c':
		malformed_chains(&victim);
		break;
	case 'd':
		rings_as_buffers(&victim, &balloon);
		break;
	case 'e':
		break_negotiation(&victim);
		break;
	case 'f':
		reset_in_flight(&victim);
		break;
	case 'g':
		kick_storm(&victim);
		break;
	case 'h':
		sweep_configuration(&victim);
		break;
	case 'i':
		sweep_bar(&victim);
		break;
	case 'j':
		break_msix(&victim);
		break;
	case 'k':
		interrupt_storm(&rng);
		break;
	case 'l':
		sweep_ports();
		break;
	case 'm':
		sweep_addresses();
		break;
	case 'n':
		overlapping_sums(&rng);
		break;
	case 'o':
		inflate_rings(&balloon, &victim);
		break;
	case 'p':
		flood_console(&console);
		break;
	case 'r':
		lie_about_credit(&vsock);
		break;
	case 's':
		race(&victim);
		break;
	case 't':
		write_qcow2_header(&victim);
		break;
	case 'u':
		print_sector_0(&victim);
		break;
	case 'y':
		for (size_t i = 0; i < found; i++)
			act_at_random(devices[i].device,
				      devices[i].device == &balloon ? DATA / PAGE : 0, 40);
		device_start(&other);
		device_start(&rng);
		device_start(&victim);
		restore(&other, 0x21);
		restore(&victim, 0x11);
		break;
	case 'x':
		string_io();
		break;
	case 'w':
		absurd_frames(&net);
		break;
	case 'v':
		hammer_for_ever(&victim);
		break;
	default:
		expect(0, "no such attack");
	}
}

/* The others work without a reset, the victim after one. */
static void check(void)
{
	expect(block_io(&other, 0, 1) && block_data[0] == 0x21, "block:1");
	expect(rng_works(&rng), "rng");
	expect(!device_start(&victim) && block_io(&victim, 0, 1) && block_data[0] == 0x11,
	       "block:0 after a reset");
	for (size_t i = 3; i < found; i++)
		expect(!device_start(devices[i].device), devices[i].name);
}

void main(void)
{
	uint8_t key;

	outb(COM1 + COM_MCR, COM_MCR_DTR_RTS); /* ready to receive */
	for (found = 0; found < DEVICES; found++) {
		struct device *d = devices[found].device;
		const char *missing = device_find(d, devices[found].id, devices[found].nth,
						  devices[found].queues);

		if (missing && found == NET) /* the only one that may be missing */
			break;
		expect(!missing && !device_start(d), devices[found].name);
	}
	put(failures ? "not ready\n" : "ready\n");
	while ((key = get()) != 'q') {
		if (key != '.') {
			failures = 0;
			attack(key);
			check();
			put(failures ? "failed " : "passed ");
			put_char(key);
			put("\n");
		} else {
			put(".");
		}
	}
	put("bye\n");
}
