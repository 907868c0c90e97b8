//! Leases.

use std::time::Duration;

use super::{Case, Run, SOON, named};
use crate::meta::{Compare, LeaseId, MetaError, Op, Txn};

pub(super) fn cases() -> Vec<Case> {
    named![
        the_end_removes_keys,
        renewal_keeps_keys,
        revoking_removes_keys_now,
        rebinding_moves_keys,
        unknown_leases,
        a_lease_of_no_time_is_refused,
    ]
}

async fn grant(run: &Run) -> LeaseId {
    run.subject.store.grant(run.subject.lease_ttl).await.expect("a lease is granted")
}

fn bound(run: &Run, name: &str, lease: LeaseId) -> Op {
    Op::Put { key: run.key(name), value: "leased".into(), lease: Some(lease) }
}

async fn gone_soon(run: &Run, name: &str) {
    let deadline = run.subject.env.clock.monotonic() + run.subject.lease_ttl + SOON;
    while run.value(name).await.is_some() {
        assert!(run.subject.env.clock.monotonic() < deadline, "{name} is still there");
        run.sleep(Duration::from_millis(20)).await;
    }
}

async fn the_end_removes_keys(run: Run) {
    let lease = grant(&run).await;
    let begin = run.subject.env.clock.monotonic();
    let revision = run.write(vec![bound(&run, "a", lease), bound(&run, "b", lease)]).await;
    run.put("c", "stays").await;
    let mut seen = run.watch("", revision).await;
    gone_soon(&run, "a").await;
    let lived = run.subject.env.clock.monotonic() - begin;
    assert!(lived + Duration::from_millis(50) >= run.subject.lease_ttl, "it ended after {lived:?}");
    assert_eq!(run.value("b").await, None);
    assert_eq!(run.value("c").await.unwrap(), "stays");
    let events = seen.first(5).await;
    let mut gone: Vec<&str> = events[3..].iter().map(|event| event.split_once(' ').unwrap().1).collect();
    gone.sort_unstable();
    assert_eq!(gone, ["a gone", "b gone"]);
    assert_eq!(run.subject.store.keep_alive(lease).await, Err(MetaError::LeaseNotFound));
}

async fn renewal_keeps_keys(run: Run) {
    let lease = grant(&run).await;
    run.write(vec![bound(&run, "a", lease)]).await;
    let ttl = run.subject.lease_ttl;
    let end = run.subject.env.clock.monotonic() + ttl * 5 / 2;
    while run.subject.env.clock.monotonic() < end {
        run.subject.store.keep_alive(lease).await.expect("it lives");
        run.sleep(ttl / 4).await;
    }
    assert!(run.value("a").await.is_some());
    run.subject.store.revoke(lease).await.unwrap();
}

async fn revoking_removes_keys_now(run: Run) {
    let lease = grant(&run).await;
    run.write(vec![bound(&run, "a", lease)]).await;
    run.subject.store.revoke(lease).await.unwrap();
    assert_eq!(run.value("a").await, None);
    assert_eq!(run.subject.store.keep_alive(lease).await, Err(MetaError::LeaseNotFound));
    let bind = Txn { then: vec![bound(&run, "a", lease)], ..Txn::default() };
    assert_eq!(run.subject.store.txn(bind).await, Err(MetaError::LeaseNotFound));
    assert_eq!(run.value("a").await, None);
    // Twice is no error.
    run.subject.store.revoke(lease).await.unwrap();
}

async fn rebinding_moves_keys(run: Run) {
    let (first, second) = (grant(&run).await, grant(&run).await);
    assert_ne!(first, second);
    run.write(["a", "b", "c"].map(|name| bound(&run, name, first)).to_vec()).await;
    // "a" to the other lease, "b" to none, "c" away and back.
    run.write(vec![bound(&run, "a", second), Op::put(run.key("b"), "free"), Op::delete(run.key("c"))]).await;
    run.put("c", "free").await;
    run.subject.store.revoke(first).await.unwrap();
    assert_eq!(run.value("a").await.unwrap(), "leased");
    assert_eq!(run.value("b").await.unwrap(), "free");
    assert_eq!(run.value("c").await.unwrap(), "free");
    run.subject.store.revoke(second).await.unwrap();
    assert_eq!(run.value("a").await, None);
}

async fn unknown_leases(run: Run) {
    let nobody = LeaseId(0x7123_4567_89ab_cdef);
    assert_eq!(run.subject.store.keep_alive(nobody).await, Err(MetaError::LeaseNotFound));
    let bind = |compare| Txn {
        compare,
        then: vec![Op::put(run.key("b"), "1"), bound(&run, "a", nobody)],
        otherwise: vec![Op::put(run.key("c"), "1")],
    };
    assert_eq!(run.subject.store.txn(bind(vec![])).await, Err(MetaError::LeaseNotFound));
    assert_eq!(run.value("b").await, None);
    // In a list that is not carried out it does not matter.
    let result = run.subject.store.txn(bind(vec![Compare::value(run.key("x"), "1")])).await;
    assert!(!result.unwrap().succeeded);
    assert_eq!(run.value("c").await.unwrap(), "1");
}

async fn a_lease_of_no_time_is_refused(run: Run) {
    let answer = run.subject.store.grant(Duration::ZERO).await;
    assert!(matches!(answer, Err(MetaError::Refused(_))), "{answer:?}");
}
