//! Watches.

use futures::future::join_all;

use super::{Case, Run, named};
use crate::meta::{Event, MetaError, Op};

pub(super) fn cases() -> Vec<Case> {
    named![
        from_an_old_revision,
        only_its_range,
        later_events_wake_it,
        one_transaction_comes_whole,
        a_future_revision_is_awaited,
        nothing_is_lost_under_load,
        dropped_calls_lose_nothing,
        revision_zero_is_refused,
    ]
}

async fn from_an_old_revision(run: Run) {
    let mut expected = Vec::new();
    for n in 0..5 {
        expected.push(format!("{} a={n}", run.put("a", &n.to_string()).await));
        expected.push(format!("{} a gone", run.delete("a").await));
    }
    let first: u64 = expected[0].split_once(' ').unwrap().0.parse().unwrap();
    let mut seen = run.watch("", first).await;
    assert_eq!(seen.first(10).await, expected);
    // From the middle.
    let middle: u64 = expected[3].split_once(' ').unwrap().0.parse().unwrap();
    assert_eq!(run.watch("", middle).await.first(7).await, expected[3..]);
    // A delete of nothing is no event.
    run.delete("a").await;
    let last = run.put("b", "end").await;
    assert_eq!(seen.first(11).await[10], format!("{last} b=end"));
    // The same events carry the revisions that reads show.
    let Event::Put(entry) = &seen.events[10] else { panic!("not a put") };
    assert_eq!(run.subject.store.get(&run.key("b")).await.unwrap().as_ref(), Some(entry));
}

async fn only_its_range(run: Run) {
    let from = run.revision().await + 1;
    for name in ["a", "b", "b/1", "b/2", "b0", "c"] {
        run.put(name, "v").await;
    }
    let mut seen = run.watch("b/", from).await;
    assert_eq!(seen.first(2).await, [format!("{} b/1=v", from + 2), format!("{} b/2=v", from + 3)]);
    run.put("c", "v").await;
    seen.nothing_more(2).await;
    let next = run.put("b/3", "v").await;
    assert_eq!(seen.first(3).await[2], format!("{next} b/3=v"));
}

async fn later_events_wake_it(run: Run) {
    let mut seen = run.watch("", run.revision().await + 1).await;
    for n in 1..=3 {
        let write = async {
            run.sleep(std::time::Duration::from_millis(20)).await;
            run.put("a", "v").await
        };
        let (events, revision) = futures::join!(seen.first(n), write);
        assert_eq!(events[n - 1], format!("{revision} a=v"));
    }
}

async fn one_transaction_comes_whole(run: Run) {
    run.put("z", "old").await;
    let mut seen = run.watch("", run.revision().await + 1).await;
    let ops = vec![
        Op::put(run.key("b"), "1"),
        Op::get(run.key("b")),
        Op::delete(run.key("nothing")),
        Op::delete(run.key("z")),
        Op::put(run.key("a"), "2"),
    ];
    let revision = run.write(ops).await;
    let all = seen.first(3).await;
    assert_eq!(all, [format!("{revision} b=1"), format!("{revision} z gone"), format!("{revision} a=2")]);
}

async fn a_future_revision_is_awaited(run: Run) {
    let first = run.put("a", "1").await;
    let mut seen = run.watch("", first + 2).await;
    run.put("a", "2").await;
    let third = run.put("a", "3").await;
    // Other writers may have raised the revision too.
    let events = seen.first(1).await;
    assert!(events[0] == format!("{third} a=3") || third > first + 2, "{events:?}");
}

async fn nothing_is_lost_under_load(run: Run) {
    const TASKS: usize = 16;
    const EACH: usize = 25;
    let from = run.revision().await + 1;
    let mut seen = run.watch("", from).await;
    let write = async |task: usize| {
        let mut revisions = Vec::new();
        for n in 0..EACH {
            revisions.push(format!("{} {task}={n}", run.put(&task.to_string(), &n.to_string()).await));
        }
        revisions
    };
    let (events, written) = futures::join!(seen.first(TASKS * EACH), join_all((0..TASKS).map(write)));
    let mut written: Vec<String> = written.into_iter().flatten().collect();
    let revision = |text: &String| text.split_once(' ').unwrap().0.parse::<u64>().unwrap();
    written.sort_by_key(revision);
    assert_eq!(events, written);
    // And once more, all from the past.
    assert_eq!(run.watch("", from).await.first(TASKS * EACH).await, written);
}

async fn dropped_calls_lose_nothing(run: Run) {
    let mut seen = run.watch("", run.revision().await + 1).await;
    let mut expected = Vec::new();
    for n in 0..50 {
        expected.push(format!("{} a={n}", run.put("a", &n.to_string()).await));
        let wait = std::time::Duration::from_micros(n * 100);
        if let Some(events) = run.subject.env.timeout(wait, seen.watch.next()).await {
            seen.events.extend(events.unwrap());
        }
    }
    assert_eq!(seen.first(50).await, expected);
}

async fn revision_zero_is_refused(run: Run) {
    let range = run.key("a")..run.key("b");
    let answer = run.subject.store.watch(range, 0).await;
    assert!(matches!(answer.err(), Some(MetaError::Refused(_))));
}
