// SPDX-License-Identifier: BSD-3-Clause
//! Guest memory. The guest may change each byte at any time, so no function returns a reference to
//! it: values are copied out once, or stored. Only the kernel reads and writes it in place.
//!
//! This file and `sys.rs` are the only ones with `unsafe`.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

use crate::sys::IoVec;

/// The size of a page in the dirty bitmap.
pub const PAGE_BYTES: u64 = 4096;

/// A part of guest memory that is mapped in this process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Its first guest-physical address.
    pub gpa: u64,
    /// How many bytes it has.
    pub size_bytes: u64,
    /// Where it is mapped.
    pub base: *mut u8,
    /// A byte for each of its blocks, which is not 0 while the block is there; null if all of the
    /// region always is. Another process changes them at any time.
    pub blocks: *const AtomicU8,
    /// The size of a block; 0 without blocks.
    pub block_bytes: u64,
}

impl Region {
    /// Whether the addresses from `gpa` to `end` are in this region, and there now.
    fn has(&self, gpa: u64, end: u64) -> bool {
        if gpa < self.gpa || end > self.gpa + self.size_bytes {
            return false;
        }
        if self.block_bytes == 0 {
            return true;
        }
        let first = (gpa - self.gpa) / self.block_bytes;
        let blocks = (self.size_bytes / self.block_bytes).min(
            // An empty buffer is where its address is.
            (end.max(gpa + 1) - 1 - self.gpa) / self.block_bytes + 1,
        );
        (first..blocks).all(|block| {
            // SAFETY: `GuestMemory::new` was promised a byte for each block of the region.
            unsafe { &*self.blocks.add(block as usize) }.load(Ordering::Acquire) != 0
        })
    }
}

/// One bit for each page of guest-physical memory from address 0 on.
struct DirtyBitmap {
    words: *const AtomicU64,
    count: u64,
}

/// All of a guest's memory.
pub struct GuestMemory {
    regions: Vec<Region>,
    dirty: Option<DirtyBitmap>,
}

// SAFETY: regions are shared memory, which other processes change too. So every access is atomic or
// volatile, or the kernel makes it.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

/// Some bytes of guest memory, all inside one region. It has an address and no pointer. Each use
/// checks it again, so a slice cannot refer to memory that is gone.
#[derive(Clone, Copy)]
pub struct Slice {
    region: usize,
    gpa: u64,
    len: usize,
}

impl GuestMemory {
    /// Use mapped regions and a dirty bitmap of `bitmap_words` 64-bit words, or null for none. Each
    /// page that is written gets its bit set.
    ///
    /// # Safety
    ///
    /// As long as this memory exists, regions and bitmap stay mapped and writable in full length,
    /// and tables of blocks mapped.
    pub unsafe fn new(regions: &[Region], bitmap: *const u64, bitmap_words: u64) -> Self {
        let dirty = (!bitmap.is_null()).then_some(DirtyBitmap {
            words: bitmap.cast(),
            count: bitmap_words,
        });
        Self {
            regions: regions.to_vec(),
            dirty,
        }
    }

    /// Return `len` bytes at `gpa`, if they are all in one region.
    pub fn slice(&self, gpa: u64, len: u64) -> Option<Slice> {
        let end = gpa.checked_add(len)?;
        let region = self
            .regions
            .iter()
            .position(|region| region.has(gpa, end))?;
        Some(Slice {
            region,
            gpa,
            len: len as usize,
        })
    }

