//! The control plane of a bed: etcd, kube-apiserver, controllers, scheduler and name service, with their certificates.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{Place, netns};
use crate::pki::{Authority, rsa_key_pair};
use crate::ports;
use crate::process::{Process, Spec};
use crate::tools::Tools;

/// Where the control plane is in a bed with nodes.
pub const PLANE_IP: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
const BRIDGE: &str = "kbr0";

pub struct Plane {
    tools: Tools,
    authority: Authority,
    pki: PathBuf,
    netns: Option<PathBuf>,
    api: SocketAddr,
    etcd_ports: [u16; 2],
    processes: Vec<Process>,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("api", &self.api).field("processes", &self.processes).finish()
    }
}

impl Plane {
    /// Makes the namespace (in a bed with nodes) and the certificates.
    pub fn prepare(tools: &Tools, place: &Place) -> io::Result<Self> {
        let pki = place.folder().join("pki");
        fs::create_dir_all(&pki)?;
        let (namespace, api, etcd_ports) = match place {
            Place::Slot(slot) => {
                let namespace = make_namespace(tools.path("ip"), &format!("{}cp", slot.prefix()))?;
                (Some(namespace), SocketAddr::from((PLANE_IP, 6443)), [2379, 2380])
            }
            Place::Folder(_) => {
                let free = ports::free(3);
                (None, ports::loopback(free[0]), [free[1], free[2]])
            }
        };
        let authority = Authority::new("bed-ca");
        fs::write(pki.join("ca.crt"), authority.certificate_pem())?;
        fs::write(pki.join("ca.key"), authority.key_pem())?;
        let (private, public) = rsa_key_pair();
        fs::write(pki.join("sa.key"), private)?;
        fs::write(pki.join("sa.pub"), public)?;
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1"];
        let own = PLANE_IP.to_string();
        let names = [&names[..], &["10.96.0.1", &own]].concat();
        authority.issue("kube-apiserver", None, &names).write(&pki, "apiserver")?;
        authority
            .issue("kube-apiserver-kubelet-client", Some("system:masters"), &[])
            .write(&pki, "kubelet-client")?;
        Ok(Self {
            tools: tools.clone(),
            authority,
            pki,
            netns: namespace,
            api,
            etcd_ports,
            processes: Vec::new(),
        })
    }

    pub fn netns(&self) -> Option<&Path> {
        self.netns.as_deref()
    }

    /// Where the API server listens, as seen by the control plane and by nodes.
    pub fn api_address(&self) -> SocketAddr {
        self.api
    }

    pub fn authority_file(&self) -> PathBuf {
        self.pki.join("ca.crt")
    }

