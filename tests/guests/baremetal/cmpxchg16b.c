/* SPDX-License-Identifier: BSD-3-Clause */
/* Execute an instruction that every 64-bit kernel uses and a KVM without hardware virtualization
 * cannot emulate. */

#include "guest.h"

void main(void)
{
	static uint64_t words[2] __attribute__((aligned(16)));

	put("before\n");
	__asm__ volatile("lock cmpxchg16b %0"
			 : "+m"(words)
			 : "a"(0ull), "d"(0ull), "b"(1ull), "c"(2ull)
			 : "cc", "memory");
	put("after\n");
}
