//! Rights by role, and tokens.

use http::HeaderValue;

use super::*;
use crate::api::fake::quick_env;
use crate::warnings::Warnings;

fn with_token(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
}

#[tokio::test]
async fn each_role_has_its_rights() {
    let tokens = Tokens::none(quick_env());
    let name = || "x".to_string();
    let node = PeerIdentity::Node { name: name() };
    let operator = PeerIdentity::Operator { name: name() };
    let client = PeerIdentity::Client { name: name() };
    let may =
        |right, peer: &PeerIdentity| authorize(right, peer, &HeaderMap::new(), &tokens).map_err(|r| r.code);
    for peer in [&node, &operator, &client, &PeerIdentity::Anonymous] {
        assert_eq!(may(Right::Open, peer), Ok(Caller::Anyone));
    }
    for peer in [&node, &operator, &client] {
        assert!(may(Right::Use, peer).is_ok());
    }
    assert_eq!(may(Right::Use, &PeerIdentity::Anonymous), Err(ErrorCode::Unauthenticated));
    assert!(may(Right::Administer, &operator).is_ok() && may(Right::Administer, &node).is_ok());
    assert_eq!(may(Right::Administer, &client), Err(ErrorCode::PermissionDenied));
    assert!(may(Right::Peer, &node).is_ok());
    for peer in [&operator, &client] {
        assert_eq!(may(Right::Peer, peer), Err(ErrorCode::PermissionDenied));
    }
}

#[test]
fn methods_have_rights_and_unknown_ones_are_closed() {
    for (path, right) in [
        ("/cairn.v1.Files/Upload", Right::Use),
        ("/cairn.v1.Admin/Status", Right::Use),
        ("/cairn.v1.Admin/SetIntent", Right::Administer),
        ("/cairn.v1.Peer/PutChunk", Right::Peer),
        ("/grpc.health.v1.Health/Check", Right::Open),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Right::Open),
        ("/cairn.v1.New/Thing", Right::Use),
        ("/", Right::Use),
        ("", Right::Use),
    ] {
        assert_eq!(grpc_right(path), right, "{path}");
    }
}

#[tokio::test]
async fn tokens_are_checked_and_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    let env = quick_env();
    assert!(matches!(
        Tokens::open(env.clone(), &path, Warnings::default()).await,
        Err(TokenFileError::Unreadable { .. })
    ));

    let now_s = env.clock.unix_ms() / 1000;
    let line = |name: &str, token: &str, expires: i64| {
        format!("{} {expires}\n", crate::secrets::token_line(name, token).trim_end())
    };
    std::fs::write(&path, line("good", "t-good", now_s + 600) + &line("old", "t-old", now_s - 1)).unwrap();
    let tokens = Tokens::open(env.clone(), &path, Warnings::default()).await.unwrap();
    let check = |headers: &HeaderMap| authorize(Right::Use, &PeerIdentity::Anonymous, headers, &tokens);

    assert_eq!(check(&with_token("Bearer t-good")), Ok(Caller::Token { name: "good".into() }));
    assert_eq!(check(&with_token("bearer  t-good ")), Ok(Caller::Token { name: "good".into() }));
    for (header, word) in [
        ("Bearer t-old", "expired at"),
        ("Bearer t-other", "not known"),
        ("Bearer ", "empty"),
        ("Basic dDpnb29k", "Bearer TOKEN"),
        ("t-good", "Bearer TOKEN"),
    ] {
        let refusal = check(&with_token(header)).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Unauthenticated);
        assert!(refusal.cause.contains(word), "{header}: {}", refusal.cause);
    }
    let refusal = check(&HeaderMap::new()).unwrap_err();
    assert!(refusal.cause.contains("neither a token"));

    std::fs::write(&path, crate::secrets::token_line("new", "t-new")).unwrap();
    env.clock.sleep(std::time::Duration::from_secs(30)).await;
    assert!(check(&with_token("Bearer t-good")).is_err());
    assert_eq!(check(&with_token("Bearer t-new")), Ok(Caller::Token { name: "new".into() }));
}
