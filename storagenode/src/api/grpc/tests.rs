//! gRPC against files in memory: what goes over the wire, and what is refused.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use cairn_proto::v1::{
    self, admin_client::AdminClient, files_client::FilesClient, volumes_client::VolumesClient,
};
use hyper_util::rt::TokioIo;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::api::{
    fake::{Rig, TOKEN, every_error},
    status::code_of,
};

async fn channel(rig: &Rig, peer: PeerIdentity) -> Channel {
    let dialer = rig.grpc.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (dialer, peer) = (dialer.clone(), peer.clone());
        async move { dialer.dial(peer).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://memory").connect_with_connector(connector).await.unwrap()
}

use ::http::Uri;

fn client_certificate() -> PeerIdentity {
    PeerIdentity::Client { name: "c".into() }
}

struct Clients {
    files: FilesClient<Channel>,
    volumes: VolumesClient<Channel>,
    admin: AdminClient<Channel>,
}

async fn clients(rig: &Rig, peer: PeerIdentity) -> Clients {
    let channel = channel(rig, peer).await;
    Clients {
        files: FilesClient::new(channel.clone()),
        volumes: VolumesClient::new(channel.clone()),
        admin: AdminClient::new(channel),
    }
}

async fn rig_with_volume() -> (Rig, Clients) {
    let rig = Rig::start(Routes::default()).await;
    let mut clients = clients(&rig, client_certificate()).await;
    let request = v1::CreateVolumeRequest { name: "v".into(), ..Default::default() };
    assert!(clients.volumes.create_volume(request).await.unwrap().into_inner().created);
    (rig, clients)
}

fn header(path: &str) -> v1::UploadRequest {
    let header = v1::UploadHeader { volume: "v".into(), path: path.into(), ..Default::default() };
    v1::UploadRequest { part: Some(v1::upload_request::Part::Header(header)) }
}

fn data(bytes: impl Into<Bytes>) -> v1::UploadRequest {
    v1::UploadRequest { part: Some(v1::upload_request::Part::Data(bytes.into())) }
}

async fn upload(clients: &mut Clients, messages: Vec<v1::UploadRequest>) -> Result<v1::FileInfo, Status> {
    let answer = clients.files.upload(futures::stream::iter(messages)).await?;
    Ok(answer.into_inner().file.unwrap())
}

fn download_request(path: &str, offset: u64, length: Option<u64>) -> v1::DownloadRequest {
    v1::DownloadRequest { volume: "v".into(), path: path.into(), offset, length, ..Default::default() }
}

async fn download(
    clients: &mut Clients,
    request: v1::DownloadRequest,
) -> Result<(v1::DownloadHeader, Bytes), Status> {
    let mut messages = clients.files.download(request).await?.into_inner();
    let Some(v1::download_response::Part::Header(header)) = messages.message().await?.unwrap().part else {
        panic!("the header comes first")
    };
    let mut content = Vec::new();
    while let Some(message) = messages.message().await? {
        match message.part {
            Some(v1::download_response::Part::Data(data)) => {
                assert!(data.len() <= crate::api::flow::MAX_OUT_BYTES);
                content.extend_from_slice(&data);
            }
            other => panic!("{other:?}"),
        }
    }
    Ok((header, content.into()))
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> ErrorCode {
    let status = answer.unwrap_err();
    code_of(&status).unwrap_or_else(|| panic!("no code in {status:?}"))
}

#[tokio::test]
async fn a_file_goes_in_and_comes_out() {
    let (rig, mut clients) = rig_with_volume().await;
    let content = Bytes::from((0..3_000_000u32).map(|n| n as u8).collect::<Vec<_>>());
    let parts = [0..1 << 20, 1 << 20..2 << 20, 2 << 20..3_000_000].map(|part| data(content.slice(part)));
    let messages = [header("a/ü b")].into_iter().chain(parts).collect();
    let file = upload(&mut clients, messages).await.unwrap();
    assert_eq!((file.size_bytes, file.path.as_str()), (3_000_000, "a/ü b"));
    assert_eq!(file.blake3, blake3::hash(&content).as_bytes()[..]);

    let (header, got) = download(&mut clients, download_request("a/ü b", 0, None)).await.unwrap();
    assert_eq!((header.file.unwrap(), header.offset, header.length), (file.clone(), 0, 3_000_000));
    assert_eq!(got, content);
    let (header, got) = download(&mut clients, download_request("a/ü b", 7, Some(5))).await.unwrap();
    assert_eq!((header.offset, header.length), (7, 5));
    assert_eq!(got, content.slice(7..12));

    let request =
        v1::StatRequest { volume: "v".into(), path: "a/ü b".into(), chunks: true, ..Default::default() };
    let stat = clients.files.stat(request).await.unwrap().into_inner();
    assert_eq!(stat.file.unwrap(), file);
    let copies: Vec<_> =
        stat.chunks[0].copies.iter().map(|copy| (copy.node.as_str(), copy.zone.as_str())).collect();
    assert_eq!(copies, [("n1", "z1"), ("node #2", "")]);

    let request = v1::ListRequest { volume: "v".into(), delimiter: "/".into(), ..Default::default() };
    assert_eq!(clients.files.list(request).await.unwrap().into_inner().prefixes, ["a/"]);
    let mut request = v1::MoveRequest {
        volume: "v".into(),
        path: "a/ü b".into(),
        to_path: "ü/c".into(),
        if_match: "0".repeat(31) + "9",
        to_condition: None,
    };
    assert_eq!(refused(clients.files.r#move(request.clone()).await), ErrorCode::PreconditionFailed);
    request.if_match.clone_from(&file.etag);
    let moved = clients.files.r#move(request.clone()).await.unwrap().into_inner().file.unwrap();
    assert_eq!(moved, v1::FileInfo { path: "ü/c".into(), ..file.clone() });
    assert_eq!(refused(clients.files.r#move(request.clone()).await), ErrorCode::FileNotFound);
    for bad in ["", "../x", "/x"] {
        let request = v1::MoveRequest { to_path: bad.into(), ..request.clone() };
        assert_eq!(refused(clients.files.r#move(request).await), ErrorCode::InvalidPath, "{bad:?}");
    }

    let condition = Some(v1::Condition { kind: Some(v1::condition::Kind::IfMatch("0".repeat(31) + "9")) });
    let mut request = v1::DeleteRequest { volume: "v".into(), path: "ü/c".into(), condition };
    assert_eq!(refused(clients.files.delete(request.clone()).await), ErrorCode::PreconditionFailed);
    request.condition = None;
    assert_eq!(clients.files.delete(request).await.unwrap().into_inner().file.unwrap().etag, file.etag);
    assert_eq!((rig.metrics.bytes_in.get(), rig.metrics.bytes_out.get()), (3_000_000, 3_000_005));
    assert_eq!(rig.metrics.open_streams.get(), 0);
}

#[tokio::test]
async fn old_answers_are_given_to_those_who_allow_them_and_say_so() {
    let (rig, mut clients) = rig_with_volume().await;
    let file = upload(&mut clients, vec![header("p"), data("content")]).await.unwrap();
    let stat =
        |chunks, allow_stale| v1::StatRequest { volume: "v".into(), path: "p".into(), chunks, allow_stale };
    let get = |allow_stale| v1::DownloadRequest { allow_stale, ..download_request("p", 0, None) };
    let now = clients.files.stat(stat(false, true)).await.unwrap().into_inner();
    assert_eq!(now.stale_ms, None, "the store is there");
    assert_eq!(download(&mut clients, get(true)).await.unwrap().0.stale_ms, None);

    *rig.files.away.lock() = Some(Duration::from_millis(12_345));
    for chunks in [false, true] {
        let old = clients.files.stat(stat(chunks, true)).await.unwrap().into_inner();
        assert_eq!(
            (old.file, old.stale_ms, old.chunks.len()),
            (Some(file.clone()), Some(12_345), chunks.into())
        );
        assert_eq!(refused(clients.files.stat(stat(chunks, false)).await), ErrorCode::MetadataUnavailable);
    }
    let (old, content) = download(&mut clients, get(true)).await.unwrap();
    assert_eq!((old.stale_ms, &content[..]), (Some(12_345), &b"content"[..]));
    assert_eq!(refused(download(&mut clients, get(false)).await), ErrorCode::MetadataUnavailable);
}

#[tokio::test]
async fn every_error_reaches_the_caller() {
    let (rig, mut clients) = rig_with_volume().await;
    for error in every_error() {
        let expected = Refusal::from(error.clone());
        *rig.files.fail_next.lock() = Some(error.clone());
        let request = v1::StatRequest { volume: "v".into(), path: "p".into(), ..Default::default() };
        let status = clients.files.stat(request).await.unwrap_err();
        assert_eq!(code_of(&status), Some(expected.code), "{error:?}");
        assert_eq!((status.code(), status.message()), (expected.entry().grpc, expected.cause.as_str()));

        *rig.files.fail_next.lock() = Some(error.clone());
        let answer = upload(&mut clients, vec![header("p"), data("x")]).await;
        assert_eq!(refused(answer), expected.code, "{error:?}");
    }
}

#[tokio::test]
async fn a_download_that_breaks_says_why() {
    let (rig, mut clients) = rig_with_volume().await;
    upload(&mut clients, vec![header("p"), data("content")]).await.unwrap();
    *rig.files.fail_content.lock() = Some(FileError::DataCorrupt { path: "p".into(), index: 0 });
    let answer = download(&mut clients, download_request("p", 0, None)).await;
    assert_eq!(refused(answer), ErrorCode::DataCorrupt);
    drop(clients);
    let text = rig.metrics.encode();
    assert!(text.contains(r#"method="Files/Download",code="DATA_CORRUPT"} 1"#), "{text}");
    assert!(text.contains(r#"method="Files/Upload",code="OK"} 1"#), "{text}");
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let (_rig, mut clients) = rig_with_volume().await;
    let bad_condition = |kind| {
        let mut message = header("p");
        if let Some(v1::upload_request::Part::Header(header)) = &mut message.part {
            header.condition = Some(v1::Condition { kind });
        }
        message
    };
    let edit = |edit: fn(&mut v1::UploadHeader)| {
        let mut message = header("p");
        if let Some(v1::upload_request::Part::Header(header)) = &mut message.part {
            edit(header);
        }
        vec![message]
    };
    use ErrorCode as E;
    for (messages, code) in [
        (vec![], E::InvalidArgument),
        (vec![data("x")], E::InvalidArgument),
        (vec![v1::UploadRequest { part: None }], E::InvalidArgument),
        (vec![header("p"), header("p")], E::InvalidArgument),
        (vec![header("p"), v1::UploadRequest { part: None }], E::InvalidArgument),
        (vec![header("p"), data(vec![0; (1 << 20) + 1])], E::InvalidArgument),
        (vec![header("p"), data(vec![0; MAX_MESSAGE_BYTES + 1])], E::InvalidArgument),
        (vec![bad_condition(None)], E::InvalidArgument),
        (vec![bad_condition(Some(v1::condition::Kind::IfAbsent(false)))], E::InvalidArgument),
        (vec![bad_condition(Some(v1::condition::Kind::IfMatch("x".into())))], E::InvalidArgument),
        (edit(|header| header.blake3 = Some(Bytes::from_static(b"short"))), E::InvalidArgument),
        (edit(|header| header.content_type = "a\nb".into()), E::InvalidArgument),
        (edit(|header| header.volume = "No".into()), E::InvalidVolumeName),
        (edit(|header| header.volume = "other".into()), E::VolumeNotFound),
        (edit(|header| header.size_bytes = Some(3)), E::SizeMismatch),
        (edit(|header| header.blake3 = Some(Bytes::from(vec![0; 32]))), E::DigestMismatch),
    ] {
        let shown = format!("{messages:.80?}");
        assert_eq!(refused(upload(&mut clients, messages).await), code, "{shown}");
    }
    for path in ["", "/etc/passwd", "..", "a/../b", "a//b", "a\0b", &"x".repeat(1_025)] {
        assert_eq!(refused(upload(&mut clients, vec![header(path)]).await), E::InvalidPath, "{path:?}");
    }
    let create = |name: &str, copies, chunk_size_bytes| v1::CreateVolumeRequest {
        name: name.into(),
        copies,
        chunk_size_bytes,
    };
    assert_eq!(refused(clients.volumes.create_volume(create("w", 8, 0)).await), E::InvalidArgument);
    assert_eq!(refused(clients.volumes.create_volume(create("w", 1, 1)).await), E::InvalidArgument);
    assert_eq!(refused(clients.volumes.create_volume(create("W", 1, 0)).await), E::InvalidVolumeName);
    assert_eq!(refused(download(&mut clients, download_request("p", 0, None)).await), E::FileNotFound);
}

#[tokio::test]
async fn page_sizes_are_taken_as_they_are_or_refused() {
    let (_rig, mut clients) = rig_with_volume().await;
    for (size, good) in [(0, true), (1, true), (10_000, true), (10_001, false), (u32::MAX, false)] {
        let page = Some(v1::PageRequest { size, token: String::new() });
        let files = v1::ListRequest { volume: "v".into(), page: page.clone(), ..Default::default() };
        let files = clients.files.list(files).await.map(|_| ());
        let volumes = clients.volumes.list_volumes(v1::ListVolumesRequest { page }).await.map(|_| ());
        for answer in [files, volumes] {
            assert_eq!(answer.is_ok(), good, "{size}: {answer:?}");
            if let Err(status) = answer {
                assert_eq!(code_of(&status), Some(ErrorCode::InvalidArgument), "{size}: {status:?}");
                assert!(status.message().contains("from 1 to 10000"), "{status:?}");
            }
        }
    }
}

#[tokio::test]
async fn rights_are_checked_before_anything_else() {
    let rig = Rig::start(Routes::default()).await;
    let mut anonymous = clients(&rig, PeerIdentity::Anonymous).await;
    let list = || v1::ListVolumesRequest::default();
    assert_eq!(refused(anonymous.volumes.list_volumes(list()).await), ErrorCode::Unauthenticated);
    let mut request = Request::new(list());
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    anonymous.volumes.list_volumes(request).await.unwrap();
    let mut request = Request::new(list());
    request.metadata_mut().insert("authorization", "Bearer wrong".parse().unwrap());
    assert_eq!(refused(anonymous.volumes.list_volumes(request).await), ErrorCode::Unauthenticated);

    let intent = |generation, names: &[&str]| v1::SetIntentRequest {
        generation,
        nodes: names
            .iter()
            .map(|name| v1::IntendedNode { name: name.to_string(), zone: "z".into() })
            .collect(),
    };
    let mut client = clients(&rig, client_certificate()).await;
    assert_eq!(client.admin.status(v1::StatusRequest {}).await.unwrap().into_inner().cluster, "test");
    assert_eq!(refused(client.admin.set_intent(intent(1, &["a"])).await), ErrorCode::PermissionDenied);
    let mut operator = clients(&rig, PeerIdentity::Operator { name: "o".into() }).await;
    assert_eq!(operator.admin.set_intent(intent(2, &["a"])).await.unwrap().into_inner().generation, 2);
    assert_eq!(refused(operator.admin.set_intent(intent(1, &["a"])).await), ErrorCode::StaleGeneration);
    assert_eq!(refused(operator.admin.set_intent(intent(3, &["a", "a"])).await), ErrorCode::InvalidArgument);
    assert_eq!(refused(operator.admin.set_intent(intent(3, &[""])).await), ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn health_and_reflection_need_no_token() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let rig = Rig::start(Routes::default()).await;
    let channel = channel(&rig, PeerIdentity::Anonymous).await;
    let mut health = HealthClient::new(channel.clone());
    let serving = health.check(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(serving.status, 1);

    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let mut answers =
        reflection.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in
        ["cairn.v1.Files", "cairn.v1.Volumes", "cairn.v1.Admin", "cairn.v1.Peer", "grpc.health.v1.Health"]
    {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

#[tokio::test]
async fn deadlines_hold_and_leaving_ends_the_work() {
    let (rig, mut clients) = rig_with_volume().await;
    *rig.files.hang.lock() = true;
    let mut request =
        Request::new(v1::StatRequest { volume: "v".into(), path: "p".into(), ..Default::default() });
    // As another gRPC library would send it: tonic's own client would not wait for our answer.
    request.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let status = clients.files.stat(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");

    let mut leaving = clients.files.clone();
    let messages = futures::stream::iter([header("p")]).chain(futures::stream::pending());
    let upload = tokio::spawn(async move { leaving.upload(messages).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(rig.files.uploads_dropped.load(Ordering::Relaxed), 0);
    upload.abort();
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if rig.files.uploads_dropped.load(Ordering::Relaxed) == 1 {
            return;
        }
    }
    panic!("the upload goes on without its caller");
}

/// What has come of an upload that nobody reads yet takes memory that no budget counts.
#[tokio::test]
async fn requests_for_which_there_is_no_place_are_refused_unread() {
    let (rig, mut late) = rig_with_volume().await;
    let places = crate::api::ConnectionLimits::default().requests;
    let mut uploads = Vec::new();
    // More than enough of them, on as many connections as that takes.
    for _ in 0..=places / 100 {
        let clients = clients(&rig, client_certificate()).await;
        uploads.extend((0..100).map(|number| {
            let messages =
                futures::stream::iter([header(&number.to_string())]).chain(futures::stream::pending());
            let mut files = clients.files.clone();
            tokio::spawn(async move { files.upload(messages).await })
        }));
    }
    let begun = std::time::Instant::now();
    while uploads.iter().filter(|upload| upload.is_finished()).count() < uploads.len() - places {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} under way", rig.metrics.open_streams.get());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(refused(upload(&mut late, vec![header("p"), data("x")]).await), ErrorCode::Overloaded);
    assert_eq!(rig.metrics.open_streams.get() as usize, places);
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(channel(&rig, client_certificate()).await);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("it is well");
    for peer in [PeerIdentity::Operator { name: "o".into() }, PeerIdentity::Node { name: "n1".into() }] {
        let answer = clients(&rig, peer.clone()).await.admin.status(v1::StatusRequest {}).await;
        let code = answer.err().and_then(|status| code_of(&status));
        assert_ne!(code, Some(ErrorCode::Overloaded), "{peer:?}");
    }
    uploads.iter().for_each(|upload| upload.abort());
    let begun = std::time::Instant::now();
    while let Err(error) = upload(&mut late, vec![header("p"), data("x")]).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A call that is dropped in the middle of its content reaches the server as a reset stream.
#[tokio::test]
async fn an_upload_that_is_given_up_stores_nothing() {
    let (rig, mut clients) = rig_with_volume().await;
    for round in 0..20 {
        let mut leaving = clients.files.clone();
        let messages = futures::stream::iter([header("p"), data("half")]).chain(futures::stream::pending());
        let upload = tokio::spawn(async move { leaving.upload(messages).await });
        tokio::time::sleep(Duration::from_millis(round)).await;
        upload.abort();
    }
    // The same connection: what was sent before is handled before.
    let request = v1::StatRequest { volume: "v".into(), path: "p".into(), ..Default::default() };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(refused(clients.files.stat(request).await), ErrorCode::FileNotFound);
    assert_eq!(rig.metrics.open_streams.get(), 0);
}

use futures::StreamExt;

#[tokio::test]
async fn stopping_lets_requests_end_and_refuses_new_ones() {
    let (rig, clients) = rig_with_volume().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(header("p")).await.unwrap();
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut uploading = clients.files.clone();
    let upload = tokio::spawn(async move { uploading.upload(messages).await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let (running, grpc) = (rig.running, rig.grpc);
    let stopping = tokio::spawn(running.stop(std::time::Duration::from_secs(20)));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(grpc.dial(PeerIdentity::Anonymous).await.is_err());
    sender.send(data("rest")).await.unwrap();
    drop(sender);
    assert_eq!(upload.await.unwrap().unwrap().into_inner().file.unwrap().size_bytes, 4);
    drop(clients);
    stopping.await.unwrap();
}

#[test]
fn grpc_timeouts() {
    let parse = |text: &str| {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().unwrap());
        deadline(&metadata).map_err(|refusal| refusal.code)
    };
    assert_eq!(parse("1H"), Ok(Some(Duration::from_secs(3_600))));
    assert_eq!(parse("99999999S"), Ok(Some(Duration::from_secs(99_999_999))));
    assert_eq!(parse("250m"), Ok(Some(Duration::from_millis(250))));
    assert_eq!(parse("7u"), Ok(Some(Duration::from_micros(7))));
    for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S"] {
        assert_eq!(parse(bad), Err(ErrorCode::InvalidArgument), "{bad}");
    }
    assert_eq!(deadline(&MetadataMap::new()).unwrap(), None);
}
