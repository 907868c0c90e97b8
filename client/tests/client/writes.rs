//! Uploads and deletions: whole or not at all, repeated only when that is safe.

use bytes::Bytes;
use cairn_client::{
    BytesSource, Client, Condition, Counter, CreateVolume, Effect, ErrorCode, MoveOptions, UploadOptions,
};
use futures::stream;

use crate::fake::{Fault, cutting_proxy, dead_address};
use crate::{Cluster, content};

const MIB: usize = 1 << 20;

fn unconditional() -> UploadOptions {
    UploadOptions::default()
}

fn conditional(condition: Condition) -> UploadOptions {
    UploadOptions { condition, ..UploadOptions::default() }
}

async fn put(
    client: &Client,
    options: UploadOptions,
    body: &[u8],
) -> cairn_client::Result<cairn_client::FileInfo> {
    client.upload_bytes("files", "a/b", options, Bytes::copy_from_slice(body)).await
}

#[tokio::test]
async fn all_sizes_from_bytes_files_readers_and_streams() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let folder = tempfile::tempdir().unwrap();
    for size in [0, 1, 65_535, 65_536, MIB, MIB + 1, 5 * MIB] {
        let body = content(size);
        let path = folder.path().join("local");
        std::fs::write(&path, &body).unwrap();
        let counter = Counter::default();
        let options = UploadOptions { counter: Some(counter.clone()), ..unconditional() };
        client.upload_file("files", "file", options, &path).await.unwrap();
        assert_eq!(counter.get(), size as u64);
        client.upload_bytes("files", "bytes", unconditional(), body.clone().into()).await.unwrap();
        let reader = std::io::Cursor::new(body.clone());
        client.upload_reader("files", "reader", unconditional(), None, reader).await.unwrap();
        let pieces: Vec<_> = body.chunks(100_003).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let stored = client
            .upload_stream("files", "stream", unconditional(), None, stream::iter(pieces))
            .await
            .unwrap();
        assert_eq!(stored.blake3[..], blake3::hash(&body).as_bytes()[..]);
        for name in ["file", "bytes", "reader", "stream"] {
            assert_eq!(cluster.fake.content(name).unwrap(), body, "{name} {size}");
        }
    }
}

#[tokio::test]
async fn refusals_that_waiting_does_not_mend_are_not_repeated() {
    let cluster = Cluster::start(2).await;
    cluster.fake.fail("upload", [Fault::Refuse(ErrorCode::OutOfSpace)]);
    let error = put(&cluster.client(), unconditional(), b"x").await.unwrap_err();
    assert_eq!((error.code(), error.effect()), (ErrorCode::OutOfSpace, Effect::Nothing));
    assert_eq!(error.help(), "help from the server");
    assert_eq!(cluster.fake.calls("upload"), 1);
}

#[tokio::test]
async fn passing_refusals_are_repeated_and_not_for_ever() {
    let cluster = Cluster::start(2).await;
    let refuse = Fault::Refuse(ErrorCode::NotEnoughNodes);
    cluster.fake.fail("upload", [refuse, Fault::Refuse(ErrorCode::Conflict)]);
    put(&cluster.client(), unconditional(), b"x").await.unwrap();
    assert_eq!(cluster.fake.calls("upload"), 3);
    cluster.fake.fail("upload", [refuse; 100]);
    let error = put(&cluster.client(), unconditional(), b"x").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotEnoughNodes);
    assert_eq!(cluster.fake.calls("upload"), 3 + 5);
}

#[tokio::test]
async fn an_unknown_commit_that_happened_is_found_and_not_repeated() {
    for fault in [Fault::DoThenUnknown, Fault::DoThenBreak] {
        let cluster = Cluster::start(2).await;
        cluster.fake.fail("upload", [fault]);
        put(&cluster.client(), unconditional(), b"new").await.unwrap();
        assert_eq!(cluster.fake.calls("upload"), 1, "{fault:?}");
        assert_eq!(cluster.fake.calls("stat"), 1);
    }
}

/// It may have happened, and somebody else may have deleted or replaced the file since: that would be undone.
#[tokio::test]
async fn an_unknown_commit_that_nothing_shows_is_not_repeated() {
    for stored_since in [None, Some("another's")] {
        for condition in [Condition::Always, Condition::IfAbsent] {
            let cluster = Cluster::start(2).await;
            if let (Some(content), Condition::Always) = (stored_since, &condition) {
                cluster.fake.store("a/b", content.as_bytes());
            }
            cluster.fake.fail("upload", [Fault::SkipThenUnknown]);
            let error = put(&cluster.client(), conditional(condition), b"new").await.unwrap_err();
            assert_eq!((error.code(), error.effect()), (ErrorCode::CommitUnknown, Effect::Unknown));
            assert_eq!(cluster.fake.calls("upload"), 1);
        }
    }
}

