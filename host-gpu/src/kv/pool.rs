//! Who holds which page, and which prefixes are kept.
//!
//! A page is free, held by one or more tables, or cached: held by nobody, its KV kept for who comes
//! next. A page whose tokens have all been processed is never written again. It gets a name then:
//! its tokens, after all that came before them. Sequences that begin alike hold the same named
//! pages. When no page is free, the cached one that was let go longest ago is taken.
//!
//! A name is compared, not only hashed: it has the page's tokens, and the serial number of the page
//! before it in place of all earlier tokens. Serials are never given twice, so two prefixes that
//! differ anywhere have different names, and no collision can give a sequence another one's KV. It
//! takes 4 bytes a token, where the token's KV takes hundreds at least.

use super::PageId;
use crate::ask::TokenId;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Those who may share pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Realm {
    /// Of one model: keys and values mean nothing to another.
    pub(crate) model: u64,
    /// Whose: the account, since who finds a prefix in the cache learns by the time it takes that
    /// somebody sent it. A policy that lets accounts share gives them one scope.
    pub(crate) scope: u64,
    /// Tokens in a page of this model.
    pub(crate) page_tokens: usize,
}

/// The pages of one sequence, in order.
#[derive(Debug)]
pub(crate) struct PageTable {
    realm: Realm,
    pages: Vec<PageId>,
    /// How many of the first have names.
    named: usize,
}

impl PageTable {
    pub(crate) fn new(realm: Realm) -> Self {
        Self { realm, pages: Vec::new(), named: 0 }
    }

    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Tokens that its named pages hold.
    pub(crate) fn named_tokens(&self) -> usize {
        self.named * self.realm.page_tokens
    }
}

/// There are not enough pages that nobody holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfPages;

/// What comes before a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Before {
    Nothing(Realm),
    /// The page of this serial, and what comes before that.
    Page(u64),
}

/// What a page holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    before: Before,
    tokens: Arc<[TokenId]>,
}

#[derive(Debug, Default)]
struct Page {
    /// Tables that it is in.
    holders: u32,
    /// Its name and serial, if all its tokens are processed.
    name: Option<(Name, u64)>,
    /// Whose model's keys and values it has, if it has a name.
    model: u64,
    /// While it is cached: its place in that list.
    let_go: u64,
}

/// Invariants: each page is in `free`, in `cached`, or in as many tables as it has holders. Who holds
/// a named page holds those before it, and lets go of them later: a page in `cached` is older there
/// than the one before it, so that no page is left of which the beginning is lost.
#[derive(Debug)]
pub(crate) struct PagePool {
    pages: Vec<Page>,
    free: Vec<PageId>,
    /// By when they were let go.
    cached: BTreeMap<u64, PageId>,
    names: HashMap<Name, PageId>,
    /// How often a page was cached, and how many serials were given.
    counts: (u64, u64),
}

impl PagePool {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            pages: (0..total).map(|_| Page::default()).collect(),
            // Low numbers first: memory that was committed once is used again.
            free: (0..total as PageId).rev().collect(),
            cached: BTreeMap::new(),
            names: HashMap::new(),
            counts: (0, 0),
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that nobody holds, cached ones among them.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    pub(crate) fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Gives `table`, which is empty, `pages` pages: those that hold the longest known beginning of
    /// `tokens`, then others. Leaves `spare` pages to others, or changes nothing.
    pub(crate) fn open(
        &mut self,
        table: &mut PageTable,
        tokens: &[TokenId],
        pages: usize,
        spare: usize,
    ) -> Result<(), OutOfPages> {
        let found = self.find(table.realm, tokens);
        let idle = found.iter().filter(|page| self.page(**page).holders == 0).count();
        if pages.saturating_sub(found.len()) + spare > self.available() - idle {
            return Err(OutOfPages);
        }
        found.iter().for_each(|page| self.hold(*page));
        table.named = found.len();
        table.pages = found;
        self.grow(table, pages)
    }

