//! Transactions: conditions, atomicity, limits.

use bytes::Bytes;
use futures::future::join_all;

use super::{Case, Run, named};
use crate::meta::{
    Compare, KeyValue, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES, MetaError, Op, Txn,
};

pub(super) fn cases() -> Vec<Case> {
    named![
        revisions_count_writes,
        conditions,
        empty_ranges,
        all_or_nothing,
        otherwise_is_carried_out,
        reads_see_the_time_before,
        a_key_twice_is_refused,
        sizes,
        too_many_operations,
        binary_keys_and_values,
        concurrent_increments,
        concurrent_creations,
    ]
}

async fn revisions_count_writes(run: Run) {
    let first = run.put("a", "1").await;
    let second = run.write(vec![Op::put(run.key("a"), "2"), Op::put(run.key("b"), "3")]).await;
    assert!(second > first);
    let store = &run.subject.store;
    let entry = |key: &str, value: &'static str, create_revision, mod_revision| {
        Some(KeyValue {
            key: run.key(key),
            value: Bytes::from_static(value.as_bytes()),
            create_revision,
            mod_revision,
        })
    };
    assert_eq!(store.get(&run.key("a")).await.unwrap(), entry("a", "2", first, second));
    assert_eq!(store.get(&run.key("b")).await.unwrap(), entry("b", "3", second, second));
    // Nothing that writes nothing raises it.
    let before = run.revision().await;
    assert_eq!(before, second);
    assert_eq!(run.delete("nothing").await, second);
    assert_eq!(run.write(vec![Op::get(run.key("a"))]).await, second);
    assert_eq!(run.write(vec![]).await, second);
    // A put of the same value is a write; a key that comes back begins anew.
    let third = run.put("a", "2").await;
    assert!(third > second);
    assert_eq!(store.get(&run.key("a")).await.unwrap(), entry("a", "2", first, third));
    assert!(run.delete("a").await > third);
    assert_eq!(store.get(&run.key("a")).await.unwrap(), None);
    let again = run.put("a", "4").await;
    assert_eq!(store.get(&run.key("a")).await.unwrap(), entry("a", "4", again, again));
}

async fn conditions(run: Run) {
    let revision = run.put("there", "yes").await;
    run.put("empty", "").await;
    let (there, empty, gone) = (run.key("there"), run.key("empty"), run.key("gone"));
    for (compare, holds) in [
        (Compare::absent(gone.clone()), true),
        (Compare::absent(there.clone()), false),
        (Compare::unchanged(there.clone(), revision), true),
        (Compare::unchanged(there.clone(), revision + 1), false),
        (Compare::unchanged(gone.clone(), revision), false),
        (Compare::value(there.clone(), "yes"), true),
        (Compare::value(there.clone(), "no"), false),
        (Compare::value(there.clone(), ""), false),
        (Compare::value(empty.clone(), ""), true),
        // An empty value is not the same as no key.
        (Compare::value(gone.clone(), ""), false),
        (Compare::absent(empty.clone()), false),
    ] {
        let txn = Txn { compare: vec![compare.clone()], ..Txn::default() };
        assert_eq!(run.txn(txn).await.succeeded, holds, "{compare:?}");
    }
    let all = vec![Compare::absent(gone), Compare::value(there, "yes"), Compare::value(empty, "other")];
    let both = all[..2].to_vec();
    assert!(!run.txn(Txn { compare: all, ..Txn::default() }).await.succeeded);
    assert!(run.txn(Txn { compare: both, ..Txn::default() }).await.succeeded);
}

async fn empty_ranges(run: Run) {
    run.put("b/1", "").await;
    let vacant = |prefix: &str| Compare::vacant(&run.key(prefix));
    let within = |start: &str, end: &str| Compare::Vacant { range: run.key(start)..run.key(end) };
    for (compare, holds) in [
        (vacant("a/"), true),
        (vacant("b/"), false),
        (vacant("b/1"), false),
        (vacant("b/2"), true),
        (within("a", "b/1"), true),
        (within("a", "b/2"), false),
        (within("b/1", "b/2"), false),
        (within("b/2", "c"), true),
    ] {
        let txn = Txn { compare: vec![compare.clone()], ..Txn::default() };
        assert_eq!(run.txn(txn).await.succeeded, holds, "{compare:?}");
    }
    // What is gone is not there.
    run.delete("b/1").await;
    let there = || Txn { compare: vec![vacant("b/")], ..Txn::default() };
    assert!(run.txn(there()).await.succeeded);
    run.put("b/1", "").await;
    assert!(!run.txn(there()).await.succeeded);
    for range in [run.key("b")..run.key("b"), run.key("c")..run.key("b"), run.key("b")..Bytes::new()] {
        let txn = Txn { compare: vec![Compare::Vacant { range }], ..Txn::default() };
        assert!(matches!(run.subject.store.txn(txn).await, Err(MetaError::Refused(_))));
    }
}