#[tokio::test]
async fn a_conditional_upload_never_claims_what_it_does_not_know() {
    let cluster = Cluster::start(1).await;
    cluster.fake.fail("upload", [Fault::DoThenUnknown]);
    let error = put(&cluster.client(), conditional(Condition::IfAbsent), b"new").await.unwrap_err();
    assert_eq!((error.code(), error.effect()), (ErrorCode::CommitUnknown, Effect::Unknown));
    assert_eq!(cluster.fake.calls("upload"), 1);

    let old = cluster.fake.store("a/b", b"old");
    cluster.fake.fail("upload", [Fault::SkipThenUnknown]);
    put(&cluster.client(), conditional(Condition::IfMatch(old.etag)), b"newer").await.unwrap();
    assert_eq!(cluster.fake.content("a/b").unwrap(), "newer", "the old one was still there: safe to repeat");
}

#[tokio::test]
async fn when_looking_fails_too_the_upload_is_unknown() {
    let cluster = Cluster::start(1).await;
    cluster.fake.fail("upload", [Fault::SkipThenUnknown]);
    cluster.fake.fail("stat", [Fault::Refuse(ErrorCode::MetadataUnavailable); 100]);
    let error = put(&cluster.client(), unconditional(), b"new").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CommitUnknown);
    assert!(error.help().contains("cairn stat"));
    assert_eq!(cluster.fake.calls("upload"), 1);
}

#[tokio::test]
async fn a_cut_upload_goes_to_another_node_if_it_can_be_read_again() {
    let cluster = Cluster::start(1).await;
    let body = content(8 * MIB);
    for _ in 0..3 {
        let node: std::net::SocketAddr = cluster.addresses[0].parse().unwrap();
        let proxy = cutting_proxy(node, 3 * MIB as i64).await.to_string();
        let config = cluster.config([proxy, cluster.addresses[0].clone()]);
        let client = Client::connect(config).unwrap();
        let counter = Counter::default();
        for _ in 0..2 {
            let options = UploadOptions { counter: Some(counter.clone()), ..unconditional() };
            let source = BytesSource(body.clone().into());
            client.upload("files", "again", options, &source).await.unwrap();
        }
        assert_eq!(counter.get(), 2 * body.len() as u64, "failed attempts are not counted");
        assert_eq!(cluster.fake.content("again").unwrap(), body);
    }
}

#[tokio::test]
async fn a_cut_upload_of_what_exists_once_stores_nothing() {
    let cluster = Cluster::start(1).await;
    let node: std::net::SocketAddr = cluster.addresses[0].parse().unwrap();
    let proxy = cutting_proxy(node, 3 * MIB as i64).await.to_string();
    let client = Client::connect(cluster.config([proxy])).unwrap();
    let reader = std::io::Cursor::new(content(8 * MIB));
    let error = client.upload_reader("files", "once", unconditional(), None, reader).await.unwrap_err();
    assert_eq!((error.code(), error.effect()), (ErrorCode::Unavailable, Effect::Nothing), "{error:?}");
    assert!(cluster.fake.content("once").is_none());
}

#[tokio::test]
async fn a_dead_node_does_not_stop_what_exists_once() {
    let cluster = Cluster::start(1).await;
    for _ in 0..4 {
        let dead = dead_address().await.to_string();
        let client = Client::connect(cluster.config([dead, cluster.addresses[0].clone()])).unwrap();
        client.upload_reader("files", "once", unconditional(), None, &b"abc"[..]).await.unwrap();
        assert_eq!(cluster.fake.content("once").unwrap(), "abc");
    }
}

#[tokio::test]
async fn a_source_that_fails_never_becomes_a_short_file() {
    let cluster = Cluster::start(1).await;
    let pieces = [Ok(Bytes::from(content(3 * MIB))), Err(std::io::Error::other("disk gone"))];
    let client = cluster.client();
    let error =
        client.upload_stream("files", "half", unconditional(), None, stream::iter(pieces)).await.unwrap_err();
    assert!(error.to_string().contains("disk gone"), "{error}");
    assert_eq!(error.code_name(), "LOCAL");
    // The next call goes over the same connection, after the reset.
    client.upload_bytes("files", "whole", unconditional(), "x".into()).await.unwrap();
    assert!(cluster.fake.content("half").is_none());
}

