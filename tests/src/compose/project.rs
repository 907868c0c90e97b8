//! The containers of a compose file: brought up in their order, watched, restarted, stopped.
//!
//! What an engine does and this does not: it gives containers no PATH, HOSTNAME and HOME that the file does not name,
//! and no way out of their network.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::container::{Bind, Container, DEVICES, Plan};
use super::dockerfile::{Image, Owner};
use super::network::{NAME_SERVER, Network, Plug};
use super::{ComposeFile, Condition, Healthcheck, Restart, Service};
use crate::mounts::View;
use crate::process::{Output, Spec, run, tail};
use crate::programs;
use crate::scratch::Scratch;
use crate::tools::Tools;

/// What our Dockerfile makes.
const CAIRN: &str = "cairn:latest";
/// Nothing that a dependency waits for takes longer.
const LIMIT: Duration = Duration::from_secs(120);
/// Before the first restart; doubled with each further one, as Docker does.
const RESTART_AFTER: Duration = Duration::from_millis(100);
/// A container that ran so long has its next restart without delay.
const RAN_WELL: Duration = Duration::from_secs(10);

/// A project that is up, or can be brought up. Dropping it kills every container and removes every volume.
pub struct Project {
    file: ComposeFile,
    units: BTreeMap<String, Arc<Unit>>,
    network: Network,
    folder: Scratch,
}

/// A service's container.
struct Unit {
    names: Vec<String>,
    plan: Plan,
    plug: Plug,
    restart: Option<Restart>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Nobody has asked it to end.
    wanted: bool,
    container: Option<Arc<Container>>,
    /// How it ended, each time since it was brought up.
    ends: Vec<ExitStatus>,
    watcher: Option<JoinHandle<()>>,
}

/// The image of our own services, and the programs of the one of etcd.
pub struct Images<'a> {
    pub cairn: &'a Image,
    pub tools: &'a Tools,
}

impl Project {
    /// Makes volumes, root folders and the network; starts nothing. Needs root.
    pub fn create(file: ComposeFile, images: &Images<'_>) -> Result<Self> {
        let built: Vec<_> = file.services.values().filter(|service| service.build.is_some()).collect();
        let by_us =
            built.iter().all(|service| service.image == CAIRN && service.build.as_deref() == Some("."));
        ensure!(by_us && !built.is_empty(), "the Dockerfile beside the file makes {CAIRN}, and nothing else");
        let folder = Scratch::new("compose")?;
        for volume in file.volumes() {
            fs::create_dir_all(folder.path().join("volumes").join(volume))?;
        }
        let mut network = Network::new(images.tools.path("ip")).context("the network")?;
        let mut units = BTreeMap::new();
        for name in file.in_order()? {
            let service = file.service(name)?;
            let plug = network.plug().with_context(|| format!("the network of {name}"))?;
            let plan = plan(name, service, &plug, folder.path(), images).with_context(|| name.to_string())?;
            for port in &service.ports {
                let to = SocketAddr::from((plug.address, port.container));
                network.publish(port.host, to).with_context(|| format!("port {}", port.host))?;
            }
            let names = [Some(name.to_string()), service.hostname.clone()].into_iter().flatten().collect();
            let (restart, state, changed) = (service.restart, Mutex::default(), Condvar::new());
            units.insert(name.to_string(), Arc::new(Unit { names, plan, plug, restart, state, changed }));
        }
        Ok(Self { file, units, network, folder })
    }

    pub fn file(&self) -> &ComposeFile {
        &self.file
    }

    /// The network namespace of the machine, where published ports are.
    pub fn machine(&self) -> PathBuf {
        self.network.machine()
    }

