//! One file as the cache and the medium see it, page by page.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

pub const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

type PageBytes = Arc<[u8; PAGE_BYTES]>;

/// A file.
#[derive(Default)]
pub struct Inode {
    pub size: u64,
    pub durable_size: u64,
    pub pages: BTreeMap<u64, Page>,
    dirty_pages: BTreeSet<u64>,
    pub blocks: BTreeSet<u64>,
    /// Bytes that the next sync gets wrong onto the medium.
    pub spoiled: Vec<u64>,
}

/// 4 KiB of a file: as it is read, and as it is on the medium.
pub struct Page {
    pub cached: PageBytes,
    pub durable: PageBytes,
    /// One bit a sector: written and not synced.
    dirty: u8,
    /// One bit a sector: dropped by a failed sync, readable only from the cache.
    limbo: u8,
    /// One bit a sector: wrong on the medium, right in the cache.
    spoiled: u8,
}

impl Page {
    pub fn new() -> Self {
        let zeros: PageBytes = Arc::new([0; PAGE_BYTES]);
        Self { cached: zeros.clone(), durable: zeros, dirty: 0, limbo: 0, spoiled: 0 }
    }

    /// Takes sectors from one copy to the other.
    pub fn copy_sectors(from: &PageBytes, to: &mut PageBytes, sectors: u8) {
        if sectors == 0xff {
            *to = from.clone();
        } else if sectors != 0 {
            let to = Arc::make_mut(to);
            for sector in (0..8).filter(|sector| sectors & (1 << sector) != 0) {
                let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                to[range.clone()].copy_from_slice(&from[range]);
            }
        }
    }
}

impl Inode {
    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (number, from) = (offset / PAGE_BYTES as u64, (offset % PAGE_BYTES as u64) as usize);
            let length = bytes.len().min(PAGE_BYTES - from);
            let page = self.pages.entry(number).or_insert_with(Page::new);
            Arc::make_mut(&mut page.cached)[from..from + length].copy_from_slice(&bytes[..length]);
            for sector in from / SECTOR_BYTES..(from + length).div_ceil(SECTOR_BYTES) {
                page.dirty |= 1 << sector;
                page.limbo &= !(1 << sector);
                page.spoiled &= !(1 << sector);
            }
            self.dirty_pages.insert(number);
            offset += length as u64;
            bytes = &bytes[length..];
        }
    }

    pub fn read(&self, mut offset: u64, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let (number, from) = (offset / PAGE_BYTES as u64, (offset % PAGE_BYTES as u64) as usize);
            let length = bytes.len().min(PAGE_BYTES - from);
            match self.pages.get(&number) {
                Some(page) => bytes[..length].copy_from_slice(&page.cached[from..from + length]),
                None => bytes[..length].fill(0),
            }
            offset += length as u64;
            bytes = &mut bytes[length..];
        }
    }

    /// Zeros in the cache, if there is anything else.
    pub fn clear(&mut self, offset: u64, end: u64) {
        let pages: Vec<u64> = self
            .pages
            .range(offset / PAGE_BYTES as u64..end.div_ceil(PAGE_BYTES as u64))
            .map(|(n, _)| *n)
            .collect();
        for number in pages {
            let start = (number * PAGE_BYTES as u64).max(offset);
            let end = ((number + 1) * PAGE_BYTES as u64).min(end);
            self.write(start, &vec![0; (end - start) as usize]);
        }
    }

    pub fn sync(&mut self) {
        for number in std::mem::take(&mut self.dirty_pages) {
            let page = self.pages.get_mut(&number).expect("dirty pages exist");
            Page::copy_sectors(&page.cached, &mut page.durable, page.dirty);
            page.dirty = 0;
        }
        for offset in std::mem::take(&mut self.spoiled) {
            let at = (offset % PAGE_BYTES as u64) as usize;
            let page = self.pages.get_mut(&(offset / PAGE_BYTES as u64)).expect("it was written");
            Arc::make_mut(&mut page.durable)[at] ^= 0x10;
            page.spoiled |= 1 << (at / SECTOR_BYTES);
        }
    }

    pub fn fail_sync(&mut self) {
        for number in std::mem::take(&mut self.dirty_pages) {
            let page = self.pages.get_mut(&number).expect("dirty pages exist");
            page.limbo |= std::mem::take(&mut page.dirty);
        }
    }

    pub fn forget(&mut self, offset: u64, end: u64) {
        for page in self.pages.range_mut(offset / PAGE_BYTES as u64..end.div_ceil(PAGE_BYTES as u64)) {
            let page = page.1;
            let left = std::mem::take(&mut page.limbo) | std::mem::take(&mut page.spoiled);
            Page::copy_sectors(&page.durable, &mut page.cached, left);
        }
    }

    pub fn crash(&mut self, random: &mut StdRng) {
        // Nothing, some, or all: files differ, so writes to different files are reordered too.
        let keep = *[0.0, 0.3, 0.7, 1.0].choose(random).expect("not empty");
        for page in self.pages.values_mut() {
            let pending = page.dirty | page.limbo;
            let kept =
                (0..8).filter(|_| random.random_bool(keep)).fold(0u8, |mask, sector| mask | 1 << sector);
            Page::copy_sectors(&page.cached, &mut page.durable, pending & kept);
            page.cached = page.durable.clone();
            (page.dirty, page.limbo, page.spoiled) = (0, 0, 0);
        }
        self.dirty_pages.clear();
        self.spoiled.clear();
        if random.random_bool(1.0 - keep) {
            self.size = self.durable_size;
        }
        self.durable_size = self.size;
        let pages = self.size.div_ceil(PAGE_BYTES as u64);
        self.pages.retain(|number, _| *number < pages);
        if let Some(page) = self.pages.get_mut(&(self.size / PAGE_BYTES as u64)) {
            Arc::make_mut(&mut page.cached)[(self.size % PAGE_BYTES as u64) as usize..].fill(0);
            page.durable = page.cached.clone();
        }
        self.blocks.retain(|number| *number < pages);
        self.blocks.extend(self.pages.keys());
    }
}