#[tokio::test]
async fn a_node_that_hangs_is_given_up() {
    let cluster = Cluster::start(2).await;
    cluster.fake.fail("upload", [Fault::Hang]);
    put(&cluster.client(), unconditional(), &content(3 * MIB)).await.unwrap();
    assert_eq!(cluster.fake.calls("upload"), 2);
}

#[tokio::test]
async fn a_deletion_whose_answer_is_lost_is_looked_for() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    cluster.fake.store("a", b"1");
    cluster.fake.fail("delete", [Fault::DoThenBreak]);
    assert_eq!(client.delete("files", "a", Condition::Always).await.unwrap(), None);
    assert_eq!(cluster.fake.calls("delete"), 1);

    cluster.fake.store("a", b"1");
    cluster.fake.fail("delete", [Fault::SkipThenUnknown]);
    let error = client.delete("files", "a", Condition::Always).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CommitUnknown);
    assert_eq!(cluster.fake.calls("delete"), 2, "somebody may have stored it anew");

    let file = cluster.fake.store("a", b"1");
    cluster.fake.fail("delete", [Fault::SkipThenUnknown, Fault::DoThenBreak]);
    client.delete("files", "a", Condition::IfMatch(file.etag)).await.unwrap();
    assert!(cluster.fake.content("a").is_none());
    let error = client.delete("files", "a", Condition::Always).await.unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn a_move_whose_answer_is_lost_is_looked_for() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    let moved = async |path: &str, to: &str, options| client.move_file("files", path, to, options).await;
    let file = cluster.fake.store("a", b"1");
    // Done, told wrongly; not done, and done at the second try; done at the first, which the second cannot know.
    for (faults, path, to, calls) in [
        (vec![Fault::DoThenBreak], "a", "b", 1),
        (vec![Fault::SkipThenUnknown], "b", "c", 3),
        (vec![Fault::SkipThenUnknown, Fault::DoThenUnknown], "c", "d", 5),
    ] {
        cluster.fake.fail("move", faults);
        let seen = moved(path, to, MoveOptions::default()).await.unwrap();
        assert_eq!((seen.path.as_str(), &seen.etag), (to, &file.etag));
        assert_eq!(cluster.fake.calls("move"), calls, "{path} {to}");
        assert!(cluster.fake.content(path).is_none());
    }
    // A file that is stored under the old name meanwhile is another one, and is not touched.
    let newer = cluster.fake.store("a", b"2");
    cluster.fake.fail("move", [Fault::SkipThenUnknown]);
    let old = MoveOptions { if_match: Some("0".repeat(32)), ..MoveOptions::default() };
    let error = moved("a", "e", old).await.unwrap_err();
    assert_eq!((error.code(), error.effect()), (ErrorCode::CommitUnknown, Effect::Unknown));
    assert!(error.help().contains("cairn stat"));
    assert_eq!(client.stat("files", "a").await.unwrap().etag, newer.etag);
}

#[tokio::test]
async fn a_move_that_is_refused_is_told_and_not_repeated() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    cluster.fake.store("a", b"1");
    cluster.fake.store("b", b"2");
    let only_new = MoveOptions { condition: Condition::IfAbsent, ..MoveOptions::default() };
    let error = client.move_file("files", "a", "b", only_new).await.unwrap_err();
    assert_eq!((error.code(), error.effect()), (ErrorCode::PreconditionFailed, Effect::Nothing));
    assert_eq!(cluster.fake.calls("move"), 1);
    let error = client.move_file("files", "z", "b", MoveOptions::default()).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!((cluster.fake.calls("move"), cluster.fake.content("b").unwrap()), (1, Bytes::from("2")));
}

/// Somebody else may have deleted it since: it does not come back.
#[tokio::test]
async fn a_volume_whose_creation_is_unknown_is_looked_for_and_not_created_again() {
    let volume = || CreateVolume { name: "v".into(), copies: Some(2), chunk_size_bytes: None };
    for (fault, stored) in [(Fault::DoThenBreak, true), (Fault::SkipThenUnknown, false)] {
        let cluster = Cluster::start(2).await;
        cluster.fake.fail("create_volume", [fault]);
        match cluster.client().create_volume(volume()).await {
            Ok((found, _)) => assert!(stored && found.copies == 2),
            Err(error) => assert!(!stored && error.code() == ErrorCode::CommitUnknown, "{error}"),
        }
        assert_eq!(cluster.fake.calls("create_volume"), 1);
    }
}
