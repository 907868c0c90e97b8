//! Whom the client trusts, as whom it acts, and what it says when a connection cannot be made.

use std::time::{Duration, Instant};

use cairn_client::{Client, ClientConfig, Credentials, Effect, ErrorCode, Pem};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::Cluster;
use crate::fake::{Authority, quick, serve};

async fn stat_error(config: ClientConfig) -> cairn_client::Error {
    let began = Instant::now();
    let error = Client::connect(config).unwrap().stat("files", "a").await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(4), "no retry helps here: {error}");
    assert_eq!(error.effect(), Effect::NotSent, "{error:?}");
    error
}

#[tokio::test]
async fn another_clusters_ca_is_named_as_the_cause() {
    let cluster = Cluster::start(1).await;
    let config = ClientConfig::new(cluster.addresses.clone(), Pem::Text(Authority::new().ca_pem));
    let error = stat_error(config.with_limits(quick())).await;
    assert_eq!(error.code(), ErrorCode::Unauthenticated);
    assert!(error.to_string().contains("not signed by the CA"), "{error}");
    assert_eq!(cluster.fake.calls("stat"), 0);
}

#[tokio::test]
async fn expired_early_and_misnamed_certificates_are_explained() {
    let cluster = Cluster::start(0).await;
    let authority = &cluster.authority;
    let expired = authority.sign("127.0.0.1", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = authority.sign("127.0.0.1", |params| params.not_before = rcgen::date_time_ymd(2999, 1, 1));
    let misnamed = authority.sign("cairn-node.storage", |_| ());
    for (identity, cause, help) in [
        (expired, "has expired", "renew"),
        (early, "not valid yet", "clock"),
        (misnamed.clone(), "another name", "cairn-node.storage"),
    ] {
        let address = serve(&cluster.fake, identity).await.to_string();
        let error = stat_error(cluster.config([address])).await;
        assert!(error.to_string().contains(cause), "{error}");
        assert!(error.help().contains(help), "{}", error.help());
    }
    let address = serve(&cluster.fake, misnamed).await.to_string();
    let mut config = cluster.config([address]);
    config.server_name = Some("cairn-node.storage".into());
    cluster.fake.store("a", b"x");
    Client::connect(config).unwrap().stat("files", "a").await.unwrap();
}

#[tokio::test]
async fn a_port_that_speaks_plain_text_is_named_as_that() {
    let cluster = Cluster::start(0).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let error = stat_error(cluster.config([address])).await;
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn names_that_do_not_resolve_and_plain_addresses_are_explained() {
    let cluster = Cluster::start(0).await;
    let error = stat_error(cluster.config(["no-such-host.invalid".to_owned()])).await;
    assert!(error.to_string().contains("cannot be resolved"), "{error}");
    let error = Client::connect(cluster.config(["http://127.0.0.1:50051".to_owned()])).err().unwrap();
    assert!(error.to_string().contains("plain text"), "{error}");
    assert!(Client::connect(cluster.config([])).is_err());
}

#[tokio::test]
async fn one_good_node_is_enough() {
    let cluster = Cluster::start(1).await;
    let stranger = Authority::new().sign("127.0.0.1", |_| ());
    let foreign = serve(&cluster.fake, stranger).await.to_string();
    cluster.fake.store("a", b"x");
    for _ in 0..4 {
        let config = cluster.config([foreign.clone(), cluster.addresses[0].clone()]);
        Client::connect(config).unwrap().stat("files", "a").await.unwrap();
    }
}

#[tokio::test]
async fn tokens_are_sent_and_bad_ones_refused_before() {
    let cluster = Cluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "from-file\n").unwrap();
    cluster.fake.store("a", b"x");
    for credentials in [Credentials::Token("direct".into()), Credentials::TokenFile(file)] {
        let config = cluster.config(cluster.addresses.clone()).with_credentials(credentials);
        Client::connect(config).unwrap().stat("files", "a").await.unwrap();
    }
    assert_eq!(cluster.fake.tokens(), ["Bearer direct", "Bearer from-file"]);
    for credentials in [
        Credentials::Token("".into()),
        Credentials::Token("two\nlines".into()),
        Credentials::TokenFile(folder.path().join("missing")),
    ] {
        let config = cluster.config(cluster.addresses.clone()).with_credentials(credentials);
        assert!(Client::connect(config).is_err());
    }
}

#[tokio::test]
async fn files_that_are_not_certificates_are_refused() {
    let cluster = Cluster::start(0).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    let missing = Client::connect(ClientConfig::new(["n1"], Pem::File(file.clone()))).err().unwrap();
    assert!(missing.to_string().contains("ca.crt"), "{missing}");
    std::fs::write(&file, "hello").unwrap();
    let wrong = Client::connect(ClientConfig::new(["n1"], Pem::File(file))).err().unwrap();
    assert!(wrong.help().contains("BEGIN CERTIFICATE"), "{wrong:?}");
    let credentials = Credentials::Certificate {
        certificate: Pem::Text(cluster.authority.ca_pem.clone()),
        key: Pem::Text("no key".into()),
    };
    let config = cluster.config(["n1".to_owned()]).with_credentials(credentials);
    assert!(Client::connect(config).err().unwrap().to_string().contains("private key"));
}
