//! KV pages: who holds which, and the memory they stand for.
//!
//! A page is a fixed number of bytes, the same for every model, so one budget serves all of them;
//! how many tokens fit in a page is the model's business. [`PagePool`] only counts. [`Arena`] is
//! the memory: the system commits a page when it is first written.

use memmap2::MmapMut;

/// The number of a page.
pub(crate) type PageId = u32;

/// The pages of one sequence, in order.
#[derive(Debug, Default)]
pub(crate) struct PageTable {
    pages: Vec<PageId>,
}

impl PageTable {
    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }
}

/// There are not enough free pages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfPages;

/// Invariant: each page is in `free` or in exactly one [`PageTable`].
#[derive(Debug)]
pub(crate) struct PagePool {
    free: Vec<PageId>,
    total: usize,
}

impl PagePool {
    pub(crate) fn new(total: usize) -> Self {
        // Low numbers first: memory that was committed once is used again.
        Self { free: (0..total as PageId).rev().collect(), total }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Grows `table` to `pages` pages, or changes nothing.
    pub(crate) fn grow(&mut self, table: &mut PageTable, pages: usize) -> Result<(), OutOfPages> {
        let missing = pages.saturating_sub(table.pages.len());
        let keep = self.free.len().checked_sub(missing).ok_or(OutOfPages)?;
        table.pages.extend(self.free.drain(keep..).rev());
        Ok(())
    }

    /// Takes all pages of `table` back.
    pub(crate) fn release(&mut self, table: &mut PageTable) {
        self.free.extend(table.pages.drain(..).rev());
    }
}

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
    use std::collections::HashSet;

    #[test]
    fn random_walk_keeps_every_page_in_one_place() {
        let mut pool = PagePool::new(50);
        let mut tables: Vec<PageTable> = (0..8).map(|_| PageTable::default()).collect();
        let mut state = 1u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (table, amount) = ((state >> 60) as usize % 8, (state >> 40) as usize % 20);
            if state >> 33 & 1 == 0 {
                pool.release(&mut tables[table]);
            } else {
                let before = (pool.free(), tables[table].pages.len());
                if pool.grow(&mut tables[table], amount).is_err() {
                    assert_eq!(before, (pool.free(), tables[table].pages.len()));
                    assert!(amount > before.1 + before.0);
                }
            }
            let held = tables.iter().flat_map(|t| &t.pages);
            let all: HashSet<_> = pool.free.iter().chain(held.clone()).collect();
            assert_eq!(all.len(), 50);
            assert_eq!(pool.free() + held.count(), 50);
        }
    }

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
