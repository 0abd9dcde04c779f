//! KV pages: the memory they stand for, and who holds which.
//!
//! A page is a fixed number of bytes, the same for every model, so one budget serves all of them;
//! how many tokens fit in a page is the model's business. [`PagePool`] decides who holds which page
//! and which prefixes are kept. [`Arena`] is the memory: the system commits a page when it is first written.

use crate::format::huge::HugeMemory;
use crate::ops::cpu::attention::READ_BEYOND;

mod layout;
mod pool;

pub use layout::{HeadLayout, KvType};
pub(crate) use layout::{KvLayout, KvShape, SCALED};
pub(crate) use pool::{PagePool, PageTable, Realm};

/// The number of a page.
pub(crate) type PageId = u32;

/// The memory of all pages.
pub(crate) struct Arena {
    /// In huge pages: attention reads a little of each page for each head, which small ones would scatter over more than a
    /// core remembers addresses of.
    memory: HugeMemory,
    page_bytes: usize,
    /// Whose data a page has, if it was ever written.
    owners: Vec<Option<u64>>,
    /// Pages from the first to the last one that was ever claimed, and how many the system is known to have committed.
    used: usize,
    ready: usize,
}

/// So many pages that were never used are committed ahead of their use: the system takes about a millisecond to find and
/// clear one, and sequences that began together need theirs in one step.
const READY: usize = 8;

impl Arena {
    /// # Errors
    /// If the system does not even promise that much memory.
    pub(crate) fn new(pages: usize, page_bytes: usize) -> std::io::Result<Self> {
        let memory = HugeMemory::new(pages * page_bytes + READ_BEYOND)?;
        Ok(Self { memory, page_bytes, owners: vec![None; pages], used: 0, ready: 0 })
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// All pages, one after the other, and [`READ_BEYOND`] bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory
    }

    /// All pages, for writing: (pages, page_bytes).
    pub(crate) fn pages_mut(&mut self) -> &mut [u8] {
        let size = self.owners.len() * self.page_bytes;
        &mut self.memory[..size]
    }

    fn page_mut(&mut self, page: PageId) -> &mut [u8] {
        &mut self.memory[page as usize * self.page_bytes..][..self.page_bytes]
    }

    /// Makes `page` `account`'s, cleared if it was another's. Call before its first write.
    pub(crate) fn claim(&mut self, page: PageId, account: u64) {
        let owner = &mut self.owners[page as usize];
        let strange = owner.is_some_and(|owner| owner != account);
        *owner = Some(account);
        self.used = self.used.max(page as usize + 1);
        self.ready = self.ready.max(self.used);
        if strange {
            self.page_mut(page).fill(0);
        }
    }

    /// Gives the memory of all pages back to the system. Nobody has one.
    pub(crate) fn give_back(&mut self) {
        if self.ready == 0 {
            return;
        }
        // A new map, rather than advice about this one: that is the same on all systems. Without it, all stays as it is.
        if let Ok(memory) = HugeMemory::new(self.memory.len()) {
            self.memory = memory;
            self.owners.fill(None);
            (self.used, self.ready) = (0, 0);
        }
    }

    /// Has the system commit the next page, if there are not enough that it has. Says whether it did: there may be more
    /// to do. Call when there is time.
    pub(crate) fn make_ready(&mut self) -> bool {
        let wanted = if self.used == 0 { 0 } else { self.owners.len().min(self.used + READY) };
        if self.ready >= wanted {
            return false;
        }
        let page = self.ready * self.page_bytes;
        self.memory.commit(page..page + self.page_bytes);
        self.ready += 1;
        true
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

    #[test]
    fn nobody_sees_what_another_wrote() {
        const PAGES: usize = 12;
        let (mut arena, mut pool) = (Arena::new(PAGES, 64).unwrap(), PagePool::new(PAGES));
        let mut state = 7u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let mut tables: Vec<(u8, PageTable)> = Vec::new();
        let mut moved = 0;
        for _ in 0..20_000 {
            if random(3) == 0 && !tables.is_empty() {
                let (_, mut table) = tables.swap_remove(random(tables.len() as u64) as usize);
                pool.release(&mut table);
                continue;
            }
            let account = 1 + random(4) as u8;
            let realm = Realm { model: 1, scope: account.into(), page_tokens: 4 };
            let text: Vec<_> = (0..4 * (1 + random(3) as u32)).map(|n| crate::TokenId(n / 4 * 10)).collect();
            let mut table = PageTable::new(realm);
            if pool.open(&mut table, &text, text.len() / 4 + 1, 0).is_err() {
                continue;
            }
            // Pages that were found are read, the others are written to.
            for (n, page) in table.pages().to_vec().into_iter().enumerate() {
                if n >= table.named_tokens() / 4 {
                    moved += usize::from(arena.owners[page as usize].is_some_and(|owner| owner != u64::from(account)));
                    arena.claim(page, u64::from(account));
                    let bytes = arena.page_mut(page);
                    assert!(bytes.iter().all(|byte| [0, account].contains(byte)), "{account} sees {bytes:?}");
                    bytes[..40].fill(account);
                } else {
                    assert!(arena.page_mut(page)[..40].iter().all(|byte| *byte == account), "it finds its own");
                }
            }
            pool.fill(&mut table, &text);
            tables.push((account, table));
        }
        assert!(moved > 1000, "{moved} pages went from one account to another");
    }

    #[test]
    fn some_pages_are_ready_before_they_are_used() {
        let mut arena = Arena::new(READY + 4, 1 << 16).unwrap();
        assert!(!arena.make_ready(), "nobody has used any");
        arena.claim(1, 7);
        let made = (0..100).take_while(|_| arena.make_ready()).count();
        assert_eq!((made, arena.ready), (READY, READY + 2));
        arena.claim(2, 7);
        arena.claim(0, 7);
        assert!(arena.make_ready() && !arena.make_ready(), "one for the one that was used");
        arena.claim(READY as PageId, 7);
        let made = (0..100).take_while(|_| arena.make_ready()).count();
        assert_eq!((made, arena.ready), (1, READY + 4), "there are no more");
        assert!(arena.bytes().iter().all(|byte| *byte == 0));
        arena.page_mut(1).fill(3);
        arena.give_back();
        assert!(arena.bytes().iter().all(|byte| *byte == 0) && !arena.make_ready(), "as at the beginning");
    }
}
