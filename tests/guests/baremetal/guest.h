/* SPDX-License-Identifier: BSD-3-Clause */
/* What every bare-metal guest needs: ports, the serial line, mapped registers. */

#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

#define COM1 0x3f8
#define COM_LSR 5
#define COM_LSR_THR_EMPTY 0x20

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "d"(port) : "memory");
}

static inline void outw(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "d"(port) : "memory");
}

static inline void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "d"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "d"(port) : "memory");
	return value;
}

static inline uint16_t inw(uint16_t port)
{
	uint16_t value;
	__asm__ volatile("inw %1, %0" : "=a"(value) : "d"(port) : "memory");
	return value;
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "d"(port) : "memory");
	return value;
}

#define REGISTER(bits)                                                                       \
	static inline uint##bits##_t read##bits(uintptr_t address)                           \
	{                                                                                    \
		uint##bits##_t value;                                                        \
		__asm__ volatile("mov %1, %0"                                                \
				 : "=r"(value)                                               \
				 : "m"(*(volatile uint##bits##_t *)address)                  \
				 : "memory");                                                \
		return value;                                                                \
	}                                                                                    \
	static inline void write##bits(uintptr_t address, uint##bits##_t value)              \
	{                                                                                    \
		__asm__ volatile("mov %1, %0"                                                \
				 : "=m"(*(volatile uint##bits##_t *)address)                 \
				 : "r"(value)                                                \
				 : "memory");                                                \
	}

REGISTER(8)
REGISTER(16)
REGISTER(32)
REGISTER(64)

static inline void put_char(char c)
{
	while (!(inb(COM1 + COM_LSR) & COM_LSR_THR_EMPTY))
		;
	outb(COM1, c);
}

static inline void put(const char *text)
{
	while (*text)
		put_char(*text++);
}

static inline void put_hex(uint64_t value, int digits)
{
	while (digits--)
		put_char("0123456789abcdef"[value >> 4 * digits & 15]);
}

/* Does not return. */
void triple_fault(void) __attribute__((noreturn));

#endif
