//! A view of the file system of a child's own: some folders copied on write, some files replaced, for programs that write
//! to fixed places of a machine they take for theirs. Everything mounted in it goes with the last process that sees it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

/// Which view a child gets. Needs root, the first aside.
#[derive(Debug, Default)]
pub enum View {
    /// Its parent's.
    #[default]
    Same,
    /// A new one, with these mounts.
    Own(Vec<Mount>),
    /// The one of another process.
    Of(i32),
}

#[derive(Debug)]
pub struct Mount {
    source: CString,
    target: CString,
    kind: Option<CString>,
    flags: libc::c_ulong,
    options: Option<CString>,
}

impl Mount {
    /// Puts a file in the place of another one.
    pub fn replace(target: &Path, source: &Path) -> Self {
        let (source, target) = (c_string(source), c_string(target));
        Self { source, target, kind: None, flags: libc::MS_BIND, options: None }
    }

    /// Keeps what is written to a folder in `changes` instead.
    pub fn copy_on_write(folder: &Path, changes: &Path) -> io::Result<Self> {
        let (upper, work) = (changes.join("upper"), changes.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", folder.display(), upper.display(), work.display());
        Ok(Self {
            source: c"overlay".to_owned(),
            target: c_string(folder),
            kind: Some(c"overlay".to_owned()),
            flags: 0,
            options: Some(c_string(Path::new(&options))),
        })
    }
}

/// A view made ready before the fork; nothing is allocated after it.
#[derive(Debug)]
pub(crate) enum Prepared {
    Same,
    Own(Vec<Mount>),
    Of(OwnedFd),
}

impl View {
    pub(crate) fn prepare(self) -> io::Result<Prepared> {
        Ok(match self {
            Self::Same => Prepared::Same,
            Self::Own(mounts) => Prepared::Own(mounts),
            Self::Of(pid) => {
                let path = PathBuf::from(format!("/proc/{pid}/ns/mnt"));
                Prepared::Of(File::open(path)?.into())
            }
        })
    }
}

impl Prepared {
    /// Called in the child, between fork and exec: makes only system calls.
    pub(crate) fn enter(&self) -> io::Result<()> {
        match self {
            Self::Same => Ok(()),
            // SAFETY: a valid descriptor.
            Self::Of(namespace) => done(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) }),
            Self::Own(mounts) => {
                // SAFETY: constants and strings that end with a zero.
                unsafe {
                    done(libc::unshare(libc::CLONE_NEWNS))?;
                    let private = libc::MS_REC | libc::MS_PRIVATE;
                    done(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()))?;
                    for mount in mounts {
                        let kind = mount.kind.as_ref().map_or(ptr::null(), |k| k.as_ptr());
                        let options = mount.options.as_ref().map_or(ptr::null(), |o| o.as_ptr());
                        let (source, target) = (mount.source.as_ptr(), mount.target.as_ptr());
                        done(libc::mount(source, target, kind, mount.flags, options.cast()))?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no path holds a zero byte")
}
