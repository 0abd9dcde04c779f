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
/// `folded`: all hours before this one are part of their days.
const FOLDED: &str = "folded";

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

    /// Makes one hour before hour `before` part of its day: under the day's first hour. Whether there was one.
    pub fn fold(&self, before: u32) -> Result<bool, redb::Error> {
        let write = self.0.begin_write()?;
        let folded = {
            let (mut sums, mut position) = (write.open_table(SUMS)?, write.open_table(POSITION)?);
            let since = position.get(FOLDED)?.map_or(0, |value| value.value());
            let since = u32::try_from(since).unwrap_or(u32::MAX);
            let next = sums.range((since, "", "", "")..(before.max(since), "", "", ""))?.next().transpose()?;
            let hour = next.map(|(key, _)| key.value().0);
            if let Some(hour) = hour {
                let day = hour - hour % 24;
                if hour > day {
                    let mut moved = Vec::new();
                    for row in sums.extract_from_if((hour, "", "", "")..(hour + 1, "", "", ""), |_, _| true)? {
                        let (key, value) = row?;
                        let (_, tenant, function, model) = key.value();
                        moved.push(([tenant, function, model].map(str::to_owned), decode(value.value())));
                    }
                    for ([tenant, function, model], more) in moved {
                        let place = (day, tenant.as_str(), function.as_str(), model.as_str());
                        let mut totals = sums.get(place)?.map_or_else(Totals::default, |value| decode(value.value()));
                        totals.add(&more);
                        let bytes = postcard::to_allocvec(&totals).expect("sums are numbers");
                        sums.insert(place, bytes.as_slice())?;
                    }
                }
                position.insert(FOLDED, u64::from(hour) + 1)?;
            }
            hour.is_some()
        };
        if folded {
            write.commit()?
        } else {
            write.abort()?
        }
        Ok(folded)
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
    fn old_hours_become_days_and_nothing_is_lost() {
        let home = tempfile::tempdir().unwrap();
        let books = Books::open(&home.path().join("books.redb")).unwrap();
        assert!(!books.fold(1000).unwrap(), "there is nothing");
        let key = |hour: u32, function: &str| {
            let (tenant, function, model) = ("t".into(), function.into(), String::new());
            Key { hour, tenant, function, model }
        };
        let calls = |n: u64| Totals { invocations: n, ..Totals::default() };
        let sums: Sums = (40..110).flat_map(|hour| ["f", "g"].map(|f| (key(hour, f), calls(1)))).collect();
        books.add(&sums, 140).unwrap();
        let mut folds = 0;
        while books.fold(96).unwrap() {
            folds += 1;
        }
        assert_eq!(folds, 56, "one hour each");
        let mut seen = Vec::new();
        books.page().unwrap().read(0..200, |key, totals| seen.push((key.hour, totals.invocations))).unwrap();
        let days: Vec<_> = [(24, 8), (48, 24), (72, 24)].into_iter().chain((96..110).map(|hour| (hour, 1))).collect();
        assert_eq!(seen, days.iter().flat_map(|row| [*row; 2]).collect::<Vec<_>>());
        assert_eq!(books.through().unwrap(), 140);
    }

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
