//! Which programs the tests use, and what each is built from.

/// A Go module of ours under `tests/tools/go/` that pins versions and holds the hashes of all it uses.
#[derive(Debug)]
pub struct Module {
    /// Folder under `tests/tools/go/`.
    pub folder: &'static str,
    pub go_mod: &'static str,
    pub go_sum: &'static str,
}

#[derive(Debug)]
pub struct Program {
    pub name: &'static str,
    pub module: &'static Module,
    /// The package to build.
    pub package: &'static str,
    /// What `go build` calls it: the package's last element, a version aside.
    pub built_as: &'static str,
    /// The Go module whose version is the program's; none for our own small ones.
    versioned_by: Option<&'static str>,
    /// The program's own source, if it is in our module.
    source: &'static str,
}

macro_rules! module {
    ($folder:literal) => {
        Module {
            folder: $folder,
            go_mod: include_str!(concat!("../../tools/go/", $folder, "/go.mod")),
            go_sum: include_str!(concat!("../../tools/go/", $folder, "/go.sum")),
        }
    };
}

static ETCD_MODULE: Module = module!("etcd");
static KUBE_MODULE: Module = module!("kube");
static CONTAINERD_MODULE: Module = module!("containerd");
static GRPCURL_MODULE: Module = module!("grpcurl");

const fn of(
    name: &'static str,
    module: &'static Module,
    package: &'static str,
    versioned_by: &'static str,
) -> Program {
    Program { name, module, package, built_as: name, versioned_by: Some(versioned_by), source: "" }
}

const KUBERNETES: &str = "k8s.io/kubernetes";
const CONTAINERD: &str = "github.com/containerd/containerd/v2";

static PROGRAMS: [Program; 15] = [
    Program {
        built_as: "server",
        ..of("etcd", &ETCD_MODULE, "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3")
    },
    of("etcdctl", &ETCD_MODULE, "go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdctl/v3"),
    of("kube-apiserver", &KUBE_MODULE, "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES),
    of("kubectl", &KUBE_MODULE, "k8s.io/kubernetes/cmd/kubectl", KUBERNETES),
    of("kube-controller-manager", &KUBE_MODULE, "k8s.io/kubernetes/cmd/kube-controller-manager", KUBERNETES),
    of("kube-scheduler", &KUBE_MODULE, "k8s.io/kubernetes/cmd/kube-scheduler", KUBERNETES),
    of("kubelet", &KUBE_MODULE, "k8s.io/kubernetes/cmd/kubelet", KUBERNETES),
    of("kube-proxy", &KUBE_MODULE, "k8s.io/kubernetes/cmd/kube-proxy", KUBERNETES),
    Program {
        source: include_str!("../../tools/go/kube/coredns/main.go"),
        ..of("coredns", &KUBE_MODULE, "./coredns", "github.com/coredns/coredns")
    },
    Program {
        versioned_by: None,
        source: include_str!("../../tools/go/kube/pause/main.go"),
        ..of("pause", &KUBE_MODULE, "./pause", "")
    },
    of("helm", &KUBE_MODULE, "helm.sh/helm/v3/cmd/helm", "helm.sh/helm/v3"),
    of("containerd", &CONTAINERD_MODULE, "github.com/containerd/containerd/v2/cmd/containerd", CONTAINERD),
    of(
        "containerd-shim-runc-v2",
        &CONTAINERD_MODULE,
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        CONTAINERD,
    ),
    of("ctr", &CONTAINERD_MODULE, "github.com/containerd/containerd/v2/cmd/ctr", CONTAINERD),
    of(
        "grpcurl",
        &GRPCURL_MODULE,
        "github.com/fullstorydev/grpcurl/cmd/grpcurl",
        "github.com/fullstorydev/grpcurl",
    ),
];

/// A metadata store.
pub const ETCD: &[&str] = &["etcd", "etcdctl"];
/// A Kubernetes API without anything that acts on it.
pub const API: &[&str] = &["etcd", "kube-apiserver", "kubectl"];
/// The API and its controllers.
pub const CONTROL: &[&str] =
    &["etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler", "helm"];
/// Everything that a cluster with nodes consists of.
pub const KUBELETS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "helm",
    "kubelet",
    "kube-proxy",
    "coredns",
    "pause",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
];

pub fn program(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|p| p.name == name)
}

pub fn programs() -> impl Iterator<Item = &'static Program> {
    PROGRAMS.iter()
}

impl Program {
    /// The version as go.mod pins it, such as `v3.6.8`.
    pub fn version(&self) -> &'static str {
        match self.versioned_by {
            Some(module) => pinned(self.module.go_mod, module).expect("go.mod pins every program's module"),
            None => "v1",
        }
    }

    /// What the linker is told: no symbols, and for Kubernetes' programs the version that they report.
    pub fn linker_flags(&self) -> String {
        if self.package.starts_with(KUBERNETES) {
            let version = self.version();
            let mut numbers = version.trim_start_matches('v').split('.');
            let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
            let set = "-X k8s.io/component-base/version";
            return format!("-s -w {set}.gitVersion={version} {set}.gitMajor={major} {set}.gitMinor={minor}");
        }
        "-s -w".to_string()
    }

    /// Everything that decides what the program is, for the name of its folder in the cache.
    pub(super) fn inputs(&self) -> [&str; 4] {
        [self.module.go_mod, self.module.go_sum, self.source, self.package]
    }
}

fn pinned(go_mod: &'static str, module: &str) -> Option<&'static str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        let (name, version) = (words.next()?, words.next()?);
        (name == module && version.starts_with('v')).then_some(version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_pinned_and_groups_name_programs() {
        let versions: Vec<_> = programs().map(|p| (p.name, p.version())).collect();
        assert!(versions.contains(&("etcd", "v3.6.8")), "{versions:?}");
        assert!(versions.contains(&("kubelet", "v1.36.3")), "{versions:?}");
        assert!(program("kubelet").unwrap().linker_flags().contains("gitMinor=36"));
        for name in [ETCD, API, CONTROL, KUBELETS].concat() {
            assert!(program(name).is_some(), "{name}");
        }
    }
}