    /// The pages that hold the longest known beginning of `tokens`.
    fn find(&self, realm: Realm, tokens: &[TokenId]) -> Vec<PageId> {
        let mut before = Before::Nothing(realm);
        let mut found = Vec::new();
        for tokens in tokens.chunks_exact(realm.page_tokens) {
            let Some(page) = self.names.get(&Name { before, tokens: tokens.into() }) else { break };
            before = self.as_before(*page);
            found.push(*page);
        }
        found
    }

    /// Grows `table` to `pages` pages, or changes nothing.
    pub(crate) fn grow(&mut self, table: &mut PageTable, pages: usize) -> Result<(), OutOfPages> {
        let missing = pages.saturating_sub(table.pages.len());
        if missing > self.available() {
            return Err(OutOfPages);
        }
        table.pages.extend((0..missing).map(|_| self.take()));
        Ok(())
    }

    /// Names the pages of `table` that `tokens`, all it has processed, fill. Where another sequence
    /// has filled an equal page meanwhile, `table` gets that one and its own goes back: keys and
    /// values are the same bits, whoever computed them.
    pub(crate) fn fill(&mut self, table: &mut PageTable, tokens: &[TokenId]) {
        while let Some(tokens) = tokens.chunks_exact(table.realm.page_tokens).nth(table.named) {
            let before = match table.named.checked_sub(1) {
                None => Before::Nothing(table.realm),
                Some(last) => self.as_before(table.pages[last]),
            };
            let (name, page) = (Name { before, tokens: tokens.into() }, table.pages[table.named]);
            if let Some(equal) = self.names.get(&name).copied() {
                self.hold(equal);
                self.let_go(page);
                table.pages[table.named] = equal;
            } else {
                self.counts.1 += 1;
                self.names.insert(name.clone(), page);
                self.pages[page as usize].name = Some((name, self.counts.1));
                self.pages[page as usize].model = table.realm.model;
            }
            table.named += 1;
        }
    }

    /// Takes all pages of `table` back, the last first. Named ones that nobody else holds are cached.
    pub(crate) fn release(&mut self, table: &mut PageTable) {
        table.named = 0;
        table.pages.drain(..).rev().for_each(|page| self.let_go(page));
    }

    /// Frees the pages that are kept for `model`, which is gone: nobody will ask for them. Says whether all pages are free now.
    pub(crate) fn forget(&mut self, model: u64) -> bool {
        let pages = &mut self.pages;
        let theirs = self.cached.extract_if(.., |_, page| pages[*page as usize].model == model);
        let theirs: Vec<PageId> = theirs.map(|(_, page)| page).collect();
        for page in theirs {
            if let Some((name, _)) = self.pages[page as usize].name.take() {
                self.names.remove(&name);
            }
            self.free.push(page);
        }
        let all = self.free.len() == self.total();
        if all {
            self.free.sort_unstable_by(|a, b| b.cmp(a));
        }
        all
    }

    /// How many pages nobody would hold any more if `table` let go of its own.
    pub(crate) fn freed_by(&self, table: &PageTable) -> usize {
        table.pages.iter().filter(|page| self.page(**page).holders == 1).count()
    }

    fn page(&self, page: PageId) -> &Page {
        &self.pages[page as usize]
    }

    /// What a page after `page` has before it.
    fn as_before(&self, page: PageId) -> Before {
        let (_, serial) = self.page(page).name.as_ref().expect("pages before a named one are named");
        Before::Page(*serial)
    }

    fn hold(&mut self, page: PageId) {
        let Page { holders, let_go, .. } = &mut self.pages[page as usize];
        if *holders == 0 {
            self.cached.remove(let_go);
        }
        *holders += 1;
    }

