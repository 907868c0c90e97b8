//! One node of a bed: a network namespace with a containerd, a kubelet and a kube-proxy of its own, plugged into the
//! control plane's bridge.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::control::{PLANE_IP, Plane, make_bare_namespace, node_ip};
use super::{BedError, OciImage, Place, cgroup, teardown};
use crate::mounts::{Mount, View};
use crate::process::{Process, Spec, poll, run};
use crate::tools::Tools;

/// The image that holds a pod's namespaces, and the smallest container a test can run.
pub const PAUSE_IMAGE: &str = "localhost/pause:1";

/// Where kubelet, containerd and CNI plugins write whatever they are told.
const OWN_FOLDERS: [&str; 4] = ["/var/lib", "/var/log", "/opt", "/usr/libexec"];
const OWN_SETTINGS: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

const CONTAINERD_WITHIN: Duration = Duration::from_secs(60);
const IMPORT_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Node {
    number: usize,
    name: String,
    tools: Tools,
    netns: PathBuf,
    /// The end of its cable at the control plane's bridge, with the namespace that holds it.
    cable: (String, String),
    group: String,
    /// On disk: what a machine keeps.
    folder: PathBuf,
    /// What a machine forgets with its power; sockets too.
    run: PathBuf,
    logs: PathBuf,
    pids: PathBuf,
    processes: Mutex<Vec<Process>>,
}

