//! HTTP against files in memory, and the OpenAPI document against the routes.

use std::collections::BTreeSet;

use ::http::{HeaderName, Request as HttpRequest};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

use super::*;
use crate::{
    api::{
        decode,
        fake::{Rig, TOKEN, every_error, quick_env},
    },
    files::{DEFAULT_PAGE, MAX_PAGE},
};

type Whole = ::http::Response<Bytes>;

/// One request over a connection of its own, as `peer`, with these headers and nothing else.
async fn raw(
    rig: &Rig,
    peer: PeerIdentity,
    method: Method,
    path: &str,
    headers: &[(HeaderName, &str)],
    body: impl Into<Bytes>,
) -> Whole {
    let io = TokioIo::new(rig.http.dial(peer).await.unwrap());
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut request = HttpRequest::builder().method(method).uri(path).header(header::HOST, "test");
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let response = sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    Whole::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

async fn call(
    rig: &Rig,
    method: Method,
    path: &str,
    headers: &[(HeaderName, &str)],
    body: impl Into<Bytes>,
) -> Whole {
    raw(rig, PeerIdentity::Client { name: "c".into() }, method, path, headers, body).await
}

async fn get_(rig: &Rig, path: &str, headers: &[(HeaderName, &str)]) -> Whole {
    call(rig, Method::GET, path, headers, "").await
}

fn json_of(response: &Whole) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_else(|_| panic!("no JSON: {response:?}"))
}

fn code_of(response: &Whole) -> String {
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json", "{response:?}");
    let problem = json_of(response);
    assert_eq!(problem["status"], response.status().as_u16());
    problem["code"].as_str().unwrap().to_owned()
}

async fn rig_with_volume() -> Rig {
    with_volume(Rig::start(tonic::service::Routes::default()).await).await
}

async fn quick_rig_with_volume() -> Rig {
    with_volume(Rig::start_in(quick_env(), tonic::service::Routes::default()).await).await
}

async fn with_volume(rig: Rig) -> Rig {
    let created = call(&rig, Method::POST, VOLUMES, &[], r#"{"name": "v", "copies": 2}"#).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    assert_eq!(created.headers()[header::LOCATION], "/v1/volumes/v");
    rig
}

const PATH: &str = "/v1/volumes/v/files/a/b%20c.txt";

#[tokio::test]
async fn a_file_goes_in_and_comes_out() {
    let rig = rig_with_volume().await;
    let text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    let put = call(&rig, Method::PUT, PATH, &text, "0123456789").await;
    assert_eq!(put.status(), StatusCode::OK);
    let file = json_of(&put);
    assert_eq!((file["path"].as_str(), file["size_bytes"].as_u64()), (Some("a/b c.txt"), Some(10)));
    let digest = blake3::hash(b"0123456789").to_hex().to_string();
    assert_eq!(file["blake3"], digest.as_str());

    let got = get_(&rig, PATH, &[]).await;
    assert_eq!((got.status(), &got.body()[..]), (StatusCode::OK, &b"0123456789"[..]));
    let etag = got.headers()[header::ETAG].to_str().unwrap().to_owned();
    assert_eq!(etag, format!("\"{}\"", file["etag"].as_str().unwrap()));
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", "10"),
        ("x-cairn-blake3", &digest),
        ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(got.headers()[name], *value, "{name}");
    }
    let head = call(&rig, Method::HEAD, PATH, &[], "").await;
    assert_eq!((head.status(), head.body().len()), (StatusCode::OK, 0));
    for name in [header::CONTENT_LENGTH, header::ETAG, header::CONTENT_TYPE] {
        assert_eq!(head.headers()[&name], got.headers()[&name]);
    }
    let again = get_(&rig, PATH, &[(header::IF_NONE_MATCH, &etag)]).await;
    assert_eq!((again.status(), again.body().len()), (StatusCode::NOT_MODIFIED, 0));
    let gone = call(&rig, Method::DELETE, PATH, &[(header::IF_MATCH, &etag)], "").await;
    assert_eq!((gone.status(), json_of(&gone)["etag"].clone()), (StatusCode::OK, file["etag"].clone()));
    assert_eq!(code_of(&get_(&rig, PATH, &[]).await), "FILE_NOT_FOUND");
}