    fn let_go(&mut self, id: PageId) {
        let page = &mut self.pages[id as usize];
        page.holders -= 1;
        if page.holders > 0 {
            return;
        }
        if page.name.is_none() {
            return self.free.push(id);
        }
        self.counts.0 += 1;
        page.let_go = self.counts.0;
        self.cached.insert(page.let_go, id);
    }

    /// A page for one holder: a free one, or else the one that was let go longest ago.
    fn take(&mut self) -> PageId {
        let oldest = |cached: &mut BTreeMap<u64, PageId>| cached.pop_first().map(|(_, page)| page);
        let page = self.free.pop().or_else(|| oldest(&mut self.cached)).expect("callers look at `available`");
        if let Some((name, _)) = self.pages[page as usize].name.take() {
            self.names.remove(&name);
        }
        self.pages[page as usize].holders = 1;
        page
    }
}

#[cfg(test)]
impl PagePool {
    /// Looks at every invariant; `tables` are all there are.
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a PageTable>) {
        let mut holders = vec![0; self.total()];
        for table in tables {
            let mut before = Before::Nothing(table.realm);
            for (n, page) in table.pages.iter().enumerate() {
                holders[*page as usize] += 1;
                let name = self.page(*page).name.as_ref();
                assert_eq!(name.is_some(), n < table.named, "the first pages are named and no others");
                if let Some((name, serial)) = name {
                    assert_eq!(name.before, before);
                    before = Before::Page(*serial);
                }
            }
        }
        let mut places = vec![0; self.total()];
        self.free.iter().chain(self.cached.values()).for_each(|page| places[*page as usize] += 1);
        let by_serial: HashMap<u64, &Page> =
            self.pages.iter().filter_map(|p| p.name.as_ref().map(|(_, serial)| (*serial, p))).collect();
        assert_eq!(self.names.len(), by_serial.len(), "a name for each named page");
        for (id, page) in self.pages.iter().enumerate() {
            assert_eq!(page.holders, holders[id], "page {id} knows its tables");
            assert_eq!(places[id], u32::from(page.holders == 0), "page {id} is free, cached or held");
            let cached = self.cached.get(&page.let_go) == Some(&(id as PageId));
            assert_eq!(cached, page.holders == 0 && page.name.is_some(), "page {id} is cached if named and not held");
            let Some((name, _)) = &page.name else { continue };
            assert_eq!(self.names[name] as usize, id);
            if let Before::Page(serial) = name.before {
                let before = by_serial[&serial];
                assert!(before.holders >= page.holders, "who holds page {id} holds the one before it");
                assert!(before.holders > 0 || before.let_go > page.let_go, "page {id} goes first");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REALM: Realm = Realm { model: 1, scope: 1, page_tokens: 4 };

    fn tokens(from: u32, count: u32) -> Vec<TokenId> {
        (from..from + count).map(TokenId).collect()
    }

    /// A table with `tokens` processed.
    fn table(pool: &mut PagePool, realm: Realm, tokens: &[TokenId]) -> PageTable {
        let mut table = PageTable::new(realm);
        pool.open(&mut table, tokens, tokens.len().div_ceil(realm.page_tokens), 0).expect("there are pages");
        pool.fill(&mut table, tokens);
        table
    }

    #[test]
    fn what_begins_alike_shares_full_pages_in_its_own_realm() {
        let mut pool = PagePool::new(20);
        let first = table(&mut pool, REALM, &tokens(0, 10));
        let longer = [tokens(0, 8), tokens(50, 4)].concat();
        let second = table(&mut pool, REALM, &longer);
        assert_eq!(first.pages()[..2], second.pages()[..2]);
        assert_ne!(first.pages()[2], second.pages()[2]);
        // The same second page after another first one is something else, as are other realms.
        let others = [
            table(&mut pool, REALM, &[tokens(9, 4), tokens(4, 4)].concat()),
            table(&mut pool, Realm { scope: 2, ..REALM }, &tokens(0, 8)),
            table(&mut pool, Realm { model: 2, ..REALM }, &tokens(0, 8)),
        ];
        assert_eq!(pool.available(), 20 - 4 - 6);
        let mut all = [vec![first, second], others.into()].into_iter().flatten().collect::<Vec<_>>();
        pool.check(all.iter());
        all.iter_mut().for_each(|table| pool.release(table));
        assert_eq!((pool.available(), pool.cached()), (20, 9));
    }

    #[test]
    fn equal_pages_that_were_filled_at_once_become_one() {
        let mut pool = PagePool::new(8);
        let tokens = tokens(0, 8);
        let mut tables = [PageTable::new(REALM), PageTable::new(REALM)];
        tables.iter_mut().for_each(|table| pool.open(table, &tokens, 3, 0).unwrap());
        assert_eq!(pool.available(), 2);
        tables.iter_mut().for_each(|table| pool.fill(table, &tokens));
        assert_eq!(tables[0].pages()[..2], tables[1].pages()[..2]);
        assert_ne!(tables[0].pages()[2], tables[1].pages()[2]);
        assert_eq!(pool.available(), 4);
        pool.check(tables.iter());
    }

    #[test]
    fn the_prefix_let_go_longest_ago_goes_first_and_its_end_before_its_beginning() {
        let mut pool = PagePool::new(6);
        let (old, new) = (tokens(0, 12), tokens(100, 12));
        for text in [&old, &new, &old] {
            let mut table = table(&mut pool, REALM, text);
            pool.release(&mut table); // `old` was used again after `new`
        }
        assert_eq!(pool.cached(), 6);
        let found = |pool: &PagePool, text: &[TokenId]| pool.find(REALM, text).len();
        let mut taker = PageTable::new(REALM);
        for (pages, left) in [(1, (3, 2)), (2, (3, 1)), (4, (2, 0)), (6, (0, 0))] {
            pool.grow(&mut taker, pages).unwrap();
            assert_eq!((found(&pool, &old), found(&pool, &new)), left);
            pool.check([&taker].into_iter());
        }
        assert_eq!(pool.grow(&mut taker, 7), Err(OutOfPages));
    }

    #[test]
    fn what_is_kept_for_a_model_goes_with_it() {
        let mut pool = PagePool::new(12);
        let other = Realm { model: 2, ..REALM };
        let (mut mine, mut its) = (table(&mut pool, REALM, &tokens(0, 12)), table(&mut pool, other, &tokens(0, 8)));
        pool.release(&mut mine);
        let held = table(&mut pool, other, &tokens(50, 4));
        pool.release(&mut its);
        assert!(!pool.forget(1));
        pool.check([&held].into_iter());
        assert_eq!((pool.available(), pool.cached()), (11, 2), "the other's are kept");
        assert_eq!((pool.find(REALM, &tokens(0, 12)).len(), pool.find(other, &tokens(0, 8)).len()), (0, 2));
        let mut held = held;
        pool.release(&mut held);
        assert!(!pool.forget(3) && pool.forget(2));
        pool.check([].into_iter());
        let mut first = table(&mut pool, REALM, &tokens(7, 4));
        assert_eq!(first.pages(), [0], "low numbers come first again");
        pool.release(&mut first);
    }

    #[test]
    fn a_refusal_changes_nothing() {
        let mut pool = PagePool::new(5);
        let text = tokens(0, 8);
        let mut kept = table(&mut pool, REALM, &text);
        pool.release(&mut kept);
        let mut table = PageTable::new(REALM);
        // Three are free: the two cached ones would be held, not taken.
        assert_eq!(pool.open(&mut table, &text, 6, 0), Err(OutOfPages));
        assert_eq!(pool.open(&mut table, &text, 5, 1), Err(OutOfPages));
        assert!(table.pages().is_empty());
        assert_eq!((pool.available(), pool.cached()), (5, 2));
        pool.open(&mut table, &text, 5, 0).unwrap();
        assert_eq!((table.named_tokens(), pool.available()), (8, 0));
    }
}
