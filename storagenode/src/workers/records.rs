//! Reading everything under a prefix of the metadata store, a bounded number of records at a time.

use crate::meta::{Freshness, KeyValue, MetaError, MetaStore, RangeRead};

/// Records in one page.
const PAGE: usize = 1_000;

/// Every entry under a prefix, page by page: each page at a revision of its own.
pub async fn each(
    meta: &dyn MetaStore,
    prefix: &'static [u8],
    freshness: Freshness,
    mut take: impl FnMut(&KeyValue) -> Result<(), MetaError>,
) -> Result<(), MetaError> {
    let mut read = RangeRead { limit: PAGE, freshness, ..RangeRead::prefix(prefix) };
    loop {
        let page = meta.range(read.clone()).await?;
        page.entries.iter().try_for_each(&mut take)?;
        match page.entries.last().filter(|_| page.more) {
            Some(last) => read.start = [&last.key[..], &[0]].concat().into(),
            None => return Ok(()),
        }
    }
}