    /// What is in a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.folder.path().join("volumes").join(name)
    }

    /// Starts every service that does not run, each when its dependencies are as it wants them.
    pub fn up(&self) -> Result<()> {
        for name in self.file.in_order()? {
            for (on, dependency) in &self.file.service(name)?.depends_on {
                match dependency.condition {
                    Condition::ServiceCompletedSuccessfully => self.wait_completed(on)?,
                    Condition::ServiceHealthy => self.wait_healthy(on)?,
                }
            }
            self.start(name)?;
        }
        Ok(())
    }

    /// Starts a service, unless it runs, and keeps it running as its restart policy says.
    pub fn start(&self, name: &str) -> Result<()> {
        let unit = self.unit(name)?;
        if unit.lock().wanted {
            return Ok(());
        }
        unit.join();
        *unit.lock() = State { wanted: true, ..State::default() };
        let container = unit.run().with_context(|| format!("cannot start {name}"))?;
        let for_thread = unit.clone();
        let watch = move || for_thread.watch(container);
        unit.lock().watcher = Some(std::thread::Builder::new().name(format!("watch-{name}")).spawn(watch)?);
        Ok(())
    }

    /// SIGTERM; after the service's grace, SIGKILL. The container must end in time, and with the code 0.
    pub fn stop(&self, name: &str) -> Result<Duration> {
        let (unit, grace) = (self.unit(name)?, self.file.service(name)?.stop_grace());
        let container = {
            let mut state = unit.lock();
            state.wanted = false;
            unit.changed.notify_all();
            state.container.clone()
        };
        let container = container.with_context(|| format!("{name} does not run"))?;
        let begun = Instant::now();
        container.signal(libc::SIGTERM);
        let ended = container.wait_within(grace);
        let took = begun.elapsed();
        container.signal(libc::SIGKILL);
        unit.join();
        match ended {
            Some(status) if status.success() => Ok(took),
            Some(status) => bail!("{name} ended with {status} after SIGTERM\n{}", self.log(name)?),
            None => bail!("{name} did not end within {grace:?} after SIGTERM\n{}", self.log(name)?),
        }
    }

    /// `kill -9` of the container's process, from outside: the restart policy holds.
    pub fn kill(&self, name: &str) -> Result<()> {
        let container = self.running(name)?;
        container.signal(libc::SIGKILL);
        container.wait();
        Ok(())
    }

    /// How often a service's container has ended since it was brought up.
    pub fn ends(&self, name: &str) -> Result<usize> {
        Ok(self.unit(name)?.lock().ends.len())
    }

    /// The process of a running service.
    pub fn pid(&self, name: &str) -> Result<i32> {
        self.running(name).map(|container| container.pid())
    }

    /// Copies a file out of a running container into a folder.
    pub fn copy_out(&self, name: &str, path: &str, into: &Path) -> Result<()> {
        let from = self.running(name)?.outside(path);
        let file = Path::new(path).file_name().context("no file name")?;
        fs::copy(&from, into.join(file)).with_context(|| format!("{name}:{path}")).map(drop)
    }

    /// Runs a program on the machine: in its network, with our files.
    pub fn run(&self, spec: Spec, limit: Duration) -> io::Result<Output> {
        run(spec.netns(Some(self.machine())), None, limit)
    }

    /// The end of what a service has printed.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(format!("--- end of the log of {name}\n{}", tail(&self.unit(name)?.plan.log, 20)))
    }

    /// Everything that a service has printed.
    pub fn whole_log(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(&self.unit(name)?.plan.log)?)
    }

    fn wait_completed(&self, name: &str) -> Result<()> {
        let unit = self.unit(name)?;
        let ended = unit.changed.wait_timeout_while(unit.lock(), LIMIT, |state| state.ends.is_empty());
        let end = ended.unwrap_or_else(|e| e.into_inner()).0.ends.last().copied();
        match end {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{name} ended with {status}\n{}", self.log(name)?),
            None => bail!("{name} did not end within {LIMIT:?}\n{}", self.log(name)?),
        }
    }

    /// Waits until a service is healthy, by its own check and as often as that says.
    pub fn wait_healthy(&self, name: &str) -> Result<()> {
        let check = self.file.service(name)?.healthcheck.as_ref();
        let check = check.with_context(|| format!("{name} has no health check"))?;
        let mut said = String::new();
        for attempt in 0..check.retries {
            let next = Instant::now() + check.interval.0;
            match self.probe(name, check) {
                Ok(output) if output.success => return Ok(()),
                Ok(output) => said = format!("{}{}", output.stdout, output.stderr),
                Err(error) => said = format!("{error:#}"),
            }
            if attempt + 1 < check.retries {
                // The file says how often to look.
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        }
        bail!("{name} is unhealthy: {said}\n{}", self.log(name)?)
    }

    /// Runs a health check's command inside of the container.
    fn probe(&self, name: &str, check: &Healthcheck) -> Result<Output> {
        let unit = self.unit(name)?;
        ensure!(unit.plan.user == Owner::default(), "{name}: health checks are run as root only");
        let (container, words) = (self.running(name)?, check.words()?);
        let spec = Spec::new(format!("health of {name}"), &words[0]).args(&words[1..]);
        let spec =
            unit.plan.environment.iter().fold(spec.clear_env(), |spec, (name, value)| spec.env(name, value));
        let spec = spec.netns(Some(unit.plan.network.clone()));
        Ok(run(spec.view(View::Of(container.pid())), None, check.timeout.0)?)
    }

    fn running(&self, name: &str) -> Result<Arc<Container>> {
        self.unit(name)?.lock().container.clone().with_context(|| format!("{name} does not run"))
    }

    fn unit(&self, name: &str) -> Result<&Arc<Unit>> {
        self.units.get(name).with_context(|| format!("no service {name}"))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        for unit in self.units.values() {
            let mut state = unit.lock();
            state.wanted = false;
            unit.changed.notify_all();
            if let Some(container) = &state.container {
                container.signal(libc::SIGKILL);
            }
        }
        for (name, unit) in &self.units {
            unit.join();
            if std::thread::panicking() {
                eprintln!("{}", self.log(name).unwrap_or_default());
            }
        }
    }
}

