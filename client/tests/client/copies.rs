//! Copies: what is stored is what was read, of one generation, or nothing.

use cairn_client::{Client, Condition, Counter, ErrorCode, FileInfo, Result, UploadOptions};

use crate::fake::Fault;
use crate::{Cluster, content};

const MIB: usize = 1 << 20;

async fn copy(client: &Client, options: UploadOptions) -> Result<FileInfo> {
    client.copy(("files", "from"), ("files", "to"), options).await
}

#[tokio::test]
async fn a_copy_has_the_content_and_the_digest_of_its_source() {
    let cluster = Cluster::start(1).await;
    for length in [0, 1, 3 * MIB + 7] {
        let content = content(length);
        let source = cluster.fake.store("from", &content);
        let counter = Counter::default();
        let options = UploadOptions { counter: Some(counter.clone()), ..UploadOptions::default() };
        let stored = copy(&cluster.client(), options).await.unwrap();
        assert_eq!((stored.size_bytes, &stored.blake3), (length as u64, &source.blake3));
        assert_ne!(stored.etag, source.etag, "a generation of its own");
        assert!(cluster.fake.content("to").unwrap() == content, "{length}");
        assert_eq!(counter.get(), length as u64);
    }
}

#[tokio::test]
async fn an_attempt_that_failed_is_repeated_with_the_same_generation() {
    let cluster = Cluster::start(2).await;
    let content = content(2 * MIB);
    cluster.fake.store("from", &content);
    cluster.fake.fail("upload", [Fault::Refuse(ErrorCode::Conflict), Fault::Refuse(ErrorCode::Overloaded)]);
    cluster.fake.fail("download", [Fault::CutAfter(MIB / 2)]);
    copy(&cluster.client(), UploadOptions::default()).await.unwrap();
    assert!(cluster.fake.content("to").unwrap() == content);
    assert_eq!(cluster.fake.calls("upload"), 3);
}

#[tokio::test]
async fn what_cannot_be_read_well_is_not_stored_and_says_why() {
    let cluster = Cluster::start(1).await;
    let error = copy(&cluster.client(), UploadOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileNotFound);
    cluster.fake.store("from", &content(MIB));
    cluster.fake.fail("download", [Fault::Corrupt]);
    let error = copy(&cluster.client(), UploadOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DigestMismatch, "{error:?}");
    cluster.fake.fail("download", [Fault::CutAfter(MIB / 2), Fault::Refuse(ErrorCode::DataCorrupt)]);
    let error = copy(&cluster.client(), UploadOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DataCorrupt, "the reason is the reader's: {error:?}");
    assert_eq!(cluster.fake.content("to"), None);
}

#[tokio::test]
async fn a_source_that_changes_meanwhile_is_named_as_the_reason() {
    let cluster = Cluster::start(1).await;
    cluster.fake.store("from", &content(MIB));
    // The first attempt fails, and the second one finds the generation gone.
    cluster.fake.fail("upload", [Fault::Refuse(ErrorCode::Conflict)]);
    cluster.fake.fail("download", [Fault::CutAfter(MIB), Fault::Refuse(ErrorCode::PreconditionFailed)]);
    let error = copy(&cluster.client(), UploadOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PreconditionFailed, "{error:?}");
    assert!(error.cause().contains("source") && error.help() == "copy it again", "{error:?}");
    assert_eq!(cluster.fake.content("to"), None);
}

#[tokio::test]
async fn a_condition_is_about_what_is_replaced() {
    let cluster = Cluster::start(1).await;
    cluster.fake.store("from", b"new");
    cluster.fake.store("to", b"old");
    let options = UploadOptions { condition: Condition::IfAbsent, ..UploadOptions::default() };
    let error = copy(&cluster.client(), options).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PreconditionFailed);
    assert_eq!(cluster.fake.content("to").unwrap(), &b"old"[..]);
}
