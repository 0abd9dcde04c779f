//! KV pages: the memory they stand for, and who holds which.
//!
//! A page is a fixed number of bytes, the same for every model, so one budget serves all of them;
//! how many tokens fit in a page is the model's business. [`PagePool`] decides who holds which page
//! and which prefixes are kept. [`Arena`] is the memory: the system commits a page when it is first written.

use memmap2::MmapMut;

mod pool;

pub(crate) use pool::{PagePool, PageTable, Realm};

/// The number of a page.
pub(crate) type PageId = u32;

/// The memory of all pages.
pub(crate) struct Arena {
    /// Anonymous memory: zero, and not committed until it is touched.
    map: MmapMut,
    page_floats: usize,
    /// Whose data a page has, if it was ever written.
    owners: Vec<Option<u64>>,
}

impl Arena {
    /// # Errors
    /// If the system does not even promise that much memory.
    pub(crate) fn new(pages: usize, page_floats: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(pages * page_floats * size_of::<f32>())?;
        Ok(Self { map, page_floats, owners: vec![None; pages] })
    }

    pub(crate) fn page_floats(&self) -> usize {
        self.page_floats
    }

    pub(crate) fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(&self.map)
    }

    /// The page `page`, for writing.
    pub(crate) fn page_mut(&mut self, page: PageId) -> &mut [f32] {
        let bytes = self.page_floats * size_of::<f32>();
        bytemuck::cast_slice_mut(&mut self.map[page as usize * bytes..][..bytes])
    }

    /// Makes `page` `account`'s, cleared if it was another's. Call before its first write.
    pub(crate) fn claim(&mut self, page: PageId, account: u64) {
        let owner = &mut self.owners[page as usize];
        let strange = owner.is_some_and(|owner| owner != account);
        *owner = Some(account);
        if strange {
            self.page_mut(page).fill(0.0);
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
        arena.page_mut(1).fill(3.0);
        arena.claim(1, 7);
        assert_eq!(arena.page_mut(1), [3.0; 4]);
        arena.claim(1, 8);
        assert_eq!(arena.page_mut(1), [0.0; 4]);
    }
}
