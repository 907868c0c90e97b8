//! Reading ranges.

use bytes::Bytes;

use super::{Case, Run, named};
use crate::meta::{Freshness, MetaError, Op, Page, RangeRead};

pub(super) fn cases() -> Vec<Case> {
    named![ends_and_order, limits_and_pages, only_keys, prefixes, stale_reads, many_keys, old_revisions]
}

fn names(run: &Run, page: &Page) -> Vec<String> {
    page.entries.iter().map(|entry| run.name(&entry.key)).collect()
}

async fn read(run: &Run, read: RangeRead) -> Page {
    run.subject.store.range(read).await.expect("the range is read")
}

fn between(run: &Run, start: &str, end: &str) -> RangeRead {
    RangeRead { start: run.key(start), end: run.key(end), ..RangeRead::default() }
}

async fn ends_and_order(run: Run) {
    let before = run.revision().await;
    assert!(before > 0);
    assert_eq!(names(&run, &read(&run, run.all()).await), [""; 0]);
    for name in ["c", "a", "bb", "b", "b/a"] {
        run.put(name, name).await;
    }
    let revision = run.revision().await;
    let page = read(&run, between(&run, "a", "c")).await;
    assert_eq!(names(&run, &page), ["a", "b", "b/a", "bb"]);
    assert_eq!((page.more, page.revision), (false, revision));
    assert_eq!(names(&run, &read(&run, between(&run, "aa", "b\0")).await), ["b"]);
    assert_eq!(names(&run, &read(&run, between(&run, "d", "z")).await), [""; 0]);
    // Empty and backward ranges have nothing in them.
    for (start, end) in [("a", "a"), ("c", "a")] {
        let page = read(&run, between(&run, start, end)).await;
        assert_eq!((names(&run, &page), page.more, page.revision), (vec![], false, revision));
    }
}

async fn limits_and_pages(run: Run) {
    for n in 0..10 {
        run.put(&format!("{n}"), "v").await;
    }
    let limited = async |start: Bytes, limit| read(&run, RangeRead { start, limit, ..run.all() }).await;
    let page = limited(run.key(""), 4).await;
    assert_eq!((names(&run, &page), page.more), (["0", "1", "2", "3"].map(String::from).to_vec(), true));
    for (limit, more) in [(9, true), (10, false), (11, false), (0, false)] {
        let page = limited(run.key(""), limit).await;
        assert_eq!((page.entries.len(), page.more), (if limit == 9 { 9 } else { 10 }, more), "limit {limit}");
    }
    let (mut start, mut all) = (run.key(""), Vec::new());
    loop {
        let page = limited(start, 3).await;
        all.extend(names(&run, &page));
        if !page.more {
            break;
        }
        start = [&page.entries.last().unwrap().key[..], b"\0"].concat().into();
    }
    assert_eq!(all, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
}

async fn only_keys(run: Run) {
    let revision = run.put("a", "value").await;
    let page = read(&run, RangeRead { keys_only: true, ..run.all() }).await;
    let entry = &page.entries[0];
    assert_eq!((entry.value.len(), entry.create_revision, entry.mod_revision), (0, revision, revision));
}

async fn prefixes(run: Run) {
    for name in ["a", "a/", "a/1", "a0", "b"] {
        run.put(name, "v").await;
    }
    run.write(vec![Op::put(run.key(b"a/\xff\xff"), "v")]).await;
    let page = read(&run, RangeRead::prefix(&run.key("a/"))).await;
    let keys: Vec<&[u8]> = page.entries.iter().map(|entry| &entry.key[..]).collect();
    assert_eq!(keys, [&run.key("a/")[..], &run.key("a/1")[..], &run.key(b"a/\xff\xff")[..]]);
    let page = read(&run, RangeRead::prefix(&run.key(b"a/\xff"))).await;
    assert_eq!(page.entries.len(), 1);
    let page = read(&run, RangeRead::key(&run.key("a"))).await;
    assert_eq!((names(&run, &page), page.more), (vec!["a".to_owned()], false));
}

async fn stale_reads(run: Run) {
    run.put("a", "1").await;
    let deadline = run.subject.env.clock.monotonic() + super::SOON;
    // What is stale now is fresh a little later.
    loop {
        let page = read(&run, RangeRead { freshness: Freshness::Stale, ..run.all() }).await;
        if names(&run, &page) == ["a"] {
            break;
        }
        assert!(run.subject.env.clock.monotonic() < deadline);
    }
}

/// More than fits into one answer of a store that answers in pieces.
async fn many_keys(run: Run) {
    const KEYS: usize = 9_000;
    let keys: Vec<usize> = (0..KEYS).collect();
    for group in keys.chunks(100) {
        run.write(group.iter().map(|n| Op::put(run.key(format!("{n:05}")), "v")).collect()).await;
    }
    let page = read(&run, run.all()).await;
    assert_eq!((page.entries.len(), page.more), (KEYS, false));
    assert!(page.entries.is_sorted_by(|a, b| a.key < b.key));
    let page = read(&run, RangeRead { limit: KEYS - 1, ..run.all() }).await;
    assert_eq!((page.entries.len(), page.more), (KEYS - 1, true));
}

async fn old_revisions(run: Run) {
    let old = run.put("a", "old").await;
    let new = run.put("a", "new").await;
    let at = async |revision| run.subject.store.range(RangeRead { at: Some(revision), ..run.all() }).await;
    let page = at(new).await.unwrap();
    assert_eq!((&page.entries[0].value[..], page.revision), (&b"new"[..], new));
    match at(old).await {
        Ok(page) if run.subject.keeps_history => {
            assert_eq!((&page.entries[0].value[..], page.revision), (&b"old"[..], old));
        }
        Err(MetaError::Compacted) if !run.subject.keeps_history => {}
        other => panic!("reading at an old revision: {other:?}"),
    }
    let future = at(new + 1_000_000).await;
    assert!(matches!(future, Err(MetaError::Refused(_))), "{future:?}");
}
