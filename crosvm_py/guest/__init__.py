# SPDX-License-Identifier: BSD-3-Clause
"""Guests ready to run: a folder with a kernel, an initrd, a root image and a description of them.

``description`` reads such a folder, ``make`` makes one from Debian packages: ``apt`` downloads,
``deb`` and ``modules`` take out what is needed, ``initrd`` and ``root`` put it together. Nothing
here is imported by a run without such a folder.
"""