    /// Mark `slice` as written. Every function that writes guest memory calls this.
    pub fn mark_dirty(&self, slice: &Slice) {
        let Some(dirty) = &self.dirty else { return };
        if slice.len == 0 {
            return;
        }
        let first = slice.gpa / PAGE_BYTES;
        let last = (slice.gpa + slice.len as u64 - 1) / PAGE_BYTES;
        for page in first..=last.min((dirty.count * 64).saturating_sub(1)) {
            // SAFETY: the loop bounds the page, so the index of the word is below `count`.
            let word = unsafe { &*dirty.words.add((page / 64) as usize) };
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    /// Store `data` at the start of `slice`, which has at least that many bytes.
    pub fn store(&self, slice: &Slice, data: &[u8]) {
        let base = self.pointer(slice, 0, data.len());
        let before = base.align_offset(8).min(data.len());
        let words = (data.len() - before) / 8;
        for at in (0..before).chain(before + 8 * words..data.len()) {
            // SAFETY: `pointer` checked that so many bytes are mapped. Volatile, because the guest
            // may read them at any time.
            unsafe { base.add(at).write_volatile(data[at]) };
        }
        for (at, word) in data[before..].chunks_exact(8).enumerate() {
            let word: [u8; 8] = word.try_into().expect("8 bytes");
            // SAFETY: as above, and it is aligned.
            unsafe {
                let place = base.add(before + 8 * at).cast::<u64>();
                place.write_volatile(u64::from_ne_bytes(word));
            }
        }
        self.mark_dirty(&slice.first(data.len()));
    }

    /// Copy the first `data.len()` bytes of `slice`, which must have as many; read each byte once.
    pub fn read(&self, slice: &Slice, data: &mut [u8]) {
        let base = self.pointer(slice, 0, data.len());
        for (at, byte) in data.iter_mut().enumerate() {
            // SAFETY: `pointer` checked that so many bytes are mapped.
            *byte = unsafe { base.add(at).read_volatile() };
        }
    }

    /// Copy 16 bytes at `offset`; read each byte once.
    pub fn read_16(&self, slice: &Slice, offset: usize) -> [u8; 16] {
        let base = self.pointer(slice, offset, 16);
        // SAFETY: `pointer` checked that 16 bytes are mapped, and bytes need no alignment.
        unsafe { base.cast::<[u8; 16]>().read_volatile() }
    }

    /// Return these bytes for a system call, which must end before this memory is gone.
    pub(crate) fn io_vec(&self, slice: &Slice) -> IoVec {
        IoVec::new(self.pointer(slice, 0, slice.len), slice.len)
    }

    /// Return a pointer to `len` bytes at `offset` of a slice; panic if they are not mapped.
    fn pointer(&self, slice: &Slice, offset: usize, len: usize) -> *mut u8 {
        let region = &self.regions[slice.region];
        let at = slice.gpa - region.gpa + offset as u64;
        assert!(offset + len <= slice.len && at + len as u64 <= region.size_bytes);
        // SAFETY: the assertion checked that the offset is inside the mapping.
        unsafe { region.base.add(at as usize) }
    }
}

impl Slice {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Return the first `len` bytes; panic if there are not as many.
    pub fn first(&self, len: usize) -> Self {
        assert!(len <= self.len);
        Self { len, ..*self }
    }

    /// Return the bytes after the first `offset` ones; panic if there are not as many.
    pub fn after(&self, offset: usize) -> Self {
        assert!(offset <= self.len);
        Self {
            gpa: self.gpa + offset as u64,
            len: self.len - offset,
            ..*self
        }
    }
}

/// A part of a ring: a slice, and the memory that contains it.
pub struct Part {
    memory: Arc<GuestMemory>,
    slice: Slice,
}

impl Part {
    /// Return `len` bytes at `gpa`, if they are in one region and aligned to `alignment`.
    pub fn new(memory: &Arc<GuestMemory>, gpa: u64, len: u64, alignment: u64) -> Option<Self> {
        let slice = memory.slice(gpa, len)?;
        let base = memory.pointer(&slice, 0, 0);
        (gpa % alignment == 0 && base as u64 % alignment == 0).then(|| Self {
            memory: Arc::clone(memory),
            slice,
        })
    }

    /// The slice of this part.
    pub fn slice(&self) -> &Slice {
        &self.slice
    }

    /// Load the 16-bit number at an even `offset` (acquire): later loads see what the driver stored
    /// before it.
    pub fn load_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.cell_16(offset).load(Ordering::Acquire))
    }

    /// Store a 16-bit number at an even `offset` (release): the driver sees it after all that was
    /// stored before.
    pub fn store_u16(&self, offset: usize, value: u16) {
        self.cell_16(offset).store(value.to_le(), Ordering::Release);
        self.memory.mark_dirty(&self.slice.after(offset).first(2));
    }

    /// Store a 32-bit number at an `offset` that is a multiple of 4, in a part with that alignment.
    pub fn store_u32(&self, offset: usize, value: u32) {
        let cell = self.memory.pointer(&self.slice, offset, 4).cast::<u32>();
        assert!(cell as usize % 4 == 0);
        // SAFETY: it is mapped and aligned, and shared memory is accessed atomically.
        unsafe { AtomicU32::from_ptr(cell) }.store(value.to_le(), Ordering::Relaxed);
        self.memory.mark_dirty(&self.slice.after(offset).first(4));
    }

    fn cell_16(&self, offset: usize) -> &AtomicU16 {
        let cell = self.memory.pointer(&self.slice, offset, 2).cast::<u16>();
        assert!(cell as usize % 2 == 0);
        // SAFETY: it is aligned, and mapped as long as the memory exists, which `self` owns.
        unsafe { AtomicU16::from_ptr(cell) }
    }
}

