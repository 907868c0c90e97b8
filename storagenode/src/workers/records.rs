//! Reading everything under a prefix of the metadata store, a bounded number of records at a time.

use bytes::Bytes;

use crate::meta::{Freshness, KeyValue, MetaError, MetaStore, Page, RangeRead};

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
    while let Some(next) = take_page(&meta.range(read.clone()).await?, &mut take)? {
        read.start = next;
    }
    Ok(())
}

/// Every entry under a prefix as it was at one revision, as far as the store keeps that: etcd until it is compacted, the embedded store
/// until something is written. From there on page by page, as [`each`] does. The revision may be a little behind.
pub async fn each_at_one_revision(
    meta: &dyn MetaStore,
    prefix: &'static [u8],
    mut take: impl FnMut(&KeyValue) -> Result<(), MetaError>,
) -> Result<(), MetaError> {
    let mut read = RangeRead { limit: PAGE, freshness: Freshness::Stale, ..RangeRead::prefix(prefix) };
    loop {
        let page = match meta.range(read.clone()).await {
            Err(MetaError::Compacted) => {
                read.at = None;
                meta.range(read.clone()).await?
            }
            page => page?,
        };
        // A member that is behind the one that gave the first page cannot give the next one.
        (read.at, read.freshness) = (read.at.or(Some(page.revision)), Freshness::Linearizable);
        match take_page(&page, &mut take)? {
            Some(next) => read.start = next,
            None => return Ok(()),
        }
    }
}

/// Gives where the next page begins.
fn take_page(
    page: &Page,
    take: impl FnMut(&KeyValue) -> Result<(), MetaError>,
) -> Result<Option<Bytes>, MetaError> {
    page.entries.iter().try_for_each(take)?;
    let last = page.entries.last().filter(|_| page.more);
    Ok(last.map(|last| [&last.key[..], &[0]].concat().into()))
}
