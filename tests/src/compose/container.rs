//! One container: a process that is the first of its own process namespace and sees nothing of the machine but its root
//! folder and what is mounted there. It ends with the process that started it, also when that is killed.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use super::dockerfile::Owner;

/// What every container finds in `/dev`.
pub const DEVICES: [&str; 5] = ["full", "null", "random", "urandom", "zero"];

#[derive(Clone, Debug)]
pub struct Plan {
    pub root: PathBuf,
    pub mounts: Vec<Bind>,
    pub network: PathBuf,
    pub hostname: String,
    pub user: Owner,
    pub words: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// Where its output goes (appended).
    pub log: PathBuf,
}

/// A file or folder of the machine, mounted on one that exists below the root.
#[derive(Clone, Debug)]
pub struct Bind {
    pub source: PathBuf,
    /// Absolute, as the container sees it.
    pub target: String,
    pub read_only: bool,
}

/// A container that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Container {
    pid: i32,
    /// Names the process for ever, also after it is gone.
    handle: OwnedFd,
    ended: Arc<(Mutex<Option<ExitStatus>>, Condvar)>,
}

impl Plan {
    /// Starts the container's process.
    pub fn start(&self) -> io::Result<Container> {
        let command = self.command()?;
        let (tell, told) = mpsc::sync_channel(1);
        let ended = Arc::new((Mutex::new(None), Condvar::new()));
        let for_thread = ended.clone();
        // The kernel ends a child with the *thread* that forked it, and a thread can make one process namespace only:
        // each container has a thread, which lives as long.
        std::thread::Builder::new()
            .name("container".into())
            .spawn(move || hold(command, &tell, &for_thread))?;
        let (pid, handle) = told.recv().map_err(|_| io::Error::other("the container's thread ended"))??;
        Ok(Container { pid, handle, ended })
    }

    fn command(&self) -> io::Result<Command> {
        let (program, arguments) =
            self.words.split_first().ok_or_else(|| io::Error::other("nothing to run"))?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&self.environment).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let inside = Inside::prepare(self)?;
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(move || inside.enter()) };
        Ok(command)
    }
}

type Told = mpsc::SyncSender<io::Result<(i32, OwnedFd)>>;

/// Starts the command as the first process of a new namespace, and waits until it ends.
fn hold(mut command: Command, tell: &Told, ended: &(Mutex<Option<ExitStatus>>, Condvar)) {
    let mut spawn = || {
        // SAFETY: changes where this thread's children go, nothing else.
        done(unsafe { libc::unshare(libc::CLONE_NEWPID) })?;
        let child = command.spawn()?;
        // SAFETY: the child is ours and not waited for: its pid is nobody else's.
        let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
        if handle < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that the kernel has just made for us.
        Ok((child, unsafe { OwnedFd::from_raw_fd(handle as i32) }))
    };
    match spawn() {
        Ok((mut child, handle)) => {
            let _ = tell.send(Ok((child.id() as i32, handle)));
            *ended.0.lock().unwrap_or_else(|e| e.into_inner()) = child.wait().ok();
            ended.1.notify_all();
        }
        Err(error) => drop(tell.send(Err(error))),
    }
}

impl Container {
    /// Its process, as the machine numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A path as the container sees it, as seen from outside.
    pub fn outside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    pub fn signal(&self, signal: i32) {
        let (handle, none) = (self.handle.as_raw_fd(), ptr::null::<libc::siginfo_t>());
        // SAFETY: a valid descriptor; a process that has ended is not signalled.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle, signal, none, 0) };
    }

    /// Waits until it ends.
    pub fn wait(&self) -> ExitStatus {
        loop {
            if let Some(status) = self.wait_within(Duration::from_secs(3600)) {
                return status;
            }
        }
    }

    /// The same, for some time.
    pub fn wait_within(&self, limit: Duration) -> Option<ExitStatus> {
        let (status, changed) = &*self.ended;
        let status = status.lock().unwrap_or_else(|e| e.into_inner());
        let waited = changed.wait_timeout_while(status, limit, |status| status.is_none());
        *waited.unwrap_or_else(|e| e.into_inner()).0
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }
}

/// All that the child needs, made ready before the fork; nothing is allocated after it.
struct Inside {
    network: File,
    hostname: CString,
    root: CString,
    mounts: Vec<(CString, CString, bool)>,
    proc: CString,
    user: Owner,
}

impl Inside {
    fn prepare(plan: &Plan) -> io::Result<Self> {
        let below = |path: &str| c_string(&plan.root.join(path.trim_start_matches('/')));
        let devices = DEVICES.iter().map(|name| {
            let path = format!("/dev/{name}");
            Ok((c_string(Path::new(&path))?, below(&path)?, false))
        });
        let mounts = plan
            .mounts
            .iter()
            .map(|bind| Ok((c_string(&bind.source)?, below(&bind.target)?, bind.read_only)));
        Ok(Self {
            network: File::open(&plan.network)?,
            hostname: CString::new(plan.hostname.as_str())?,
            root: c_string(&plan.root)?,
            mounts: devices.chain(mounts).collect::<io::Result<_>>()?,
            proc: below("/proc")?,
            user: plan.user,
        })
    }

    /// Called in the child, between fork and exec: makes only system calls.
    fn enter(&self) -> io::Result<()> {
        // SAFETY: valid descriptors, constants, and strings that end with a zero.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC))?;
            done(libc::setns(self.network.as_raw_fd(), libc::CLONE_NEWNET))?;
            done(libc::sethostname(self.hostname.as_ptr(), self.hostname.as_bytes().len()))?;
            let private = libc::MS_REC | libc::MS_PRIVATE;
            done(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()))?;
            bind(&self.root, &self.root, false)?;
            for (source, target, read_only) in &self.mounts {
                bind(source, target, *read_only)?;
            }
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            done(libc::mount(c"proc".as_ptr(), self.proc.as_ptr(), c"proc".as_ptr(), flags, ptr::null()))?;
            // The new root goes over the old one, which is then taken away.
            done(libc::chdir(self.root.as_ptr()))?;
            let here = c".".as_ptr();
            done(libc::syscall(libc::SYS_pivot_root, here, here) as libc::c_int)?;
            done(libc::umount2(here, libc::MNT_DETACH))?;
            done(libc::chdir(c"/".as_ptr()))?;
            done(libc::setgroups(0, ptr::null()))?;
            done(libc::setgid(self.user.group))?;
            done(libc::setuid(self.user.user))?;
            // Last: a change of user takes it back.
            done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))
        }
    }
}

/// Mounts a file or folder in a second place.
///
/// # Safety
/// Makes only system calls.
unsafe fn bind(source: &CString, target: &CString, read_only: bool) -> io::Result<()> {
    let (source, target) = (source.as_ptr(), target.as_ptr());
    let again = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY;
    // SAFETY: strings that end with a zero.
    unsafe {
        done(libc::mount(source, target, ptr::null(), libc::MS_BIND, ptr::null()))?;
        if read_only {
            // The kernel takes this flag only once the mount is there.
            done(libc::mount(ptr::null(), target, ptr::null(), again, ptr::null()))?;
        }
    }
    Ok(())
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
