//! The client's behaviour when things go wrong, against a small server that fails on demand.

mod copies;
mod fake;
mod reads;
mod trust;
mod writes;

use cairn_client::{Client, ClientConfig, Pem};
use fake::{Authority, Fake, quick, serve};

/// A fake cluster and what is needed to reach it.
struct Cluster {
    fake: Fake,
    authority: Authority,
    addresses: Vec<String>,
}

impl Cluster {
    async fn start(nodes: usize) -> Self {
        let (fake, authority) = (Fake::default(), Authority::new());
        let mut addresses = Vec::new();
        for _ in 0..nodes {
            addresses.push(serve(&fake, authority.sign("127.0.0.1", |_| ())).await.to_string());
        }
        Self { fake, authority, addresses }
    }

    fn config(&self, endpoints: impl IntoIterator<Item = String>) -> ClientConfig {
        ClientConfig::new(endpoints, Pem::Text(self.authority.ca_pem.clone())).with_limits(quick())
    }

    fn client(&self) -> Client {
        Client::connect(self.config(self.addresses.clone())).unwrap()
    }
}

/// Content that differs from place to place.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
}