impl Unit {
    fn run(&self) -> io::Result<Arc<Container>> {
        let container = Arc::new(self.plan.start()?);
        self.plug.announce(&self.names);
        self.lock().container = Some(container.clone());
        self.changed.notify_all();
        Ok(container)
    }

    /// Waits for the container's end and starts it again, until that is not wanted any more.
    fn watch(&self, mut container: Arc<Container>) {
        let mut pause = RESTART_AFTER;
        loop {
            let begun = Instant::now();
            let status = container.wait();
            self.plug.withdraw();
            let mut state = self.lock();
            state.container = None;
            state.ends.push(status);
            state.wanted &= self.restart == Some(Restart::UnlessStopped);
            self.changed.notify_all();
            if begun.elapsed() >= RAN_WELL {
                pause = RESTART_AFTER;
            }
            let waited = self.changed.wait_timeout_while(state, pause, |state| state.wanted);
            if !waited.unwrap_or_else(|e| e.into_inner()).0.wanted {
                return;
            }
            pause *= 2;
            match self.run() {
                Ok(next) => container = next,
                Err(error) => return eprintln!("{}: cannot be restarted: {error}", self.names[0]),
            }
        }
    }

    /// Waits until nobody watches the container any more.
    fn join(&self) {
        let watcher = self.lock().watcher.take();
        if let Some(watcher) = watcher {
            let _ = watcher.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What of the machine a service's image is made of: programs by their place in the image, empty folders, their owner,
/// and the user that runs.
struct Content {
    programs: Vec<(PathBuf, String)>,
    folders: Vec<String>,
    owner: Owner,
    user: Owner,
}

fn content(image: &str, images: &Images<'_>) -> Result<Content> {
    if image == CAIRN {
        let Image { user, programs, folders, owner, entrypoint: _, exposed: _ } = images.cairn;
        let programs = programs.iter().map(|name| (programs::built(name), format!("/{name}"))).collect();
        let folders = folders.iter().map(|name| format!("/{name}")).collect();
        return Ok(Content { programs, folders, owner: *owner, user: *user });
    }
    if let Some(version) = image.strip_prefix("quay.io/coreos/etcd:") {
        let pinned = crate::tools::catalog::program("etcd").map(|program| program.version());
        ensure!(pinned == Some(version), "the file has etcd {version}, the tests have {pinned:?}");
        let at = |name: &str| (images.tools.path(name).to_path_buf(), format!("/usr/local/bin/{name}"));
        let (owner, user) = (Owner::default(), Owner::default());
        return Ok(Content {
            programs: vec![at("etcd"), at("etcdctl")],
            folders: vec!["/tmp".into()],
            owner,
            user,
        });
    }
    bail!("the tests have no image {image}")
}

/// Lays out a service's root folder.
fn plan(name: &str, service: &Service, plug: &Plug, folder: &Path, images: &Images<'_>) -> Result<Plan> {
    let root = folder.join("roots").join(name);
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let image = content(&service.image, images)?;
    for path in ["/dev", "/etc", "/proc"] {
        fs::create_dir_all(below(path))?;
    }
    for device in DEVICES {
        fs::write(below("/dev").join(device), "")?;
    }
    let hostname = service.hostname.clone().unwrap_or_else(|| name.to_string());
    fs::write(below("/etc/hosts"), format!("127.0.0.1 localhost\n{} {hostname}\n", plug.address))?;
    fs::write(below("/etc/resolv.conf"), format!("nameserver {NAME_SERVER}\noptions ndots:0\n"))?;
    let mut mounts = Vec::new();
    for (source, target) in image.programs {
        let point = below(&target);
        fs::create_dir_all(point.parent().context("a program at the root")?)?;
        fs::write(&point, "")?;
        mounts.push(Bind { source, target, read_only: true });
    }
    for path in &image.folders {
        fs::create_dir_all(below(path))?;
        chown(below(path), Some(image.owner.user), Some(image.owner.group))?;
    }
    for mount in &service.volumes {
        let source = folder.join("volumes").join(&mount.volume);
        if image.folders.contains(&mount.path) && fs::read_dir(&source)?.next().is_none() {
            // An empty volume takes its owner from the image.
            chown(&source, Some(image.owner.user), Some(image.owner.group))?;
        }
        fs::create_dir_all(below(&mount.path))?;
        mounts.push(Bind { source, target: mount.path.clone(), read_only: mount.read_only });
    }
    // Whatever else this program's umask would have made of it.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    Ok(Plan {
        root,
        mounts,
        network: plug.namespace.path(),
        hostname,
        user: image.user,
        words: service.words(),
        environment: service.environment.clone(),
        log: folder.join(format!("{name}.log")),
    })
}
