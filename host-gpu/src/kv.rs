//! KV pages: the memory they stand for, and who holds which.
//!
//! A page is a fixed number of bytes, the same for every model, so one budget serves all of them;
//! how many tokens fit in a page is the model's business. [`PagePool`] decides who holds which page
//! and which prefixes are kept. [`Arena`] is the memory: the system commits a page when it is first written.

use crate::ops::cpu::attention::READ_BEYOND;
use memmap2::MmapMut;

mod layout;
mod pool;

pub use layout::{HeadLayout, KvType};
pub(crate) use layout::{KvLayout, KvShape, SCALED};
pub(crate) use pool::{PagePool, PageTable, Realm};

/// The number of a page.
pub(crate) type PageId = u32;

/// The memory of all pages.
pub(crate) struct Arena {
    /// Anonymous memory: zero, and not committed until it is touched.
    map: MmapMut,
    page_bytes: usize,
    /// Whose data a page has, if it was ever written.
    owners: Vec<Option<u64>>,
}

impl Arena {
    /// # Errors
    /// If the system does not even promise that much memory.
    pub(crate) fn new(pages: usize, page_bytes: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(pages * page_bytes + READ_BEYOND)?;
        Ok(Self { map, page_bytes, owners: vec![None; pages] })
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// All pages, one after the other, and [`READ_BEYOND`] bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The page `page`, for writing.
    pub(crate) fn page_mut(&mut self, page: PageId) -> &mut [u8] {
        &mut self.map[page as usize * self.page_bytes..][..self.page_bytes]
    }

    /// Makes `page` `account`'s, cleared if it was another's. Call before its first write.
    pub(crate) fn claim(&mut self, page: PageId, account: u64) {
        let owner = &mut self.owners[page as usize];
        let strange = owner.is_some_and(|owner| owner != account);
        *owner = Some(account);
        if strange {
            self.page_mut(page).fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cleared_for_another_account_only() {
        let mut arena = Arena::new(2, 4).unwrap();
        arena.claim(1, 7);
        arena.page_mut(1).fill(3);
        arena.claim(1, 7);
        assert_eq!(arena.page_mut(1), [3; 4]);
        arena.claim(1, 8);
        assert_eq!(arena.page_mut(1), [0; 4]);
    }
}
