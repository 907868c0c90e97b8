//! The metadata store over a real etcd of three members: conformance, TLS, and members that die, hang, fill up and
//! come back.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_node::env::real::without_network;
use cairn_node::meta::conformance::{self, Subject};
use cairn_node::meta::etcd::EtcdStore;
use cairn_node::meta::{
    Compare, DatabaseUrl, Event, Freshness, KeyValue, MetaError, MetaStore, Op, RangeRead, SharedMeta, Txn,
    Watch, connect, keys,
};
use cairn_node::workers::records;
use cairn_tests::etcd::{EtcdCluster, EtcdOptions};
use cairn_tests::sim::plants::{HARE, Plant};
use cairn_tests::tools::{Need, require};
use etcd_client::{Client, DeleteOptions, GetOptions};
use futures::{StreamExt, stream};

async fn open(url: &str) -> SharedMeta {
    let url: DatabaseUrl = url.parse().unwrap();
    connect(&url, without_network()).await.unwrap()
}

fn three_members() -> Option<EtcdCluster> {
    let tools = require(&[Need::Etcd]).ok()?;
    Some(EtcdCluster::start(&tools, 3).unwrap())
}

fn subject(store: SharedMeta) -> Subject {
    Subject { store, env: without_network(), lease_ttl: Duration::from_secs(2), keeps_history: true }
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
    Txn { then: vec![Op::put(key, value)], ..Txn::default() }
}

async fn watch_all(store: &SharedMeta, from: u64) -> Box<dyn Watch> {
    store.watch(Bytes::new()..Bytes::from_static(b"\xff"), from).await.unwrap()
}

/// The member that leads.
async fn leader(etcd: &EtcdCluster) -> usize {
    for (index, endpoint) in etcd.endpoints().iter().enumerate() {
        let mut client = Client::connect([endpoint], None).await.unwrap();
        if let Ok(status) = client.status().await
            && status.header().unwrap().member_id() == status.leader()
        {
            return index;
        }
    }
    panic!("no member leads");
}

