# SPDX-License-Identifier: BSD-3-Clause
"""Guests ready to run: a folder with a kernel, an initrd, a root image and a description of them.

``description`` reads such a folder. ``make`` makes one from Debian packages: ``apt`` downloads
them, ``deb`` and ``modules`` extract files from them, ``initrd`` and ``root`` make the images. A
run without such a folder imports nothing of this.
"""
