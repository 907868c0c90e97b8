//! The harness itself: a real etcd, a real Kubernetes API, real kubelets. Everything else builds on these.

use std::time::Duration;

use cairn_tests::etcd::{EtcdCluster, EtcdOptions};
use cairn_tests::tools::{Need, require};

async fn put_and_get(endpoints: &[String], options: Option<etcd_client::ConnectOptions>, key: &str) {
    let mut client = etcd_client::Client::connect(endpoints, options).await.unwrap();
    client.put(key, "value", None).await.unwrap();
    let got = client.get(key, None).await.unwrap();
    assert_eq!(got.kvs()[0].value_str().unwrap(), "value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_cluster_survives_one_member() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).unwrap();
    put_and_get(&etcd.endpoints(), None, "three").await;

    etcd.kill(0);
    let two = &etcd.endpoints()[1..];
    let write = tokio::time::timeout(Duration::from_secs(30), put_and_get(two, None, "two"));
    write.await.expect("two of three members take writes");

    etcd.pause(1);
    assert!(!etcd.is_healthy(2), "one of three members has no quorum");
    etcd.resume(1);
    etcd.wait_healthy(2).unwrap();

    etcd.restart(0).unwrap();
    put_and_get(&etcd.endpoints()[..1], None, "again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_speaks_tls_when_asked() {
    use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let options = EtcdOptions { members: 1, tls: true, ..EtcdOptions::default() };
    let etcd = EtcdCluster::start_with(&tools, options).unwrap();
    let tls = etcd.tls().unwrap();
    let options = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(&tls.authority_pem))
        .identity(Identity::from_pem(&tls.client.certificate_pem, &tls.client.key_pem));
    put_and_get(&etcd.endpoints(), Some(ConnectOptions::new().with_tls(options)), "sealed").await;
}
