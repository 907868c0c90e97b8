//! What the operator and the other programs agree on: names of objects, labels, environment variables, paths and the
//! entries of Secrets. Nothing here is repeated elsewhere; `cairn-node` reads the environment that is written here.

/// Port and path names of a storage pod.
pub mod pod {
    /// Name of the only container.
    pub const CONTAINER: &str = "node";
    /// The program; images of Cairn hold their programs at the root and have no shell.
    pub const COMMAND: &str = "/cairn-node";
    /// Named container ports, to which Services and probes refer.
    pub const GRPC_PORT_NAME: &str = "grpc";
    pub const HTTP_PORT_NAME: &str = "http";
    /// Answers 200 while the process works; a pod that fails it is restarted.
    pub const HEALTH_PATH: &str = "/healthz";
    /// Answers 200 while the node serves; a pod that fails it gets no new clients.
    pub const READY_PATH: &str = "/readyz";
    /// User and group of every process, as in the image.
    pub const USER_ID: i64 = 65532;

    pub const DATA_DIR: &str = "/data";
    pub const TLS_DIR: &str = "/tls";
    pub const KEK_DIR: &str = "/kek";
    pub const TOKENS_DIR: &str = "/tokens";
    pub const ETCD_TLS_DIR: &str = "/etcd-tls";
}

/// Environment of a storage pod.
pub mod env {
    /// The pod's name, which is the node's name for ever.
    pub const NODE_NAME: &str = "NODE_NAME";
    pub const ZONE: &str = "ZONE";
    pub const CLUSTER_NAME: &str = "CLUSTER_NAME";
    /// `etcd://host:port,host:port/prefix`, with `?ca=&cert=&key=` (files) where etcd is reached over TLS.
    pub const DATABASE_URL: &str = "DATABASE_URL";
    pub const GRPC_PORT: &str = "GRPC_PORT";
    pub const HTTP_PORT: &str = "HTTP_PORT";
    pub const DATA_DIR: &str = "DATA_DIR";
    /// Host name by which peers reach this node; a name in its certificate.
    pub const ADVERTISE_HOST: &str = "ADVERTISE_HOST";
    pub const TLS_CERT_FILE: &str = "TLS_CERT_FILE";
    pub const TLS_KEY_FILE: &str = "TLS_KEY_FILE";
    pub const TLS_CA_FILE: &str = "TLS_CA_FILE";
    pub const KEK_FILE: &str = "KEK_FILE";
    pub const CLIENT_TOKENS_FILE: &str = "CLIENT_TOKENS_FILE";
    /// Nodes that the cluster has when it is complete: the first map waits for them.
    pub const EXPECTED_NODES: &str = "EXPECTED_NODES";
    /// Bytes of the disk that a node uses, at most: those asked for, also where the disk is a folder of a larger one.
    pub const CAPACITY: &str = "CAPACITY";
    /// A node may begin with an empty disk though it had another one. Which volume a pod gets, and that it is mounted before
    /// the pod starts, is Kubernetes' to know: a claim that was made anew is to be filled without anybody's help.
    pub const NEW_DISK: &str = "NEW_DISK";
}

/// Entries of Secrets and ConfigMaps.
pub mod entry {
    pub const CA_CERTIFICATE: &str = "ca.crt";
    /// Private key of the cluster's own CA; only in the CA's Secret, which no pod mounts.
    pub const CA_KEY: &str = "ca.key";
    pub const CERTIFICATE: &str = "tls.crt";
    pub const KEY: &str = "tls.key";
    /// 32 random bytes, base64.
    pub const KEK: &str = "kek";
    /// Lines of `name sha256hex`: who may connect.
    pub const TOKENS: &str = "tokens";
    /// A client's token, as text.
    pub const TOKEN: &str = "token";
    /// The record of what is installed, as JSON, in a ConfigMap.
    pub const RECORD: &str = "installed.json";
}

/// Organisations (O=) in certificates: the role of who shows one.
pub mod role {
    pub const NODE: &str = "cairn:node";
    pub const OPERATOR: &str = "cairn:operator";
}