/// Tries until it works; gives how long that took.
async fn until_written(store: &SharedMeta, key: &'static str) -> Duration {
    let begin = Instant::now();
    while let Err(error) = store.txn(put(key, "1")).await {
        assert!(matches!(error, MetaError::Unavailable(_) | MetaError::Unknown(_)), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(30), "it stays away: {error}");
    }
    begin.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cluster-a")).await;
    conformance::run(&subject(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_keep_clusters_apart() {
    let Some(etcd) = three_members() else { return };
    let [first, second] = [open(&etcd.database_url("one")).await, open(&etcd.database_url("one/more")).await];
    let from = first.txn(put("key", "1")).await.unwrap().revision;
    second.txn(put("key", "2")).await.unwrap();
    for (store, value) in [(&first, "1"), (&second, "2")] {
        assert_eq!(store.get(b"key").await.unwrap().unwrap().value, value);
        let events = watch_all(store, from).await.next().await.unwrap();
        assert!(matches!(&events[..], [Event::Put(KeyValue { key, .. })] if key == "key"), "{events:?}");
    }
    let mut client = Client::connect(etcd.endpoints(), None).await.unwrap();
    assert_eq!(client.get("one:key", None).await.unwrap().kvs()[0].value(), b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speaks_tls() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let options = EtcdOptions { members: 1, tls: true, ..EtcdOptions::default() };
    let etcd = EtcdCluster::start_with(&tools, options).unwrap();
    let tls = etcd.tls().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &tls.authority_pem).unwrap();
    let files = tls.client.write(folder.path(), "client").unwrap();
    let (cert, key) = (files.certificate.display(), files.key.display());
    let plain = etcd.database_url("x");

    let store = open(&format!("{plain}?ca={}&cert={cert}&key={key}", ca.display())).await;
    store.txn(put("key", "1")).await.unwrap();
    assert_eq!(store.get(b"key").await.unwrap().unwrap().value, "1");

    // Without a certificate, or without TLS, there is no answer, and none is waited for without end.
    for url in [format!("{plain}?ca={}", ca.display()), plain.clone()] {
        let begin = Instant::now();
        assert!(open(&url).await.get(b"key").await.is_err());
        assert!(begin.elapsed() < Duration::from_secs(8));
    }
    let missing: DatabaseUrl = format!("{plain}?ca=/nowhere/ca.pem").parse().unwrap();
    let error = connect(&missing, without_network()).await.err().unwrap();
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}

/// What the writers of a test know.
#[derive(Default)]
struct Known {
    /// Key → value of every write that was answered, or that was found to have happened.
    written: BTreeMap<String, String>,
    /// Keys whose write was found not to have happened, for good.
    not_written: HashSet<String>,
    unknown: usize,
}

/// Reads that are asked for at the same time go to etcd together, and each sees what was written before it was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_at_the_same_time_share_requests() {
    const TASKS: u64 = 128;
    const ROUNDS: u64 = 20;
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("shared")).await;
    let before = etcd.requests().unwrap();
    let tasks = (0..TASKS).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            let key = Bytes::from(format!("key-{task}"));
            assert_eq!(store.get(&key).await, Ok(None));
            let mut revision = 0;
            for round in 0..ROUNDS {
                let value = Bytes::from(format!("{task}-{round}"));
                if round % 4 == 0 {
                    revision = store.txn(put(key.clone(), value.clone())).await.unwrap().revision;
                }
                let read = store.get(&key).await.unwrap().unwrap();
                assert_eq!((&read.key, read.mod_revision), (&key, revision), "{read:?}");
                assert_eq!(read.value, format!("{task}-{}", round / 4 * 4));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let (reads, writes) = (TASKS * (ROUNDS + 1), TASKS * ROUNDS / 4);
    let asked = etcd.requests().unwrap() - before - writes;
    assert!(asked * 4 < reads, "{asked} requests for {reads} reads");
    // A key that no store takes is refused alone.
    let (good, long) = (Bytes::from_static(b"key-1"), Bytes::from(vec![b'k'; 5_000]));
    let all =
        futures::future::join_all((0..40).map(|n| store.get(if n % 10 == 3 { &long } else { &good }))).await;
    for (n, answer) in all.into_iter().enumerate() {
        assert_eq!(matches!(answer, Ok(Some(_))), n % 10 != 3, "{n}: {answer:?}");
    }
}

/// Creates one key after the other until `stop`. As a gateway does (R4), each transaction also changes a slot that it
/// compares, so that one without an answer can be settled: the slot holds its mark, or it is changed, which the
/// transaction then cannot survive.
async fn write_until(store: SharedMeta, task: usize, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Known {
    let slot = format!("slot/{task}");
    let mut known = Known::default();
    let mut slot_revision = 0;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (key, mark) = (format!("load/{task}/{n}"), format!("{task}-{n}"));
        let txn = Txn {
            compare: vec![Compare::absent(key.clone()), Compare::unchanged(slot.clone(), slot_revision)],
            then: vec![Op::put(key.clone(), mark.clone()), Op::put(slot.clone(), mark.clone())],
            otherwise: vec![],
        };
        let written = match store.txn(txn).await {
            Ok(result) => {
                assert!(result.succeeded, "{key}: somebody else has the slot");
                slot_revision = result.revision;
                true
            }
            Err(MetaError::Unavailable(_)) => false,
            Err(MetaError::Unknown(_)) => {
                known.unknown += 1;
                let happened;
                (happened, slot_revision) = settle(&store, &slot, &mark).await;
                happened
            }
            Err(error) => panic!("{error}"),
        };
        if written {
            done.fetch_add(1, Ordering::Relaxed);
            known.written.insert(key, mark);
        } else {
            known.not_written.insert(key);
        }
    }
    known
}

/// Finds out whether a transaction has happened, and makes sure that it stays so. Gives the slot's revision, too.
async fn settle(store: &SharedMeta, slot: &str, mark: &str) -> (bool, u64) {
    let fence = format!("no {mark}");
    loop {
        let Ok(found) = store.get(slot.as_bytes()).await else { continue };
        let revision = found.as_ref().map_or(0, |entry| entry.mod_revision);
        match found {
            Some(entry) if entry.value == *mark => return (true, revision),
            // A fence of ours, put by a transaction without an answer.
            Some(entry) if entry.value == fence => return (false, revision),
            _ => {}
        }
        let compare = vec![Compare::unchanged(slot.to_owned(), revision)];
        let then = vec![Op::put(slot.to_owned(), fence.clone())];
        if let Ok(result) = store.txn(Txn { compare, then, ..Txn::default() }).await
            && result.succeeded
        {
            return (false, result.revision);
        }
    }
}

/// Reads a watch until the store's revision at that moment, from another task's `stop` on.
async fn collect(store: SharedMeta, mut watch: Box<dyn Watch>, stop: Arc<AtomicBool>) -> Vec<KeyValue> {
    let mut seen = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_millis(500), watch.next()).await {
            Ok(Ok(events)) => seen.extend(events.into_iter().map(|event| match event {
                Event::Put(entry) => entry,
                Event::Delete { .. } => panic!("nobody deletes"),
            })),
            Ok(Err(MetaError::Unavailable(_))) => {}
            Ok(Err(error)) => panic!("{error}"),
            Err(_) if stop.load(Ordering::Relaxed) => {
                let now = store.range(RangeRead::prefix(b"load/")).await.unwrap();
                let newest = now.entries.iter().map(|entry| entry.mod_revision).max();
                let last = seen.iter().rfind(|entry: &&KeyValue| entry.key.starts_with(b"load/"));
                if last.map(|entry| entry.mod_revision) == newest {
                    return seen;
                }
            }
            Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_with_the_leader() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cairn")).await;
    let from = store.txn(put("begin", "1")).await.unwrap().revision + 1;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watching = tokio::spawn(collect(store.clone(), watch_all(&store, from).await, stop.clone()));
    let writers: Vec<_> = (0..32)
        .map(|task| tokio::spawn(write_until(store.clone(), task, stop.clone(), done.clone())))
        .collect();

    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut counts = vec![done.load(Ordering::Relaxed)];
    for _ in 0..2 {
        let victim = leader(&etcd).await;
        etcd.kill(victim);
        // Longer than a call may take: those that were under way are settled.
        tokio::time::sleep(Duration::from_secs(8)).await;
        counts.push(done.load(Ordering::Relaxed));
        etcd.restart(victim).unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        counts.push(done.load(Ordering::Relaxed));
    }
    stop.store(true, Ordering::Relaxed);
    let mut known = Known::default();
    for writer in writers {
        let more = writer.await.unwrap();
        known.written.extend(more.written);
        known.not_written.extend(more.not_written);
        known.unknown += more.unknown;
    }
    println!("writes after each phase {counts:?}, {} of unknown outcome", known.unknown);
    assert!(counts.is_sorted_by(|before, after| before < after), "it does not go on: {counts:?}");

    let page = store.range(RangeRead::prefix(b"load/")).await.unwrap();
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let stored: BTreeMap<String, String> =
        page.entries.iter().map(|entry| (text(&entry.key), text(&entry.value))).collect();
    assert_eq!(stored, known.written);
    assert!(known.not_written.iter().all(|key| !stored.contains_key(key)));

    // The watch has seen each once, in order, through all of it.
    let seen = watching.await.unwrap();
    assert!(seen.is_sorted_by(|a, b| a.mod_revision <= b.mod_revision));
    let seen: Vec<String> =
        seen.iter().map(|e| text(&e.key)).filter(|key| key.starts_with("load/")).collect();
    assert_eq!(seen.len(), stored.len());
    assert_eq!(seen.into_iter().collect::<HashSet<_>>().len(), stored.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_away_needs_no_restart() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cairn")).await;
    let from = store.txn(put("before", "1")).await.unwrap().revision;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let mut watch = watch_all(&store, from).await;
    assert_eq!(watch.next().await.unwrap().len(), 1);

    etcd.pause_all();
    let begin = Instant::now();
    let read = store.get(b"before").await;
    assert!(matches!(read, Err(MetaError::Unavailable(_))), "{read:?}");
    assert!(begin.elapsed() < Duration::from_secs(7), "a read took {:?}", begin.elapsed());
    let begin = Instant::now();
    let write = store.txn(put("during", "1")).await;
    assert!(matches!(write, Err(MetaError::Unknown(_) | MetaError::Unavailable(_))), "{write:?}");
    assert!(begin.elapsed() < Duration::from_secs(7), "a write took {:?}", begin.elapsed());
    // One that is under way when it comes back, within its deadline, is answered.
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.get(b"before").await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    etcd.resume_all();
    let waited = waiting.await.unwrap();
    assert!(waited.is_ok(), "{waited:?}");

    let away = until_written(&store, "after").await;
    println!("writing again {away:?} after etcd was back");
    store.keep_alive(lease).await.unwrap();
    let mut seen = Vec::new();
    let watching = async {
        while !seen.iter().any(|event| matches!(event, Event::Put(entry) if entry.key == "after")) {
            seen.extend(watch.next().await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), watching).await.expect("the watch goes on");
    assert!(seen.is_sorted_by(|a, b| a.revision() <= b.revision()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_members_come_back() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cairn")).await;
    let from = store.txn(put("before", "1")).await.unwrap().revision + 1;
    let mut watch = watch_all(&store, from).await;
    (0..3).for_each(|member| etcd.kill(member));
    // No connection can be made, so it is certain that nothing happens.
    assert!(matches!(store.get(b"before").await, Err(MetaError::Unavailable(_))));
    let write = store.txn(put("never", "1")).await;
    assert!(matches!(write, Err(MetaError::Unavailable(_))), "{write:?}");
    assert!(matches!(watch.next().await, Err(MetaError::Unavailable(_))));
    std::thread::scope(|scope| {
        for member in 0..3 {
            let etcd = &etcd;
            scope.spawn(move || etcd.restart(member).unwrap());
        }
    });
    until_written(&store, "after").await;
    assert!(store.get(b"never").await.unwrap().is_none());
    let events = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap();
    assert!(matches!(&events[..], [Event::Put(entry)] if entry.key == "after"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hung_member_is_left_alone() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cairn")).await;
    store.txn(put("key", "1")).await.unwrap();
    let lead = leader(&etcd).await;
    for victim in (0..3).filter(|member| *member != lead) {
        etcd.pause(victim);
        let begin = Instant::now();
        assert_eq!(store.get(b"key").await.unwrap().unwrap().value, "1");
        assert!(begin.elapsed() < Duration::from_secs(4), "a read took {:?}", begin.elapsed());
        // From then on it is not asked.
        let begin = Instant::now();
        for _ in 0..50 {
            store.txn(put("key", "1")).await.unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(4), "writes took {:?}", begin.elapsed());
        etcd.resume(victim);
        etcd.wait_healthy(victim).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_reads_need_no_quorum() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cairn")).await;
    store.txn(put("key", "1")).await.unwrap();
    let stale = RangeRead { freshness: Freshness::Stale, ..RangeRead::key(b"key") };
    while store.range(stale.clone()).await.unwrap().entries.is_empty() {}
    // The one that is left has certainly the key: wait until all have.
    tokio::time::sleep(Duration::from_secs(1)).await;
    etcd.kill(0);
    etcd.kill(2);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.range(stale).await.unwrap().entries[0].value, "1");
    let begin = Instant::now();
    let fresh = store.get(b"key").await;
    assert!(matches!(fresh, Err(MetaError::Unavailable(_))), "{fresh:?}");
    // It is known to have no leader: nothing was sent into the dark.
    let write = store.txn(put("key", "2")).await;
    assert!(matches!(write, Err(MetaError::Unavailable(_))), "{write:?}");
    assert!(begin.elapsed() < Duration::from_secs(13), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_says_so_and_still_reads() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let options = EtcdOptions { members: 1, quota_bytes: Some(8 << 20), ..EtcdOptions::default() };
    let etcd = EtcdCluster::start_with(&tools, options).unwrap();
    let store = open(&etcd.database_url("cairn")).await;
    let mut count = 0;
    let error = loop {
        match store.txn(put(format!("key/{count}"), vec![7; 1 << 19])).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 64);
    };
    assert!(matches!(&error, MetaError::Full(why) if why.contains("quota")), "{error}");
    assert!(store.get(b"key/0").await.unwrap().is_some());
    // More than one answer can hold: it is read in pieces.
    assert_eq!(store.range(RangeRead::prefix(b"key/")).await.unwrap().entries.len(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_revision_is_reported() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cairn")).await;
    let first = store.txn(put("key", "1")).await.unwrap().revision;
    let last = store.txn(put("key", "2")).await.unwrap().revision;
    let mut client = Client::connect(etcd.endpoints(), None).await.unwrap();
    client.compact(last as i64, None).await.unwrap();
    let mut watch = watch_all(&store, first).await;
    assert_eq!(watch.next().await, Err(MetaError::Compacted));
    let read = store.range(RangeRead { at: Some(first), ..RangeRead::key(b"key") }).await;
    assert_eq!(read, Err(MetaError::Compacted));
    let read = store.range(RangeRead { at: Some(last), ..RangeRead::key(b"key") }).await.unwrap();
    assert_eq!(read.entries[0].value, "2");
}

/// Values that together are larger than one answer may be are read in smaller pieces, and watched in fragments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_ranges_come_in_pieces() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("cairn")).await;
    let from = store.txn(put("begin", "1")).await.unwrap().revision + 1;
    const COUNT: usize = 80;
    for n in 0..COUNT {
        store.txn(put(format!("key/{n:02}"), vec![n as u8; 1 << 20])).await.unwrap();
    }
    let page = store.range(RangeRead::prefix(b"key/")).await.unwrap();
    assert_eq!(page.entries.len(), COUNT);
    assert!(page.entries.iter().enumerate().all(|(n, entry)| entry.value[..] == vec![n as u8; 1 << 20]));
    let mut watch = watch_all(&store, from).await;
    let mut seen = 0;
    while seen < COUNT {
        for event in watch.next().await.unwrap() {
            let Event::Put(entry) = event else { panic!("nobody deletes") };
            assert_eq!(entry.key, format!("key/{seen:02}"));
            seen += 1;
        }
    }
}

/// Every key below `key/`, page by page.
async fn by_pages(store: &EtcdStore, page: usize) -> (Vec<Bytes>, usize) {
    let mut read = RangeRead { limit: page, keys_only: true, ..RangeRead::prefix(b"key/") };
    let (mut keys, mut pages) = (Vec::new(), 0);
    loop {
        let found = store.range(read.clone()).await.unwrap();
        pages += 1;
        assert!(found.entries.len() == page || !found.more, "a page with a hole: {}", found.entries.len());
        keys.extend(found.entries.into_iter().map(|entry| entry.key));
        match keys.last().filter(|_| found.more) {
            Some(last) => read.start = [&last[..], &[0]].concat().into(),
            None => return (keys, pages),
        }
    }
}

/// etcd walks all of a range that it is asked for a part of: a page of many names must not cost what all of them do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_long_range_costs_about_what_it_gives() {
    const KEYS: usize = 60_000;
    /// One key in so many has a milestone.
    const APART: usize = 4_096;
    let Some(etcd) = three_members() else { return };
    let DatabaseUrl::Etcd(address) = etcd.database_url("long").parse().unwrap() else { panic!("etcd") };
    let store = EtcdStore::open(without_network(), address.clone()).await.unwrap();
    let key = |n: usize| Bytes::from(format!("key/{n:06}"));
    let batches: Vec<Vec<usize>> = (0..KEYS).collect::<Vec<_>>().chunks(100).map(<[usize]>::to_vec).collect();
    let write = |batch: &Vec<usize>| {
        let (store, then) = (store.clone(), batch.iter().map(|n| Op::put(key(*n), "")).collect());
        async move { store.txn(Txn { then, ..Txn::default() }).await.unwrap() }
    };
    stream::iter(&batches).map(write).buffer_unordered(16).collect::<Vec<_>>().await;
    let all: Vec<Bytes> = (0..KEYS).map(key).collect();
    // The first page finds out how long the range is.
    for page in [1_000, 3_000, 7] {
        let before = store.walked();
        let part = store.range(RangeRead { limit: page, ..RangeRead::prefix(b"key/") }).await.unwrap();
        assert!(part.more && part.entries.len() == page);
        if page == 7 {
            continue;
        }
        let (keys, pages) = by_pages(&store, page).await;
        assert!(keys == all, "{} keys", keys.len());
        let walked = store.walked() - before;
        // Up to the second milestone; the first two pages walk all of it. However long the range is.
        let bound = 2 * KEYS + pages * (page + 2 * APART);
        println!("{walked} keys were walked for {pages} pages of {page}");
        assert!(walked <= bound as u64, "{walked} keys were walked for {pages} pages, more than {bound}");
    }
    assert_eq!(store.range(RangeRead::prefix(b"key/")).await.unwrap().entries.len(), KEYS);

    // Milestones of keys that are gone, and keys without one, as an earlier version leaves them.
    let mut client = Client::connect(etcd.endpoints(), None).await.unwrap();
    let of_milestones = || GetOptions::new().with_prefix().with_keys_only();
    let count =
        async |client: &mut Client| client.get("long;key/", Some(of_milestones())).await.unwrap().kvs().len();
    let made = count(&mut client).await;
    assert!((4..40).contains(&made), "{made}");
    client.delete("long;key/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    for n in [5, 6, 30_000, 99_999] {
        client.put([&b"long;key/"[..], format!("{n:06}x").as_bytes()].concat(), "", None).await.unwrap();
    }
    assert!(by_pages(&store, 900).await.0 == all);
    let begin = Instant::now();
    // Whoever reads makes what is missing; where that fails, the next one does.
    while count(&mut client).await < made + 4 {
        assert!(begin.elapsed() < Duration::from_secs(30), "missing milestones are not made");
        assert!(by_pages(&store, 900).await.0 == all);
    }
    assert!(by_pages(&store, 900).await.0 == all);

    // They go with their keys.
    let remove = |batch: &Vec<usize>| {
        let then = batch.iter().map(|n| Op::Delete { key: key(*n) }).collect();
        let store = store.clone();
        async move { store.txn(Txn { then, ..Txn::default() }).await.unwrap() }
    };
    stream::iter(&batches[50..]).map(remove).buffer_unordered(16).collect::<Vec<_>>().await;
    assert!(by_pages(&store, 900).await.0 == all[..5_000]);
    stream::iter(&batches[..50]).map(remove).buffer_unordered(16).collect::<Vec<_>>().await;
    assert_eq!(count(&mut client).await, 4);
    assert!(by_pages(&store, 900).await.0.is_empty());
}

/// A file that moves while the records are read is read all the same: all pages are of one revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_read_at_one_revision() {
    let Some(etcd) = three_members() else { return };
    let store = open(&etcd.database_url("moves")).await;
    let names: Vec<String> = (0..2_500).map(|n| format!("file/00000001/{n:05}")).collect();
    for names in names.chunks(100) {
        let then = names.iter().map(|name| Op::put(name.clone(), "")).collect();
        store.txn(Txn { then, ..Txn::default() }).await.unwrap();
    }
    store.txn(put(HARE, "")).await.unwrap();
    // The first page may be a little behind.
    let late = RangeRead { freshness: Freshness::Stale, ..RangeRead::key(HARE) };
    while store.range(late.clone()).await.unwrap().entries.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Each time that a page is read, to where that page is not.
    let moving = Plant::MovesDuringScans.in_store(store);
    let mut seen = 0;
    let count = |_: &KeyValue| {
        seen += 1;
        Ok(())
    };
    records::each_at_one_revision(&*moving, keys::file::PREFIX, count).await.unwrap();
    assert_eq!(seen, names.len() + 1);
    let mut seen = 0;
    let count = |_: &KeyValue| {
        seen += 1;
        Ok(())
    };
    records::each(&*moving, keys::file::PREFIX, Freshness::Linearizable, count).await.unwrap();
    assert_eq!(seen, names.len(), "page by page it is overlooked");
}
