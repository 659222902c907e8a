/* SPDX-License-Identifier: BSD-3-Clause */
/* Print a line on COM1 and reset. */

#include "guest.h"

void main(void)
{
	put("hello from the guest\n");
}