impl Node {
    /// Makes the namespace, the control group, certificates and configuration.
    pub fn prepare(number: usize, plane: &Plane, place: &Place, tools: &Tools) -> io::Result<Self> {
        let Place::Slot(slot) = place else { unreachable!("beds with nodes have a slot") };
        let name = format!("n{number}");
        let group = format!("{}{name}", slot.prefix());
        let cable = format!("v{number}");
        let netns = make_bare_namespace(tools.path("ip"), &group)?;
        let std::net::IpAddr::V4(ip) = node_ip(number) else { unreachable!("nodes have IPv4 addresses") };
        plane.connect(&group, &cable, ip, &format!("10.244.{number}.0/24"))?;
        cgroup::create(&group)?;
        let node = Self {
            number,
            tools: tools.clone(),
            netns,
            cable: (plane.netns_name(), cable),
            group,
            folder: slot.folder.join(&name),
            run: slot.run.join(&name),
            logs: slot.folder.join("log"),
            pids: slot.folder.join("pids"),
            processes: Mutex::default(),
            name,
        };
        fs::create_dir_all(node.folder.join("net.d"))?;
        let user = format!("system:node:{}", node.name);
        plane.write_kubeconfig(&node.file("kubeconfig"), &user, Some("system:nodes"), plane.api_address())?;
        let proxy = "system:kube-proxy";
        plane.write_kubeconfig(&node.file("proxy.kubeconfig"), proxy, None, plane.api_address())?;
        fs::write(node.file("net.d/10-pods.conflist"), node.network_configuration())?;
        fs::write(node.file("containerd.toml"), node.containerd_configuration())?;
        fs::write(node.file("kubelet.yaml"), node.kubelet_configuration(&plane.authority_file()))?;
        Ok(node)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn netns(&self) -> &Path {
        &self.netns
    }

    pub fn volume_folder(&self, index: usize) -> PathBuf {
        self.folder.join("volumes").join(index.to_string())
    }

    /// Where kubelet keeps what pods print, one folder each.
    pub fn pod_logs(&self) -> PathBuf {
        self.file("pod-logs")
    }

    /// Starts containerd, loads images, starts kubelet and kube-proxy.
    pub fn start(&self, images: &[OciImage]) -> Result<(), BedError> {
        if !self.lock().is_empty() {
            return Ok(()); // it runs
        }
        self.set_link(true)?;
        fs::create_dir_all(&self.run)?;
        let configuration = self.file("containerd.toml").display().to_string();
        let view = self.view()?;
        let containerd = self.spawn("containerd", &["-c".to_string(), configuration], view)?;
        // The socket answers before the plugins behind it are loaded; it is ctr that tells.
        let socket = self.socket();
        let ready = poll(CONTAINERD_WITHIN, Duration::from_millis(50), || {
            UnixStream::connect(&socket).ok().and_then(|_| self.ctr(&["version"]).ok())
        });
        if ready.is_none() {
            let report = self.lock().iter().map(|p| p.log_tail(20)).collect();
            let seconds = CONTAINERD_WITHIN.as_secs();
            return Err(BedError::NotReady { what: format!("containerd of {}", self.name), seconds, report });
        }
        images.iter().try_for_each(|image| self.load(image))?;
        let zone = char::from(b'a' + (self.number as u8 - 1));
        let kubelet = [
            format!("--config={}", self.file("kubelet.yaml").display()),
            format!("--kubeconfig={}", self.file("kubeconfig").display()),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", node_ip(self.number)),
            format!("--root-dir={}", self.file("kubelet").display()),
            format!("--cert-dir={}", self.file("kubelet-pki").display()),
            format!("--node-labels=topology.kubernetes.io/zone=zone-{zone}"),
        ];
        self.spawn("kubelet", &kubelet, View::Of(containerd))?;
        let proxy = [
            format!("--kubeconfig={}", self.file("proxy.kubeconfig").display()),
            format!("--hostname-override={}", self.name),
            "--cluster-cidr=10.244.0.0/16".to_string(),
            "--proxy-mode=nftables".to_string(),
            // Settings of the whole machine, which is not ours.
            "--conntrack-max-per-core=0".to_string(),
            "--conntrack-tcp-timeout-established=0".to_string(),
            "--conntrack-tcp-timeout-close-wait=0".to_string(),
        ];
        self.spawn("kube-proxy", &proxy, View::Of(containerd))?;
        Ok(())
    }

    /// Loads an image from its archive.
    pub fn load(&self, image: &OciImage) -> Result<(), BedError> {
        let archive = image.archive.display().to_string();
        self.ctr(&["-n", "k8s.io", "images", "import", &archive]).map(drop)
    }

    /// As if its power were cut: nobody hears from it again, not even a connection's end.
    pub fn kill(&self) -> Result<(), BedError> {
        self.set_link(false)?;
        self.end();
        teardown::remove_folder(&self.run);
        Ok(())
    }

    /// Kills kubelet, kube-proxy, containerd, its shims and all containers.
    pub fn end(&self) {
        let mut processes = self.lock();
        while let Some(process) = processes.pop() {
            process.kill();
        }
        teardown::kill_shims(&self.run);
        cgroup::kill(&self.group);
    }

    fn set_link(&self, up: bool) -> io::Result<()> {
        let (namespace, cable) = &self.cable;
        let state = if up { "up" } else { "down" };
        super::netns::ip(self.tools.path("ip"), &format!("-n {namespace} link set {cable} {state}"))
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String, BedError> {
        let spec = Spec::new("ctr", self.tools.path("ctr")).arg("-a").arg(self.socket()).args(arguments);
        let output = run(spec, None, IMPORT_WITHIN)?;
        if output.success {
            return Ok(output.stdout);
        }
        let what = format!("ctr {} on {}", arguments.join(" "), self.name);
        Err(BedError::Command { what, output: output.stderr })
    }

    /// What the node's programs see: places that all of a machine's kubelets share are the node's own, and so are the
    /// settings of the kernel that kubelet changes.
    fn view(&self) -> io::Result<View> {
        let mut mounts = Vec::new();
        for shared in OWN_FOLDERS.map(Path::new) {
            if shared.is_dir() && !self.folder.starts_with(shared) {
                let changes = self.folder.join("own").join(shared.strip_prefix("/").unwrap_or(shared));
                mounts.push(Mount::copy_on_write(shared, &changes)?);
            }
        }
        for setting in OWN_SETTINGS.map(Path::new).into_iter().filter(|s| s.is_file()) {
            let own = self.folder.join("own").join(setting.strip_prefix("/").unwrap_or(setting));
            fs::create_dir_all(own.parent().unwrap_or(&own))?;
            fs::write(&own, fs::read(setting)?)?;
            mounts.push(Mount::replace(setting, &own));
        }
        Ok(View::Own(mounts))
    }

    fn spawn(&self, program: &str, arguments: &[String], view: View) -> io::Result<i32> {
        let name = format!("{program}-{}", self.name);
        let spec = Spec::new(&name, self.tools.path(program))
            .args(arguments)
            .env("PATH", self.tools.search_path())
            .netns(Some(self.netns.clone()))
            .view(view)
            .log(self.logs.join(format!("{name}.log")));
        let process = spec.spawn()?;
        let pid = process.pid();
        teardown::record_in(&self.pids, &name, pid);
        self.lock().push(process);
        Ok(pid)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Process>> {
        self.processes.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    fn network_configuration(&self) -> String {
        serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [{
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.file("addresses"),
                    "ranges": [[{ "subnet": format!("10.244.{}.0/24", self.number) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        })
        .to_string()
    }

    fn containerd_configuration(&self) -> String {
        let bridge = self.tools.path("bridge").parent().expect("a program lies in a folder").display();
        let (root, run, net) = (self.file("containerd"), self.run.display(), self.file("net.d"));
        let (root, net) = (root.display(), net.display());
        format!(
            r#"version = 3
root = "{root}"
state = "{run}/state"
[grpc]
  address = "{run}/containerd.sock"
[ttrpc]
  address = "{run}/containerd.sock.ttrpc"
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = "{run}/s"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      Root = "{run}/runc"
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{bridge}"]
    conf_dir = "{net}"
"#
        )
    }

    fn kubelet_configuration(&self, authority: &Path) -> String {
        serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": authority },
            },
            "authorization": { "mode": "Webhook" },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.group),
            "failCgroupV1": false,
            "failSwapOn": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.socket().display()),
            "resolvConf": "/dev/null",
            "clusterDNS": [PLANE_IP],
            "clusterDomain": "cluster.local",
            // The machine's disk and memory are shared with everything else that is tested on it.
            "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
            "imageGCHighThresholdPercent": 100,
            "serializeImagePulls": false,
            // A node's loss shows in seconds; see the controller manager's grace period.
            "nodeStatusUpdateFrequency": "2s",
            "nodeLeaseDurationSeconds": 8,
            "crashLoopBackOff": { "maxContainerRestartPeriod": "5s" },
            "podLogsDir": self.pod_logs(),
        })
        .to_string()
    }
}
