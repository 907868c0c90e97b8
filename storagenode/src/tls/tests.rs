//! Real TLS over loopback.

use std::{fs, path::Path};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    env::{Accepted, real::RealClock},
    secrets::{Authority, Pair, Role},
};

fn authority() -> Authority {
    Authority::generate("test", &RealClock::default()).unwrap()
}

fn issue(authority: &Authority, role: Role, name: &str, hosts: &[&str]) -> Pair {
    let hosts: Vec<String> = hosts.iter().map(|host| host.to_string()).collect();
    authority.issue(role, name, &hosts, &RealClock::default()).unwrap()
}

fn write(folder: &Path, trusted: &str, pair: &Pair) -> TlsFiles {
    let files = TlsFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        authority: folder.join("ca.crt"),
    };
    fs::write(&files.authority, trusted).unwrap();
    fs::write(&files.key, &pair.key).unwrap();
    fs::write(&files.certificate, &pair.certificate).unwrap();
    files
}

/// A network with certificates in a folder of its own.
struct Side {
    network: TlsNetwork,
    files: TlsFiles,
    _folder: tempfile::TempDir,
}

fn side(authority: &Authority, name: &str) -> Side {
    let folder = tempfile::tempdir().unwrap();
    let pair = issue(authority, Role::Node, name, &["localhost", "127.0.0.1"]);
    let files = write(folder.path(), authority.certificate(), &pair);
    Side { network: open(files.clone()).unwrap(), files, _folder: folder }
}

fn open(files: TlsFiles) -> Result<TlsNetwork, CredentialError> {
    let options = TlsOptions {
        reload_every: Duration::from_millis(20),
        connect_timeout: Duration::from_secs(5),
        handshakes: HandshakeLimits { timeout: Duration::from_millis(700), concurrent: 4 },
    };
    TlsNetwork::open(files, options, Arc::new(RealClock::default()))
}

fn client_config(trusted: &Authority, pair: Option<&Pair>) -> rustls::ClientConfig {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.certificate().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap())
                .unwrap()
        }
    }
}

async fn dial(
    address: &str,
    config: rustls::ClientConfig,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await
}

async fn accept(listener: &Arc<dyn Listener>) -> Accepted {
    tokio::time::timeout(Duration::from_secs(5), listener.accept()).await.expect("accepted in time").unwrap()
}

async fn plain(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(5), reading).await.expect("closed in time");
    answer
}

#[tokio::test]
async fn nodes_of_one_authority_talk() {
    let authority = authority();
    let (server, client) = (side(&authority, "a"), side(&authority, "b"));
    let listener = server.network.listen("127.0.0.1:0", Protocol::Grpc).await.unwrap();
    let address = listener.address();
    let (connected, mut accepted) = tokio::join!(client.network.connect(&address, "a"), accept(&listener));
    assert_eq!(accepted.peer, PeerIdentity::Node { name: "b".into() });
    let mut connected = connected.unwrap();
    connected.write_all(b"hello").await.unwrap();
    connected.flush().await.unwrap();
    let mut buffer = [0; 5];
    accepted.stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
    server.network.check_own_name("localhost").unwrap();
    assert!(matches!(server.network.check_own_name("elsewhere"), Err(CredentialError::OtherName { .. })));
}

#[tokio::test]
async fn the_subject_says_who_a_client_is() {
    let authority = authority();
    let server = side(&authority, "a");
    let listener = server.network.listen("127.0.0.1:0", Protocol::Http).await.unwrap();
    let cases = [
        (Some(Role::Operator), PeerIdentity::Operator { name: "x".into() }),
        (Some(Role::Client), PeerIdentity::Client { name: "x".into() }),
        (None, PeerIdentity::Anonymous),
    ];
    for (role, expected) in cases {
        let pair = role.map(|role| issue(&authority, role, "x", &[]));
        let config = client_config(&authority, pair.as_ref());
        let address = listener.address();
        let (client, accepted) = tokio::join!(dial(&address, config), accept(&listener));
        client.unwrap();
        assert_eq!(accepted.peer, expected);
    }
}

#[tokio::test]
async fn strangers_are_refused_on_both_sides() {
    let (ours, theirs) = (authority(), authority());
    let (server, stranger) = (side(&ours, "a"), side(&theirs, "b"));
    let listener = server.network.listen("127.0.0.1:0", Protocol::Grpc).await.unwrap();
    let error = stranger.network.connect(&listener.address(), "a").await.err().unwrap().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");

    // A client that trusts us, with a certificate of another authority: TLS 1.3 tells it at its first read.
    let pair = issue(&theirs, Role::Client, "x", &[]);
    let mut stream = dial(&listener.address(), client_config(&ours, Some(&pair))).await.unwrap();
    assert!(stream.read_u8().await.is_err());

    // The right server under another name.
    let elsewhere = server.network.listen("127.0.0.2:0", Protocol::Grpc).await.unwrap();
    let error = server.network.connect(&elsewhere.address(), "a").await.err().unwrap().to_string();
    assert!(error.contains("NotValidForName") || error.contains("not valid for name"), "{error}");
}