async fn all_or_nothing(run: Run) {
    run.put("old", "1").await;
    let puts = |value: &'static str| -> Vec<Op> {
        let mut ops: Vec<Op> = (0..20).map(|n| Op::put(run.key(format!("k{n:02}")), value)).collect();
        ops.push(Op::delete(run.key("old")));
        ops
    };
    let failing = Txn { compare: vec![Compare::absent(run.key("old"))], then: puts("x"), ..Txn::default() };
    let before = run.revision().await;
    let result = run.txn(failing).await;
    assert_eq!((result.succeeded, result.revision), (false, before));
    assert_eq!(run.subject.store.range(run.all()).await.unwrap().entries.len(), 1);

    let compare = vec![Compare::value(run.key("old"), "1")];
    let result = run.txn(Txn { compare, then: puts("y"), ..Txn::default() }).await;
    assert!(result.succeeded);
    let page = run.subject.store.range(run.all()).await.unwrap();
    assert_eq!(page.entries.len(), 20);
    assert!(page.entries.iter().all(|entry| entry.mod_revision == result.revision && entry.value == "y"));
}

async fn otherwise_is_carried_out(run: Run) {
    let txn = |then: &'static str, otherwise: &'static str| Txn {
        compare: vec![Compare::absent(run.key("key"))],
        then: vec![Op::put(run.key("key"), then)],
        otherwise: vec![Op::get(run.key("key")), Op::put(run.key("other"), otherwise)],
    };
    let first = run.txn(txn("1", "never")).await;
    assert!(first.succeeded && first.reads.is_empty());
    assert_eq!(run.value("other").await, None);
    let second = run.txn(txn("2", "done")).await;
    assert!(!second.succeeded && second.revision > first.revision);
    assert_eq!(second.reads[0].as_ref().unwrap().value, "1");
    assert_eq!(run.value("key").await.unwrap(), "1");
    assert_eq!(run.value("other").await.unwrap(), "done");
}

async fn reads_see_the_time_before(run: Run) {
    let before = run.put("a", "old").await;
    let then = vec![
        Op::put(run.key("a"), "new"),
        Op::get(run.key("a")),
        Op::put(run.key("b"), "new"),
        Op::get(run.key("b")),
        Op::get(run.key("a")),
    ];
    let result = run.txn(Txn { then, ..Txn::default() }).await;
    let old = Some((Bytes::from_static(b"old"), before));
    let reads: Vec<_> =
        result.reads.into_iter().map(|read| read.map(|entry| (entry.value, entry.mod_revision))).collect();
    assert_eq!(reads, [old.clone(), None, old]);
    assert_eq!(run.value("a").await.unwrap(), "new");
}

async fn a_key_twice_is_refused(run: Run) {
    let (put, delete) = (|| Op::put(run.key("a"), "1"), || Op::delete(run.key("a")));
    for twice in [vec![put(), put()], vec![put(), delete()], vec![delete(), put()], vec![delete(), delete()]]
    {
        run.refused(Txn { then: twice.clone(), ..Txn::default() }).await;
        run.refused(Txn { otherwise: twice, ..Txn::default() }).await;
    }
    assert_eq!(run.value("a").await, None);
    // Once in each list is once.
    let txn = Txn { then: vec![put()], otherwise: vec![delete()], ..Txn::default() };
    assert!(run.txn(txn).await.succeeded);
}