#[cfg(test)]
pub mod testing {
    //! Memory for the tests of other files, which may not use `unsafe`.

    use super::*;

    #[repr(align(4096))]
    #[derive(Clone)]
    struct Page(#[expect(dead_code, reason = "it is used as bytes")] [u8; PAGE_BYTES as usize]);

    /// Return so many zero bytes, whole pages, from address 0 on, and a bitmap. Both are never freed.
    pub fn memory(size_bytes: usize) -> (Arc<GuestMemory>, &'static [AtomicU64]) {
        let pages = vec![Page([0; PAGE_BYTES as usize]); size_bytes / PAGE_BYTES as usize];
        let bytes = Box::leak(pages.into_boxed_slice());
        let words = (size_bytes / PAGE_BYTES as usize).div_ceil(64);
        let bitmap: &'static [AtomicU64] =
            Box::leak((0..words).map(|_| AtomicU64::new(0)).collect());
        let region = Region {
            gpa: 0,
            size_bytes: size_bytes as u64,
            base: bytes.as_mut_ptr().cast(),
            blocks: std::ptr::null(),
            block_bytes: 0,
        };
        // SAFETY: both are leaked, so they stay mapped.
        let memory = unsafe { GuestMemory::new(&[region], bitmap.as_ptr().cast(), words as u64) };
        (Arc::new(memory), bitmap)
    }

    /// Store bytes at an address, as a driver does.
    pub fn put(memory: &GuestMemory, gpa: u64, data: &[u8]) {
        let slice = memory.slice(gpa, data.len() as u64).expect("inside");
        memory.store(&slice, data);
    }

    #[test]
    fn slice_ends_where_its_region_does() {
        let (memory, _) = memory(0x4000);
        assert!(memory.slice(0x3000, 0x1000).is_some());
        assert!(memory.slice(0x3000, 0x1001).is_none());
        assert!(memory.slice(u64::MAX, 2).is_none());
        assert!(memory
            .slice(0x4000, 0)
            .is_some_and(|slice| slice.is_empty()));
    }

    #[test]
    fn block_is_an_address_while_it_is_there() {
        let pages = vec![Page([0; PAGE_BYTES as usize]); 4];
        let bytes = Box::leak(pages.into_boxed_slice());
        let blocks: &'static [AtomicU8] = Box::leak((0..2).map(|_| AtomicU8::new(0)).collect());
        let region = Region {
            gpa: 0x10_0000,
            size_bytes: 4 * PAGE_BYTES,
            base: bytes.as_mut_ptr().cast(),
            blocks: blocks.as_ptr(),
            block_bytes: 2 * PAGE_BYTES,
        };
        // SAFETY: both are leaked, so they stay mapped.
        let memory = unsafe { GuestMemory::new(&[region], std::ptr::null(), 0) };
        assert!(memory.slice(0x10_0000, 1).is_none());
        blocks[0].store(1, Ordering::Release);
        assert!(memory.slice(0x10_0000, 0x2000).is_some());
        assert!(memory.slice(0x10_1FFF, 2).is_none());
        assert!(memory.slice(0x10_2000, 0).is_none());
        blocks[1].store(1, Ordering::Release);
        assert!(memory.slice(0x10_1FFF, 2).is_some());
        assert!(memory.slice(0x10_3FFF, 2).is_none());
        blocks[0].store(0, Ordering::Release);
        assert!(memory.slice(0x10_1FFF, 2).is_none());
        assert!(memory.slice(0x10_2000, 0x2000).is_some());
    }

    #[test]
    fn written_pages_are_marked_dirty() {
        let (memory, bitmap) = memory(0x40_0000);
        put(&memory, 0x1FFF, &[1, 2]);
        assert_eq!(bitmap[0].load(Ordering::Relaxed), 0b110);
        let part = Part::new(&memory, 65 * PAGE_BYTES, 16, 4).expect("a part");
        part.store_u32(4, 7);
        part.store_u16(2, 7);
        assert_eq!(bitmap[1].load(Ordering::Relaxed), 0b10);
        assert_eq!(bitmap[0].load(Ordering::Relaxed), 0b110);
    }

    #[test]
    fn unaligned_part_is_refused() {
        let (memory, _) = memory(0x4000);
        assert!(Part::new(&memory, 0x1008, 16, 16).is_none());
        assert!(Part::new(&memory, 0x1010, 16, 16).is_some());
    }
}