/// A certificate that is good for a server, and whose subject is no node's.
fn impostor(authority: &Authority) -> Pair {
    let key = rcgen::KeyPair::generate().unwrap();
    let authority_key = rcgen::KeyPair::from_pem(authority.key()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(authority.certificate(), authority_key).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "cairn:client");
    params.distinguished_name.push(rcgen::DnType::CommonName, "a");
    Pair { certificate: params.signed_by(&key, &issuer).unwrap().pem(), key: key.serialize_pem() }
}

#[tokio::test]
async fn a_client_cannot_play_a_node() {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let authority = authority();
    let node = side(&authority, "a");
    let pair = impostor(&authority);
    let folder = tempfile::tempdir().unwrap();
    let files = write(folder.path(), authority.certificate(), &pair);
    assert!(matches!(open(files), Err(CredentialError::NotANode(_))));

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await
    });
    let error = node.network.connect(&address, "a").await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    serving.abort();
}

#[tokio::test]
async fn plain_text_is_sent_away_with_a_word() {
    let authority = authority();
    let server = side(&authority, "a");
    let http = server.network.listen("127.0.0.1:0", Protocol::Http).await.unwrap();
    let answer = plain(&http.address(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("use https://"), "{answer}");
    let grpc = server.network.listen("127.0.0.1:0", Protocol::Grpc).await.unwrap();
    let answer = plain(&grpc.address(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(answer.contains("gRPC over TLS"), "{answer}");
    assert_eq!(plain(&grpc.address(), b"\0\0\0\0").await, "");
}

#[tokio::test]
async fn silent_connections_do_not_keep_others_out_for_long() {
    let authority = authority();
    let (server, client) = (side(&authority, "a"), side(&authority, "b"));
    let listener = server.network.listen("127.0.0.1:0", Protocol::Grpc).await.unwrap();
    let address = listener.address();
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(listener.address()).await.unwrap());
    }
    let (connected, _accepted) = tokio::join!(client.network.connect(&address, "a"), accept(&listener));
    connected.unwrap();
}

#[tokio::test]
async fn changed_certificates_are_used_and_bad_ones_are_not() {
    let (first, second) = (authority(), authority());
    let (server, client) = (side(&first, "a"), side(&first, "b"));
    let listener = server.network.listen("127.0.0.1:0", Protocol::Grpc).await.unwrap();
    let address = listener.address();
    let connects = async || {
        let (connected, accepted) = tokio::join!(
            client.network.connect(&address, "a"),
            tokio::time::timeout(Duration::from_secs(1), listener.accept())
        );
        connected.is_ok() && accepted.is_ok()
    };
    assert!(connects().await);

    // A key that does not fit: the old pair stays.
    let pair = issue(&second, Role::Node, "a", &["127.0.0.1"]);
    let old_key = fs::read(&server.files.key).unwrap();
    fs::write(&server.files.key, &pair.key).unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(connects().await);
    fs::write(&server.files.key, old_key).unwrap();

    // The server moves to another authority: the client, still with the old one, no longer believes it.
    fs::write(&server.files.authority, second.certificate()).unwrap();
    fs::write(&server.files.key, &pair.key).unwrap();
    fs::write(&server.files.certificate, &pair.certificate).unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!connects().await);

    // The client follows.
    let pair = issue(&second, Role::Node, "b", &["127.0.0.1"]);
    fs::write(&client.files.authority, second.certificate()).unwrap();
    fs::write(&client.files.key, &pair.key).unwrap();
    fs::write(&client.files.certificate, &pair.certificate).unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(connects().await);
}

#[tokio::test]
async fn unusable_files_are_named_with_what_to_do() {
    let authority = authority();
    let folder = tempfile::tempdir().unwrap();
    let pair = issue(&authority, Role::Node, "a", &["localhost"]);
    let files = write(folder.path(), authority.certificate(), &pair);
    let refused = |what: &str| {
        let error = open(files.clone()).err().expect(what).to_string();
        write(folder.path(), authority.certificate(), &pair);
        error
    };
    fs::write(&files.key, "nothing").unwrap();
    assert!(refused("no key").contains("private key"));
    fs::write(&files.key, issue(&authority, Role::Node, "a", &[]).key).unwrap();
    assert!(refused("another key").contains("cannot be used together"));
    fs::write(&files.authority, self::authority().certificate()).unwrap();
    assert!(refused("another CA").contains("refused by the other nodes"));
    fs::remove_file(&files.certificate).unwrap();
    assert!(refused("no certificate").contains("cannot be read"));
    assert!(open(files).is_ok());
}

#[test]
fn hosts_of_addresses() {
    assert_eq!(host_of("node-1.example:50051"), Some("node-1.example"));
    assert_eq!(host_of("[::1]:50051"), Some("::1"));
    for bad in ["node", ":1", "a:b", "a:70000", ""] {
        assert_eq!(host_of(bad), None, "{bad}");
    }
}