#[tokio::test]
async fn ranges() {
    let rig = rig_with_volume().await;
    let put = call(&rig, Method::PUT, PATH, &[], "0123456789").await;
    let etag = format!("\"{}\"", json_of(&put)["etag"].as_str().unwrap());
    for (range, content, shown) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=7-99", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-99", "0123456789", "bytes 0-9/10"),
        ("bytes=0-0", "0", "bytes 0-0/10"),
    ] {
        for extra in [None, Some((header::IF_RANGE, etag.as_str()))] {
            let headers: Vec<_> = [(header::RANGE, range)].into_iter().chain(extra).collect();
            let got = get_(&rig, PATH, &headers).await;
            assert_eq!(
                (got.status(), &got.body()[..]),
                (StatusCode::PARTIAL_CONTENT, content.as_bytes()),
                "{range}"
            );
            assert_eq!(got.headers()[header::CONTENT_RANGE], shown);
        }
    }
    for ignored in ["bytes=1-2,4-5", "bytes=5-4", "lines=1-2", "bytes=x"] {
        let got = get_(&rig, PATH, &[(header::RANGE, ignored)]).await;
        assert_eq!((got.status(), got.body().len()), (StatusCode::OK, 10), "{ignored}");
    }
    for range in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999-"] {
        let got = get_(&rig, PATH, &[(header::RANGE, range)]).await;
        assert_eq!(got.status(), StatusCode::RANGE_NOT_SATISFIABLE, "{range}");
        assert_eq!(got.headers()[header::CONTENT_RANGE], "bytes */10");
        assert_eq!(code_of(&got), "RANGE_NOT_SATISFIABLE");
        let got = get_(&rig, PATH, &[(header::RANGE, range), (header::IF_MATCH, "\"x\"")]).await;
        assert_eq!(got.status(), StatusCode::PRECONDITION_FAILED, "{range}");
    }
    let other = format!("\"{}\"", "9".repeat(32));
    for stale in [other.as_str(), "Sun, 06 Nov 1994 08:49:37 GMT"] {
        let got = get_(&rig, PATH, &[(header::RANGE, "bytes=2-4"), (header::IF_RANGE, stale)]).await;
        assert_eq!((got.status(), got.body().len()), (StatusCode::OK, 10), "{stale}");
    }
    call(&rig, Method::PUT, "/v1/volumes/v/files/empty", &[], "").await;
    let got = get_(&rig, "/v1/volumes/v/files/empty", &[(header::RANGE, "bytes=-5")]).await;
    assert_eq!((got.status(), got.body().len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn old_answers_are_given_to_those_who_allow_them_and_say_so() {
    let rig = rig_with_volume().await;
    let put = call(&rig, Method::PUT, PATH, &[], "0123456789").await;
    let etag = put.headers()[header::ETAG].to_str().unwrap().to_owned();
    let age = |answer: &Whole| {
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        (header("age"), header("cairn-stale"))
    };
    let (told, silent) = ((Some("13".to_owned()), Some("true".to_owned())), (None, None));
    let now = get_(&rig, PATH, &[(header::CACHE_CONTROL, "max-stale")]).await;
    assert_eq!((now.status(), age(&now)), (StatusCode::OK, silent.clone()), "the store is there");

    *rig.files.away.lock() = Some(Duration::from_millis(12_345));
    for allowed in ["max-stale", "max-stale=13", "max-stale=99999999999999999999", "x, Max-Stale=\"60\""] {
        let allowed = (header::CACHE_CONTROL, allowed);
        let old = get_(&rig, PATH, std::slice::from_ref(&allowed)).await;
        assert_eq!((old.status(), &old.body()[..]), (StatusCode::OK, &b"0123456789"[..]), "{allowed:?}");
        assert_eq!((age(&old), old.headers()[header::ETAG].to_str().unwrap()), (told.clone(), &etag[..]));
        let part = get_(&rig, PATH, &[allowed.clone(), (header::RANGE, "bytes=2-4")]).await;
        assert_eq!(
            (part.status(), &part.body()[..], age(&part)),
            (StatusCode::PARTIAL_CONTENT, &b"234"[..], told.clone())
        );
        let unchanged = get_(&rig, PATH, &[allowed.clone(), (header::IF_NONE_MATCH, &etag)]).await;
        assert_eq!((unchanged.status(), age(&unchanged)), (StatusCode::NOT_MODIFIED, told.clone()));
        let head = call(&rig, Method::HEAD, PATH, &[allowed], "").await;
        assert_eq!((head.status(), age(&head)), (StatusCode::OK, told.clone()));
    }
    for other in
        ["max-stale=12", "max-stale=-1", "max-stale=", "max-stale=1e9", "max-stale, no-cache", "max-age=60"]
    {
        let other = (header::CACHE_CONTROL, other);
        let refused = get_(&rig, PATH, std::slice::from_ref(&other)).await;
        assert_eq!(
            (code_of(&refused), age(&refused)),
            ("METADATA_UNAVAILABLE".into(), silent.clone()),
            "{other:?}"
        );
        let head = call(&rig, Method::HEAD, PATH, &[other], "").await;
        assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let twice = [(header::CACHE_CONTROL, "max-stale"), (header::CACHE_CONTROL, "max-stale=5")];
    assert_eq!(code_of(&get_(&rig, PATH, &twice).await), "METADATA_UNAVAILABLE", "the stricter one counts");
}

/// The present file could be the one that is asked for.
#[tokio::test]
async fn old_answers_are_no_reason_to_refuse() {
    let rig = rig_with_volume().await;
    call(&rig, Method::PUT, PATH, &[], "0123456789").await;
    *rig.files.away.lock() = Some(Duration::from_secs(5));
    let other = format!("\"{}\"", "9".repeat(32));
    let allowed = (header::CACHE_CONTROL, "max-stale");
    let condition = (header::IF_MATCH, other.as_str());
    let refused = get_(&rig, PATH, &[allowed.clone(), condition.clone()]).await;
    assert_eq!(code_of(&refused), "METADATA_UNAVAILABLE");
    let head = call(&rig, Method::HEAD, PATH, &[allowed, condition], "").await;
    assert_eq!((head.status(), head.headers().get(header::AGE)), (StatusCode::SERVICE_UNAVAILABLE, None));
}

#[tokio::test]
async fn conditions_and_digests_of_uploads() {
    let rig = rig_with_volume().await;
    let put = async |headers: &[(HeaderName, &str)]| call(&rig, Method::PUT, PATH, headers, "abc").await;
    let blake3 = HeaderName::from_static("x-cairn-blake3");
    let digest = HeaderName::from_static("digest");
    assert_eq!(code_of(&put(&[(header::IF_MATCH, "*")]).await), "PRECONDITION_FAILED");
    let created = put(&[(header::IF_NONE_MATCH, "*")]).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    assert_eq!(code_of(&put(&[(header::IF_NONE_MATCH, "*")]).await), "PRECONDITION_FAILED");
    let etag = created.headers()[header::ETAG].to_str().unwrap();
    assert_eq!(put(&[(header::IF_MATCH, etag)]).await.status(), StatusCode::OK);
    assert_eq!(put(&[(header::IF_MATCH, etag)]).await.status(), StatusCode::PRECONDITION_FAILED);

    let right = ::blake3::hash(b"abc");
    assert_eq!(put(&[(blake3.clone(), right.to_hex().as_str())]).await.status(), StatusCode::OK);
    assert_eq!(code_of(&put(&[(blake3.clone(), &"0".repeat(64))]).await), "DIGEST_MISMATCH");
    assert_eq!(code_of(&put(&[(blake3, "xyz")]).await), "INVALID_ARGUMENT");
    use base64::Engine;
    let base64 = format!("md5=x, blake3={}", base64::prelude::BASE64_STANDARD.encode(right.as_bytes()));
    assert_eq!(put(&[(digest.clone(), &base64)]).await.status(), StatusCode::OK);
    assert_eq!(code_of(&put(&[(digest, "blake3=AAAA")]).await), "INVALID_ARGUMENT");

    for encoding in ["gzip", "identity, br", ""] {
        let encoded = put(&[(header::CONTENT_ENCODING, encoding)]).await;
        let refused = (encoded.status(), code_of(&encoded));
        assert_eq!(refused, (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED".into()), "{encoding:?}");
    }
    assert_eq!(put(&[(header::CONTENT_ENCODING, "Identity")]).await.status(), StatusCode::OK);
    assert_eq!(code_of(&put(&[(header::CONTENT_RANGE, "bytes 0-2/9")]).await), "INVALID_ARGUMENT");
    assert_eq!(code_of(&put(&[(header::CONTENT_TYPE, &"x".repeat(128))]).await), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_file_gets_another_name() {
    let rig = rig_with_volume().await;
    let post = async |path: &str, headers: &[(HeaderName, &str)]| {
        call(&rig, Method::POST, &format!("/v1/volumes/v/files/{path}"), headers, "").await
    };
    let stored = call(&rig, Method::PUT, "/v1/volumes/v/files/a", &[], "abc").await;
    let etag = stored.headers()[header::ETAG].to_str().unwrap().to_owned();
    call(&rig, Method::PUT, "/v1/volumes/v/files/b", &[], "other").await;
    for (path, headers, code) in [
        ("a", vec![], "INVALID_ARGUMENT"),
        ("a?move_to=..", vec![], "INVALID_PATH"),
        ("a?move_to=c&to=d", vec![], "INVALID_ARGUMENT"),
        ("a?move_to=c", vec![(header::IF_NONE_MATCH, "*")], "INVALID_ARGUMENT"),
        ("a?move_to=b&if_absent=true", vec![], "PRECONDITION_FAILED"),
        ("b?move_to=c", vec![(header::IF_MATCH, etag.as_str())], "PRECONDITION_FAILED"),
        ("z?move_to=c", vec![], "FILE_NOT_FOUND"),
    ] {
        assert_eq!(code_of(&post(path, &headers).await), code, "{path}");
    }
    let moved = json_of(&post("a?move_to=d%2Fnew+name", &[(header::IF_MATCH, &etag)]).await);
    assert_eq!((moved["path"].as_str(), moved["size_bytes"].as_u64()), (Some("d/new name"), Some(3)));
    assert_eq!(format!("\"{}\"", moved["etag"].as_str().unwrap()), etag, "it is the same version");
    assert_eq!(code_of(&get_(&rig, "/v1/volumes/v/files/a", &[]).await), "FILE_NOT_FOUND");
    assert_eq!(get_(&rig, "/v1/volumes/v/files/d/new%20name", &[]).await.body(), "abc");
    post("d/new%20name?move_to=b", &[]).await;
    assert_eq!(get_(&rig, "/v1/volumes/v/files/b", &[]).await.body(), "abc", "what was there is replaced");
}

#[tokio::test]
async fn names_are_refused_not_mended() {
    let rig = rig_with_volume().await;
    for name in [
        "",
        "..",
        "a/../b",
        "%2e%2e",
        "a%2Fb",
        "//etc",
        "a//b",
        "a/",
        "%00",
        "%ff",
        "%zz",
        &"x".repeat(1_025),
    ] {
        let path = format!("/v1/volumes/v/files/{name}");
        for method in [Method::PUT, Method::GET, Method::DELETE] {
            let answer = call(&rig, method, &path, &[], "").await;
            assert_eq!(
                (answer.status(), code_of(&answer)),
                (StatusCode::BAD_REQUEST, "INVALID_PATH".into()),
                "{name}"
            );
        }
    }
    assert_eq!(code_of(&get_(&rig, "/v1/volumes/Bad/files/x", &[]).await), "INVALID_VOLUME_NAME");
    assert_eq!(code_of(&get_(&rig, "/v1/volumes/other/files/x", &[]).await), "VOLUME_NOT_FOUND");
    let put = call(&rig, Method::PUT, "/v1/volumes/v/files/%25%F0%9F%97%BB/..a", &[], "x").await;
    assert_eq!(json_of(&put)["path"], "%🗻/..a");
}

#[tokio::test]
async fn listings_have_pages() {
    let rig = rig_with_volume().await;
    for name in ["a/1", "a/2", "b", "c", "d"] {
        call(&rig, Method::PUT, &format!("/v1/volumes/v/files/{name}"), &[], name).await;
    }
    let page = json_of(&get_(&rig, "/v1/volumes/v/files?delimiter=/", &[]).await);
    assert_eq!(page["prefixes"], serde_json::json!(["a/"]));
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page =
            json_of(&get_(&rig, &format!("/v1/volumes/v/files?limit=2&page_token={token}"), &[]).await);
        seen.extend(
            page["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap().to_owned()),
        );
        token = page["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["a/1", "a/2", "b", "c", "d"]);
    for bad in ["delimiter=x", "limit=x", "prefx=a", "limit=1&limit=1"] {
        let answer = get_(&rig, &format!("/v1/volumes/v/files?{bad}"), &[]).await;
        assert_eq!(code_of(&answer), "INVALID_ARGUMENT", "{bad}");
    }
    let volumes = json_of(&get_(&rig, VOLUMES, &[]).await);
    assert_eq!(volumes["volumes"][0]["name"], "v");
    assert_eq!(json_of(&get_(&rig, "/v1/volumes/v", &[]).await)["copies"], 2);
    assert_eq!(code_of(&call(&rig, Method::DELETE, "/v1/volumes/v", &[], "").await), "VOLUME_NOT_EMPTY");
    let deleted = call(&rig, Method::DELETE, "/v1/volumes/v?with_files=true", &[], "").await;
    assert_eq!(deleted.status(), StatusCode::OK);
    for (body, status) in [
        ("{}", StatusCode::BAD_REQUEST),
        ("{\"name\": \"w\", \"copies\": 9}", StatusCode::BAD_REQUEST),
        ("{\"name\": \"w\", \"replicas\": 2}", StatusCode::BAD_REQUEST),
        (&" ".repeat(70_000), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        assert_eq!(call(&rig, Method::POST, VOLUMES, &[], body.to_owned()).await.status(), status);
    }
}

/// Page sizes, and settings of volumes: what is given is taken as it is, or refused with what could be given.
#[tokio::test]
async fn sizes_out_of_bounds_are_refused() {
    let rig = rig_with_volume().await;
    for path in ["/v1/volumes/v/files", VOLUMES] {
        for bad in ["0", "10001", "-1", "abc", "", "1.5", "18446744073709551617"] {
            let answer = get_(&rig, &format!("{path}?limit={bad}"), &[]).await;
            let refused = (answer.status(), code_of(&answer));
            assert_eq!(refused, (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT".into()), "{path} {bad:?}");
            let detail = json_of(&answer)["detail"].to_string();
            assert!(detail.contains("from 1 to 10000"), "{path} {bad:?}: {detail}");
        }
        for good in ["1", "10000"] {
            assert_eq!(get_(&rig, &format!("{path}?limit={good}"), &[]).await.status(), StatusCode::OK);
        }
    }
    for (settings, said) in [
        (r#""copies": 0"#, "1 to 7 copies"),
        (r#""copies": 8"#, "1 to 7 copies"),
        (r#""copies": null"#, "null"),
        (r#""chunk_size_bytes": 0"#, "a multiple of 65536"),
        (r#""copies": 2, "chunk_size_bytes": 65537"#, "a multiple of 65536"),
    ] {
        let body = format!(r#"{{"name": "w", {settings}}}"#);
        let answer = call(&rig, Method::POST, VOLUMES, &[], body).await;
        assert_eq!(code_of(&answer), "INVALID_ARGUMENT", "{settings}");
        assert!(json_of(&answer)["detail"].to_string().contains(said), "{settings}: {answer:?}");
    }
    assert_eq!(code_of(&get_(&rig, "/v1/volumes/w", &[]).await), "VOLUME_NOT_FOUND");
}

/// A transfer coding that was left on would be stored as if it were content.
#[tokio::test]
async fn transfer_codings_are_undone_or_refused() {
    let rig = rig_with_volume().await;
    for coding in [
        "gzip, chunked",
        "gzip,Chunked",
        "identity, chunked",
        "chunked, chunked",
        "gzip\r\ntransfer-encoding: chunked",
    ] {
        for (method, path) in [("PUT", PATH), ("POST", VOLUMES), ("PUT", "/v1/nothing")] {
            let answer = on_the_wire(&rig, method, path, coding).await;
            assert!(answer.starts_with("HTTP/1.1 501 "), "{coding:?} {path}: {answer}");
            for part in ["application/problem+json", "UNSUPPORTED", "connection: close", "nothing was done"] {
                assert!(answer.contains(part), "{coding:?} {path}: {part}: {answer}");
            }
        }
    }
    assert_eq!(code_of(&get_(&rig, PATH, &[]).await), "FILE_NOT_FOUND");
    for coding in ["Chunked", ", chunked", "chunked\r\nconnection: close"] {
        let answer = on_the_wire(&rig, "PUT", PATH, &format!("{coding}\r\nconnection: close")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{coding:?}: {answer}");
        assert_eq!(get_(&rig, PATH, &[]).await.body(), "abc");
    }
}

/// A request with three bytes of content, byte for byte, and the whole answer, with which the connection must end.
async fn on_the_wire(rig: &Rig, method: &str, path: &str, coding: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = rig.http.dial(PeerIdentity::Client { name: "c".into() }).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: {coding}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(ended.is_ok(), "{coding:?} {path}: the connection stays open: {answer}");
    answer
}

#[tokio::test]
async fn every_error_reaches_the_caller() {
    let rig = rig_with_volume().await;
    for error in every_error() {
        let expected = Refusal::from(error.clone());
        *rig.files.fail_next.lock() = Some(error.clone());
        let answer = call(&rig, Method::PUT, PATH, &[], "x").await;
        assert_eq!(answer.status(), expected.http_status(), "{error:?}");
        assert_eq!(code_of(&answer), expected.code.as_str_name());
        assert_eq!(json_of(&answer)["detail"], expected.cause);
        assert_eq!(
            answer.headers().contains_key(header::RETRY_AFTER),
            expected.entry().retry_after_s.is_some()
        );
    }
}

#[tokio::test]
async fn tokens_open_the_door_and_probes_need_none() {
    let rig = rig_with_volume().await;
    let anonymous = async |path: &str, headers: &[(HeaderName, &str)]| {
        raw(&rig, PeerIdentity::Anonymous, Method::GET, path, headers, "").await
    };
    let refused = anonymous("/v1/status", &[]).await;
    assert_eq!(code_of(&refused), "UNAUTHENTICATED");
    assert!(refused.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer"));
    let bearer = format!("Bearer {TOKEN}");
    let status = anonymous("/v1/status", &[(header::AUTHORIZATION, &bearer)]).await;
    assert_eq!(json_of(&status)["nodes"][0]["state"], "live");
    assert_eq!(
        code_of(&anonymous("/v1/status", &[(header::AUTHORIZATION, "Bearer no")]).await),
        "UNAUTHENTICATED"
    );

    assert_eq!(anonymous("/healthz", &[]).await.status(), StatusCode::OK);
    assert_eq!(anonymous("/readyz", &[]).await.status(), StatusCode::OK);
    *rig.cluster.not_ready.lock() = Some("the metadata store cannot be reached".into());
    let not_ready = anonymous("/readyz", &[]).await;
    assert_eq!(
        (not_ready.status(), code_of(&not_ready)),
        (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE".into())
    );
    assert!(json_of(&not_ready)["detail"].as_str().unwrap().contains("metadata store"));
    assert_eq!(anonymous("/healthz", &[]).await.status(), StatusCode::OK);
    let metrics = anonymous("/metrics", &[]).await;
    let text = std::str::from_utf8(metrics.body()).unwrap();
    assert!(
        text.contains(r#"cairn_requests_total{interface="http",method="createVolume",code="OK"} 1"#),
        "{text}"
    );
    assert!(text.contains(r#"method="status",code="UNAUTHENTICATED"} 2"#), "{text}");
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_document_too() {
    let rig = rig_with_volume().await;
    for path in ["/", "/v1", "/v1/volumes/v/x", "/v1//volumes", "/../healthz"] {
        let answer = get_(&rig, path, &[]).await;
        assert_eq!(
            (answer.status(), code_of(&answer)),
            (StatusCode::NOT_FOUND, "UNSUPPORTED".into()),
            "{path}"
        );
    }
    let answer = call(&rig, Method::PATCH, PATH, &[], "").await;
    assert_eq!((answer.status(), code_of(&answer)), (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED".into()));
    let allowed = answer.headers()[header::ALLOW].to_str().unwrap();
    assert!(allowed.contains("PUT") && allowed.contains("DELETE"), "{allowed}");
}

#[tokio::test]
async fn a_download_that_breaks_does_not_look_whole() {
    let rig = rig_with_volume().await;
    call(&rig, Method::PUT, PATH, &[], "0123456789").await;
    *rig.files.fail_content.lock() = Some(FileError::DataCorrupt { path: "p".into(), index: 0 });
    let io = TokioIo::new(rig.http.dial(PeerIdentity::Client { name: "c".into() }).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = HttpRequest::get(format!("https://test{PATH}")).body(Full::new(Bytes::new())).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_client_that_stalls_in_an_upload_is_given_up() {
    let rig = quick_rig_with_volume().await;
    let io = TokioIo::new(rig.http.dial(PeerIdentity::Client { name: "c".into() }).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    use futures::StreamExt;
    let frame = Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(Bytes::from_static(b"x")));
    let body = StreamBody::new(futures::stream::iter([frame]).chain(futures::stream::pending()).boxed());
    let request = HttpRequest::put(format!("https://test{PATH}")).body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let problem = response.into_body().collect().await.unwrap().to_bytes();
    assert!(std::str::from_utf8(&problem).unwrap().contains("UPLOAD_INCOMPLETE"));
}

#[tokio::test]
async fn requests_and_idle_connections_do_not_last_for_ever() {
    let rig = quick_rig_with_volume().await;
    *rig.files.hang.lock() = true;
    assert_eq!(code_of(&get_(&rig, "/v1/volumes", &[]).await), "DEADLINE_EXCEEDED");
    *rig.files.hang.lock() = false;
    use tokio::io::AsyncReadExt;
    let mut silent = rig.http.dial(PeerIdentity::Anonymous).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), silent.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "an idle connection stays open");
}

fn document() -> Value {
    serde_json::from_str(openapi_document()).unwrap()
}

/// (method, path, id, whether it is open to all) of every operation in the document.
fn documented() -> BTreeSet<(String, String, String, bool)> {
    let document = document();
    let mut operations = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let open = operation["security"].as_array().is_some_and(|security| security.is_empty());
            operations.insert((method.to_uppercase(), path.clone(), id, open));
        }
    }
    operations
}

#[test]
fn the_document_describes_the_routes_and_nothing_else() {
    let routes: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| {
            (route.method.to_string(), route.path.to_owned(), route.id.to_owned(), route.right == Right::Open)
        })
        .collect();
    assert_eq!(documented(), routes);
}

#[tokio::test]
async fn every_documented_operation_answers() {
    let rig = rig_with_volume().await;
    // Deletions last, for the others need what they delete.
    let mut operations: Vec<_> = documented().into_iter().collect();
    operations.sort_by_key(|(method, path, ..)| {
        (method == "DELETE", method != "PUT", std::cmp::Reverse(path.len()))
    });
    let served = json_of(&get_(&rig, "/openapi.json", &[]).await);
    assert_eq!(served, document());
    for (method, path, id, _) in operations {
        let mut path = path.replace("{volume}", "v").replace("{path}", "a");
        if id == "moveFile" {
            path = path.replace("/a", "/moves") + "?move_to=moved";
            call(&rig, Method::PUT, "/v1/volumes/v/files/moves", &[], "").await;
        }
        let body = if id == "createVolume" { r#"{"name": "v"}"# } else { "" };
        let answer = call(&rig, method.parse().unwrap(), &path, &[], body).await;
        assert!(answer.status().is_success(), "{method} {path}: {answer:?}");
        let described = &document()["paths"][documented_path(&id)][method.to_lowercase()]["responses"];
        assert!(
            described[answer.status().as_str()].is_object(),
            "{id} does not describe {}",
            answer.status()
        );
        if id == "moveFile" {
            call(&rig, Method::DELETE, "/v1/volumes/v/files/moved", &[], "").await;
        }
    }
}

fn documented_path(id: &str) -> String {
    documented().into_iter().find(|operation| operation.2 == id).unwrap().1
}

#[test]
fn the_document_tells_the_bounds_that_hold() {
    let components = document()["components"].clone();
    let bounds = |pointer: &str| {
        let schema = components.pointer(pointer).unwrap();
        (schema["minimum"].as_u64(), schema["maximum"].as_u64())
    };
    assert_eq!(bounds("/parameters/limit/schema"), (Some(1), Some(MAX_PAGE as u64)));
    let copies = bounds("/schemas/NewVolume/properties/copies");
    assert_eq!(copies, (Some(1), Some(decode::MAX_COPIES.into())));
    let chunk = bounds("/schemas/NewVolume/properties/chunk_size_bytes");
    assert_eq!(chunk, (Some(decode::MIN_CHUNK_BYTES.into()), Some(decode::MAX_CHUNK_BYTES.into())));
    let default = components.pointer("/parameters/limit/schema/default").unwrap();
    assert_eq!(default.as_u64(), Some(DEFAULT_PAGE as u64));
}

#[test]
fn the_document_has_the_whole_catalogue_and_no_dangling_reference() {
    let document = document();
    let listed = document["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap().clone();
    let codes: Vec<Value> =
        (1..1000).filter_map(|n| ErrorCode::try_from(n).ok()).map(|code| code.as_str_name().into()).collect();
    assert_eq!(
        listed.iter().filter(|code| *code != "ERROR_CODE_UNSPECIFIED").cloned().collect::<Vec<_>>(),
        codes
    );
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    found.push(reference.clone());
                }
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(members) => members.iter().for_each(|member| references(member, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}