/// Labels and annotations.
pub mod label {
    pub const CLUSTER: &str = "cairn.storage/cluster";
    pub const POOL: &str = "cairn.storage/pool";
    pub const ZONE: &str = "cairn.storage/zone";
    pub const NAME: &str = "app.kubernetes.io/name";
    pub const INSTANCE: &str = "app.kubernetes.io/instance";
    pub const COMPONENT: &str = "app.kubernetes.io/component";
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

    /// Value of [`NAME`].
    pub const CAIRN: &str = "cairn";
    /// Value of [`COMPONENT`] on storage pods.
    pub const STORAGE: &str = "storage";
    /// Value of [`MANAGED_BY`]; also the field manager of server-side apply.
    pub const OPERATOR: &str = "cairn-operator";

    /// Annotation: digest of the object as rendered, so that a field which is rendered no more is noticed too.
    pub const RENDERED: &str = "cairn.storage/rendered";
    /// Label that Kubernetes puts on a StatefulSet's pods: the revision of the template they were made from.
    pub const REVISION: &str = "controller-revision-hash";
}

/// Keeps a Volume with `deletionPolicy: Delete` until its files are deleted.
pub const VOLUME_FINALIZER: &str = "cairn.storage/volume";

/// Version of the renderer in `resources.rs`: part of every cluster's record. A change that alters pod templates must
/// raise it and keep rendering the old one for clusters that were installed with it, because upgrading the operator
/// must restart no storage pod.
///
/// - 1: the first.
/// - 2: pods are told the size of their disk ([`env::CAPACITY`]).
/// - 3: pods may begin with an empty disk ([`env::NEW_DISK`]).
pub const RENDERER: i32 = 3;

/// Names of a cluster's objects.
pub struct Names<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
}

impl Names<'_> {
    /// The Service for clients.
    pub fn client_service(&self) -> String {
        self.cluster.to_owned()
    }
    /// The headless Service that gives every node a DNS name.
    pub fn peer_service(&self) -> String {
        format!("{}-nodes", self.cluster)
    }
    pub fn service_account(&self) -> String {
        format!("{}-node", self.cluster)
    }
    pub fn disruption_budget(&self) -> String {
        format!("{}-nodes", self.cluster)
    }
    pub fn network_policy(&self) -> String {
        format!("{}-nodes", self.cluster)
    }
    /// The ConfigMap that records what is installed. It outlives the StorageCluster, as the data does.
    pub fn record(&self) -> String {
        format!("{}-installed", self.cluster)
    }
    pub fn stateful_set(&self, pool: &str, zone: &str) -> String {
        format!("{}-{pool}-{zone}", self.cluster)
    }
    pub fn authority_secret(&self) -> String {
        format!("{}-ca", self.cluster)
    }
    pub fn node_certificate_secret(&self) -> String {
        format!("{}-node-tls", self.cluster)
    }
    pub fn operator_certificate_secret(&self) -> String {
        format!("{}-operator-tls", self.cluster)
    }
    /// The key that the operator makes when none is given. It outlives the StorageCluster.
    pub fn generated_kek_secret(&self) -> String {
        format!("{}-kek", self.cluster)
    }
    pub fn tokens_secret(&self) -> String {
        format!("{}-tokens", self.cluster)
    }
    /// What a client needs: `ca.crt` and `token`.
    pub fn client_secret(&self) -> String {
        format!("{}-client", self.cluster)
    }
    /// Host name of a node, without the cluster domain, which need not be `cluster.local`.
    pub fn node_host(&self, node: &str) -> String {
        format!("{node}.{}.{}.svc", self.peer_service(), self.namespace)
    }
    pub fn client_host(&self) -> String {
        format!("{}.{}.svc", self.client_service(), self.namespace)
    }
    /// Names in the nodes' certificate: one certificate for all nodes, renewed in one place.
    pub fn certificate_hosts(&self) -> Vec<String> {
        let (client, peer, namespace) = (self.client_service(), self.peer_service(), self.namespace);
        let mut hosts = vec!["localhost".to_owned(), client.clone(), format!("{client}.{namespace}")];
        for suffix in ["svc", "svc.cluster.local"] {
            hosts.push(format!("{client}.{namespace}.{suffix}"));
            hosts.push(format!("*.{peer}.{namespace}.{suffix}"));
        }
        hosts.sort();
        hosts
    }
}
