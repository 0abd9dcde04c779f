//! The books: sums by hour, in a `redb` database, with the number up to which records are in them. Both change in one
//! transaction, so that a record that is read again after a crash is not counted again.

use std::path::Path;

use redb::{Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};

use super::record::{Key, Sums, Totals};

/// Hour, tenant, function and model, to the sums.
const SUMS: TableDefinition<'_, (u32, &str, &str, &str), &[u8]> = TableDefinition::new("sums-1");
/// `through`: the number of the last record that is in the sums.
const POSITION: TableDefinition<'_, &str, u64> = TableDefinition::new("position");
const THROUGH: &str = "through";

pub(super) struct Books(Database);

impl Books {
    /// Opens the books at `path`.
    ///
    /// # Errors
    /// What the database said, here and below.
    pub fn open(path: &Path) -> Result<Self, redb::Error> {
        Ok(Self(Database::create(path)?))
    }

    /// The number of the last record that is in them.
    pub fn through(&self) -> Result<u64, redb::Error> {
        match self.0.begin_read()?.open_table(POSITION) {
            Ok(table) => Ok(table.get(THROUGH)?.map_or(0, |value| value.value())),
            Err(TableError::TableDoesNotExist(_)) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds sums of the records up to number `through`. On disk when this returns.
    pub fn add(&self, sums: &Sums, through: u64) -> Result<(), redb::Error> {
        let write = self.0.begin_write()?;
        {
            let mut table = write.open_table(SUMS)?;
            for (key, more) in sums {
                let place = (key.hour, key.tenant.as_str(), key.function.as_str(), key.model.as_str());
                let mut totals = table.get(place)?.map_or_else(Totals::default, |value| decode(value.value()));
                totals.add(more);
                let bytes = postcard::to_allocvec(&totals).expect("sums are numbers");
                table.insert(place, bytes.as_slice())?;
            }
            write.open_table(POSITION)?.insert(THROUGH, through)?;
        }
        Ok(write.commit()?)
    }

    /// The books as they are now, whatever is added later.
    pub fn page(&self) -> Result<Page, redb::Error> {
        Ok(Page(self.0.begin_read()?))
    }
}

/// The books at one moment.
pub(super) struct Page(ReadTransaction);

impl Page {
    /// What is in them of these hours.
    pub fn read(&self, hours: std::ops::Range<u32>, mut each: impl FnMut(Key, &Totals)) -> Result<(), redb::Error> {
        let table = match self.0.open_table(SUMS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for row in table.range((hours.start, "", "", "")..(hours.end, "", "", ""))? {
            let (key, value) = row?;
            let (hour, tenant, function, model) = key.value();
            let (tenant, function, model) = (tenant.to_owned(), function.to_owned(), model.to_owned());
            each(Key { hour, tenant, function, model }, &decode(value.value()));
        }
        Ok(())
    }
}

/// What was written in this table by this version.
fn decode(bytes: &[u8]) -> Totals {
    postcard::from_bytes(bytes).unwrap_or_else(|error| {
        tracing::error!(%error, "a row of the books does not read back, and counts as nothing");
        Totals::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_position_change_together() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("books.redb");
        let key = |hour: u32, model: &str| Key { hour, tenant: "t".into(), function: "f".into(), model: model.into() };
        let tokens = |n: u64| Totals { generated_tokens: n, memory_peak_bytes: n, ..Totals::default() };
        for n in 1..=3_u64 {
            let books = Books::open(&path).unwrap();
            assert_eq!(books.through().unwrap(), 10 * (n - 1));
            books.add(&[(key(7, "m"), tokens(n)), (key(7 + n as u32, ""), tokens(1))].into(), 10 * n).unwrap();
        }
        let books = Books::open(&path).unwrap();
        let mut seen = Vec::new();
        books.page().unwrap().read(7..10, |key, totals| seen.push((key, *totals))).unwrap();
        let sum = Totals { generated_tokens: 6, memory_peak_bytes: 3, ..Totals::default() };
        assert_eq!(seen, [(key(7, "m"), sum), (key(8, ""), tokens(1)), (key(9, ""), tokens(1))]);
    }
}