    pub fn component(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|p| p.name() == name)
    }

    /// A part that has ended though nobody asked it to.
    pub fn dead(&self) -> Option<&Process> {
        self.processes.iter().find(|p| p.exited().is_some())
    }

    pub fn start_api(&mut self, place: &Place) -> io::Result<()> {
        let [client, peer] = self.etcd_ports;
        let etcd = [
            format!("--data-dir={}", place.folder().join("etcd").display()),
            format!("--listen-client-urls=http://127.0.0.1:{client}"),
            format!("--advertise-client-urls=http://127.0.0.1:{client}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
            "--log-level=warn".to_string(),
            "--unsafe-no-fsync".to_string(), // a bed does not outlive its machine
        ];
        self.start("etcd", &etcd, place)?;
        let ip = self.api.ip();
        let file = |name: &str| self.pki.join(name).display().to_string();
        let mut api = vec![
            format!("--etcd-servers=http://127.0.0.1:{client}"),
            format!("--secure-port={}", self.api.port()),
            format!("--bind-address={ip}"),
            format!("--advertise-address={ip}"),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_string(),
            "--service-cluster-ip-range=10.96.0.0/16".to_string(),
            "--authorization-mode=Node,RBAC".to_string(),
            "--allow-privileged=true".to_string(),
            "--profiling=false".to_string(),
        ];
        if self.netns.is_some() {
            api.push("--enable-admission-plugins=NodeRestriction".to_string());
            // Names of nodes cannot be looked up: logs and exec go to their addresses.
            api.push("--kubelet-preferred-address-types=InternalIP".to_string());
            api.push(format!("--kubelet-client-certificate={}", file("kubelet-client.crt")));
            api.push(format!("--kubelet-client-key={}", file("kubelet-client.key")));
        } else {
            api.push("--endpoint-reconciler-type=none".to_string()); // loopback is no valid endpoint
            api.push("--disable-admission-plugins=ServiceAccount".to_string()); // nothing makes their tokens
        }
        self.start("kube-apiserver", &api, place)
    }

    pub fn start_controllers(&mut self, place: &Place) -> io::Result<()> {
        let file = |name: &str| self.pki.join(name).display().to_string();
        let manager = file("controller-manager.kubeconfig");
        let scheduler = file("scheduler.kubeconfig");
        self.write_kubeconfig(Path::new(&manager), "system:kube-controller-manager", None, self.api)?;
        self.write_kubeconfig(Path::new(&scheduler), "system:kube-scheduler", None, self.api)?;
        let controllers = [
            format!("--kubeconfig={manager}"),
            format!("--service-account-private-key-file={}", file("sa.key")),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--cluster-signing-cert-file={}", file("ca.crt")),
            format!("--cluster-signing-key-file={}", file("ca.key")),
            "--use-service-account-credentials=true".to_string(),
            "--leader-elect=false".to_string(),
            "--secure-port=0".to_string(),
            // Makes this folder, by default one of the machine's.
            format!("--flex-volume-plugin-dir={}", place.folder().join("flex").display()),
            // A lost node is seen in seconds, not in a minute.
            "--node-monitor-grace-period=12s".to_string(),
            "--node-monitor-period=1s".to_string(),
        ];
        self.start("kube-controller-manager", &controllers, place)?;
        let scheduling = [
            format!("--kubeconfig={scheduler}"),
            "--leader-elect=false".to_string(),
            "--secure-port=0".to_string(),
        ];
        self.start("kube-scheduler", &scheduling, place)
    }

    /// The name service, beside the API server: pods reach it through their nodes' routes.
    pub fn start_dns(&mut self, place: &Place) -> io::Result<()> {
        let kubeconfig = self.pki.join("dns.kubeconfig");
        self.write_kubeconfig(&kubeconfig, "dns", Some("system:masters"), self.api)?;
        let corefile = place.folder().join("Corefile");
        let text = format!(
            "cluster.local:53 {{\n  bind {PLANE_IP}\n  errors\n  kubernetes cluster.local {{\n    kubeconfig {} {CONTEXT}\n    ttl 2\n  }}\n}}\n",
            kubeconfig.display()
        );
        fs::write(&corefile, text)?;
        self.start("coredns", &["-conf".to_string(), corefile.display().to_string()], place)
    }

    /// Writes a kubeconfig for a user with a certificate of its own.
    pub fn write_kubeconfig(
        &self,
        path: &Path,
        user: &str,
        group: Option<&str>,
        server: SocketAddr,
    ) -> io::Result<()> {
        use base64::Engine;
        let identity = self.authority.issue(user, group, &[]);
        let base64 = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
        let file = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": CONTEXT,
            "contexts": [{ "name": CONTEXT, "context": { "cluster": "bed", "user": user } }],
            "clusters": [{ "name": "bed", "cluster": {
                "server": format!("https://{server}"),
                "certificate-authority-data": base64(&self.authority.certificate_pem()),
            }}],
            "users": [{ "name": user, "user": {
                "client-certificate-data": base64(&identity.certificate_pem),
                "client-key-data": base64(&identity.key_pem),
            }}],
        });
        fs::write(path, serde_json::to_string_pretty(&file)?)
    }

    /// Plugs a node's cable into the bridge and routes its pods' addresses to it.
    pub fn connect(&self, node_netns: &str, cable: &str, ip: Ipv4Addr, pods: &str) -> io::Result<()> {
        let program = self.tools.path("ip");
        let plane = self.netns_name();
        let node = node_netns;
        for command in [
            format!("-n {plane} link add {cable} type veth peer name eth0 netns {node}"),
            format!("-n {plane} link set {cable} master {BRIDGE} up"),
            format!("-n {node} addr add {ip}/24 dev eth0"),
            format!("-n {node} link set eth0 up"),
            format!("-n {node} route add default via {PLANE_IP}"),
            format!("-n {plane} route add {pods} via {ip}"),
        ] {
            netns::ip(program, &command)?;
        }
        Ok(())
    }

    pub fn netns_name(&self) -> String {
        let path = self.netns.as_deref().expect("a bed with nodes has namespaces");
        path.file_name().expect("a namespace has a name").to_string_lossy().into_owned()
    }

    /// Kills everything, last started first.
    pub fn end(&mut self) {
        while let Some(process) = self.processes.pop() {
            process.kill();
        }
    }

    fn start(&mut self, name: &str, arguments: &[String], place: &Place) -> io::Result<()> {
        let spec = Spec::new(name, self.tools.path(name)).args(arguments).netns(self.netns.clone());
        self.processes.push(place.spawn(spec, name)?);
        Ok(())
    }
}

const CONTEXT: &str = "bed";

fn make_namespace(ip: &Path, name: &str) -> io::Result<PathBuf> {
    let namespace = make_bare_namespace(ip, name)?;
    for command in [
        format!("-n {name} link add {BRIDGE} type bridge"),
        format!("-n {name} addr add {PLANE_IP}/24 dev {BRIDGE}"),
        format!("-n {name} link set {BRIDGE} up"),
    ] {
        netns::ip(ip, &command)?;
    }
    Ok(namespace)
}

/// A namespace with loopback and forwarding.
pub fn make_bare_namespace(ip: &Path, name: &str) -> io::Result<PathBuf> {
    netns::ip(ip, &format!("netns add {name}"))?;
    netns::ip(ip, &format!("-n {name} link set lo up"))?;
    let path = netns::path(name);
    netns::enter(&path, || fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
    Ok(path)
}

/// The address of node `number`.
pub fn node_ip(number: usize) -> IpAddr {
    let [a, b, c, _] = PLANE_IP.octets();
    IpAddr::from(Ipv4Addr::new(a, b, c, 10 + number as u8))
}
