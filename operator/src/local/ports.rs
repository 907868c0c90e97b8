//! Ports of a local cluster: the same after every restart, so that contexts and scripts stay good.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, TcpListener},
};

use rand::Rng;
use serde::{Deserialize, Serialize};

/// First port where none is asked for.
pub const DEFAULT_BASE: u16 = 7400;
/// Ports for `--base-port 0`. Below the range from which Linux takes the near ends of outgoing connections, or a node
/// that is stopped for a while could lose its port to one of them.
const FREE_PORTS: std::ops::Range<u16> = 20_000..32_000;
const FREE_PORT_TRIES: usize = 20_000;

/// The ports of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePorts {
    pub grpc: u16,
    pub http: u16,
}

/// All ports of a local cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub supervisor: u16,
    pub nodes: BTreeMap<String, NodePorts>,
}

/// Why there are no ports.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    #[error("--base-port {base} is too high: {count} ports from there on are needed, and 65535 is the last")]
    TooHigh { base: u16, count: usize },
    #[error(
        "no {count} free ports were found between 20000 and 32000; end what listens there, or give --base-port"
    )]
    NoneFree { count: usize },
    #[error(
        "cannot listen on {host}:{port}: {error}; end the program that has the port (`ss -ltnp` shows it), or give \
         another --base-port (0 picks free ones)"
    )]
    Taken { host: IpAddr, port: u16, error: io::Error },
}

impl Ports {
    /// Ports for `nodes`: as asked for (`Some(0)`: any free ones), else as `before`, else from the default on.
    pub fn assign(
        base: Option<u16>,
        before: Option<&Ports>,
        host: IpAddr,
        nodes: &[String],
    ) -> Result<Self, PortsError> {
        let count = 1 + 2 * nodes.len();
        let before = before.filter(|ports| ports.nodes.keys().eq(nodes.iter().collect::<BTreeSet<_>>()));
        let numbers = match (base, before) {
            (None | Some(0), Some(before)) => return Ok(before.clone()),
            (Some(0), None) => free(host, count)?,
            (base, _) => {
                let base = base.unwrap_or(DEFAULT_BASE);
                let last = usize::from(base) + count - 1;
                let last = u16::try_from(last).map_err(|_| PortsError::TooHigh { base, count })?;
                (base..=last).collect()
            }
        };
        let pairs = numbers[1..].chunks_exact(2).map(|pair| NodePorts { grpc: pair[0], http: pair[1] });
        Ok(Self { supervisor: numbers[0], nodes: nodes.iter().cloned().zip(pairs).collect() })
    }

    /// Fails on the first port that something else listens on: one clear error instead of one from deep inside.
    pub fn check_free(&self, host: IpAddr) -> Result<(), PortsError> {
        let nodes = self.nodes.values().flat_map(|ports| [ports.grpc, ports.http]);
        for port in nodes.chain([self.supervisor]) {
            TcpListener::bind((host, port)).map_err(|error| PortsError::Taken { host, port, error })?;
        }
        Ok(())
    }
}

fn free(host: IpAddr, count: usize) -> Result<Vec<u16>, PortsError> {
    let mut random = rand::rng();
    let mut found = BTreeMap::new();
    for _ in 0..FREE_PORT_TRIES {
        if found.len() == count {
            break;
        }
        let port = random.random_range(FREE_PORTS);
        if !found.contains_key(&port)
            && let Ok(listener) = TcpListener::bind((host, port))
        {
            // Held until all are found.
            found.insert(port, listener);
        }
    }
    if found.len() < count {
        return Err(PortsError::NoneFree { count });
    }
    Ok(found.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn nodes(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("n-{index}")).collect()
    }

    #[test]
    fn ports_follow_from_the_base() {
        let ports = Ports::assign(None, None, HOST, &nodes(2)).unwrap();
        assert_eq!(ports.supervisor, 7400);
        assert_eq!(ports.nodes["n-1"], NodePorts { grpc: 7403, http: 7404 });
        let moved = Ports::assign(Some(9000), Some(&ports), HOST, &nodes(2)).unwrap();
        assert_eq!(moved.nodes["n-0"].grpc, 9001);
        assert_eq!(Ports::assign(None, Some(&moved), HOST, &nodes(2)).unwrap(), moved);
        let error = Ports::assign(Some(65_532), None, HOST, &nodes(2)).unwrap_err();
        assert!(matches!(error, PortsError::TooHigh { count: 5, .. }));
        assert!(Ports::assign(Some(65_531), None, HOST, &nodes(2)).is_ok());
    }

    #[test]
    fn free_ports_stay() {
        let ports = Ports::assign(Some(0), None, HOST, &nodes(3)).unwrap();
        ports.check_free(HOST).unwrap();
        assert_eq!(Ports::assign(Some(0), Some(&ports), HOST, &nodes(3)).unwrap(), ports);
        let _taken = TcpListener::bind((HOST, ports.nodes["n-1"].http)).unwrap();
        let error = ports.check_free(HOST).unwrap_err().to_string();
        assert!(
            error.contains(&ports.nodes["n-1"].http.to_string()) && error.contains("--base-port"),
            "{error}"
        );
    }
}