async fn sizes(run: Run) {
    let value = |length: usize| Bytes::from(vec![b'v'; length]);
    let put = |name: &str, value: Bytes| Txn { then: vec![Op::put(run.key(name), value)], ..Txn::default() };
    run.txn(put("largest", value(MAX_VALUE_BYTES))).await;
    assert_eq!(run.value("largest").await.unwrap().len(), MAX_VALUE_BYTES);
    run.refused(put("larger", value(MAX_VALUE_BYTES + 1))).await;
    run.txn(put("empty", Bytes::new())).await;
    assert_eq!(run.value("empty").await.unwrap(), "");

    let mut key = run.key("").to_vec();
    key.resize(MAX_KEY_BYTES, b'k');
    run.write(vec![Op::put(key.clone(), "long")]).await;
    assert_eq!(run.subject.store.get(&key).await.unwrap().unwrap().value, "long");
    key.push(b'k');
    run.refused(Txn { then: vec![Op::put(key, "longer")], ..Txn::default() }).await;
    run.refused(Txn { then: vec![Op::put("", "no key")], ..Txn::default() }).await;

    // Many operations that are large together, just below the limit, then above it.
    let length = (MAX_TXN_BYTES / MAX_TXN_OPS) - run.key("000").len();
    let many = |length| Txn {
        then: (0..MAX_TXN_OPS).map(|n| Op::put(run.key(format!("{n:03}")), value(length))).collect(),
        ..Txn::default()
    };
    run.txn(many(length)).await;
    run.refused(many(length + 1)).await;
}

async fn too_many_operations(run: Run) {
    let puts = |count| (0..count).map(|n| Op::put(run.key(format!("{n}")), "1")).collect::<Vec<_>>();
    let compares = |count| (0..count).map(|n| Compare::absent(run.key(format!("{n}")))).collect::<Vec<_>>();
    run.refused(Txn { then: puts(MAX_TXN_OPS + 1), ..Txn::default() }).await;
    run.refused(Txn { otherwise: puts(MAX_TXN_OPS + 1), ..Txn::default() }).await;
    run.refused(Txn { compare: compares(MAX_TXN_OPS + 1), ..Txn::default() }).await;
    let full = Txn { compare: compares(MAX_TXN_OPS), then: puts(MAX_TXN_OPS), otherwise: puts(MAX_TXN_OPS) };
    assert!(run.txn(full).await.succeeded);
    assert_eq!(run.subject.store.range(run.all()).await.unwrap().entries.len(), MAX_TXN_OPS);
}

async fn binary_keys_and_values(run: Run) {
    let names: [&[u8]; 6] = [b"", b"\x00", b"\x00\x00", b"\x00\xff", b"\xfe\xff\xff", b"\xff\x00\xff"];
    for name in names {
        run.write(vec![Op::put(run.key(name), [name, b"\x00\xff"].concat())]).await;
    }
    for name in names {
        assert_eq!(run.value(name).await.unwrap(), [name, b"\x00\xff"].concat());
    }
    let page = run.subject.store.range(run.all()).await.unwrap();
    let keys: Vec<Bytes> = page.entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, names.map(|name| run.key(name)));
    let txn =
        Txn { compare: vec![Compare::value(run.key(b"\x00"), b"\x00\x00\xff".to_vec())], ..Txn::default() };
    assert!(run.txn(txn).await.succeeded);
}

/// 64 tasks add one to the same number, each by compare; nothing is lost.
async fn concurrent_increments(run: Run) {
    const TASKS: usize = 64;
    const EACH: usize = 4;
    run.put("number", "0").await;
    let add = async || {
        for _ in 0..EACH {
            loop {
                let now = run.subject.store.get(&run.key("number")).await.unwrap().unwrap();
                let number: usize = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
                let compare = vec![Compare::unchanged(run.key("number"), now.mod_revision)];
                let then = vec![Op::put(run.key("number"), (number + 1).to_string())];
                if run.txn(Txn { compare, then, ..Txn::default() }).await.succeeded {
                    break;
                }
            }
        }
    };
    join_all((0..TASKS).map(|_| add())).await;
    assert_eq!(run.value("number").await.unwrap(), (TASKS * EACH).to_string());
}

/// Of many that create the same key at once, one does.
async fn concurrent_creations(run: Run) {
    for round in 0..5 {
        let key = run.key(format!("{round}"));
        let create = async |n: usize| {
            let compare = vec![Compare::absent(key.clone())];
            let then = vec![Op::put(key.clone(), n.to_string())];
            match run.subject.store.txn(Txn { compare, then, ..Txn::default() }).await {
                Ok(result) => result.succeeded.then_some(n),
                Err(error @ (MetaError::Unavailable(_) | MetaError::Unknown(_))) => panic!("{error}"),
                Err(error) => panic!("refused: {error}"),
            }
        };
        let winners: Vec<usize> = join_all((0..32).map(create)).await.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(run.value(format!("{round}")).await.unwrap(), winners[0].to_string());
    }
}
