/* SPDX-License-Identifier: BSD-3-Clause */
/* Print a line on COM1, then raise an exception that nothing can handle. */

#include "guest.h"

void main(void)
{
	put("about to fault\n");
	triple_fault();
}
