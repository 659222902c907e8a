/* SPDX-License-Identifier: BSD-3-Clause */
/* Print the watchdog's registers, and do what a byte from COM1 says:
 *
 *   h  start the watchdog with a second, and hang;
 *   p  the same, after it has reported a panic;
 *   f  start it with two seconds, and ping as fast as possible until the next byte; then stop it;
 *   a  write every kind of value to every register, in every width, and stop it;
 *   q  reset the machine.
 */

#include "guest.h"

#define COM_MCR 4
#define COM_MCR_DTR_RTS 3
#define COM_LSR_DATA_READY 1

#define PVPANIC 0x505
#define PVPANIC_PANICKED 1

#define REGISTERS 0xfea00060u
#define REGISTERS_BYTES 20
#define CONTROL 0
#define COUNTDOWN 4
#define PING 12
#define STATUS 16
#define RUNNING 1
#define SECOND 10

static int has_key(void)
{
	return inb(COM1 + COM_LSR) & COM_LSR_DATA_READY;
}

static uint8_t get(void)
{
	while (!has_key())
		;
	return inb(COM1);
}

static void start(uint32_t periods)
{
	write32(REGISTERS + COUNTDOWN, periods);
	write32(REGISTERS + CONTROL, RUNNING);
}

static void stop(void)
{
	write32(REGISTERS + CONTROL, 0);
}

static void show(void)
{
	put("control=");
	put_hex(read32(REGISTERS + CONTROL), 8);
	put(" countdown=");
	put_hex(read32(REGISTERS + COUNTDOWN), 8);
	put(" status=");
	put_hex(read32(REGISTERS + STATUS), 8);
	put(" end\n");
}

static void ping_until_key(void)
{
	start(2 * SECOND);
	put("pings\n");
	while (!has_key())
		write32(REGISTERS + PING, 1);
	stop();
	get();
	put("stopped\n");
}

static void attack(void)
{
	static const uint64_t values[] = {0, 1, SECOND, 0x80000000, 0xffffffff, ~0ull};

	for (unsigned round = 0; round < 20; round++)
		for (uintptr_t at = REGISTERS; at < REGISTERS + REGISTERS_BYTES; at++)
			for (unsigned i = 0; i < sizeof(values) / sizeof(*values); i++) {
				write8(at, values[i]);
				write16(at, values[i]);
				write32(at, values[i]);
				write64(at, values[i]);
				read64(at);
			}
	stop();
	put("attacked\n");
}

void main(void)
{
	outb(COM1 + COM_MCR, COM_MCR_DTR_RTS);
	show();
	for (;;)
		switch (get()) {
		case 'p':
			outb(PVPANIC, PVPANIC_PANICKED);
			/* fall through */
		case 'h':
			start(SECOND);
			for (;;)
				__asm__ volatile("cli; hlt");
		case 'f':
			ping_until_key();
			break;
		case 'a':
			attack();
			break;
		case 'q':
			return;
		}
}
