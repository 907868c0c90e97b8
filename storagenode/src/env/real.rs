//! The real clock, randomness, disk and threads. The real network is in [`crate::tls`].

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    BoxFuture, Clock, Disk, DiskFile, DiskSpace, Env, Listener, Network, OpenMode, Protocol, Random, Stream,
    Threads, Work,
};

/// The real world for what talks to no node.
pub fn without_network() -> Env {
    Env {
        clock: Arc::new(RealClock::default()),
        random: Arc::new(RealRandom),
        disk: Arc::new(RealDisk),
        network: Arc::new(NoNetwork),
        threads: Arc::new(RealThreads),
    }
}

/// Reaches nobody, and nobody reaches it.
pub struct NoNetwork;

#[async_trait::async_trait]
impl Network for NoNetwork {
    async fn listen(&self, _: &str, _: Protocol) -> io::Result<Arc<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn connect(&self, _: &str, _: &str) -> io::Result<Box<dyn Stream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The machine's clocks.
pub struct RealClock {
    start: Instant,
}

impl Default for RealClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for RealClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix_ms(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// The operating system's random numbers.
pub struct RealRandom;

impl Random for RealRandom {
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the operating system gives random bytes");
    }
}

/// The machine's file systems.
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs::OpenOptions::new();
        match mode {
            OpenMode::Read => options.read(true),
            OpenMode::ReadWrite => options.read(true).write(true),
            OpenMode::CreateNew => options.read(true).write(true).create_new(true),
        };
        // A named pipe in the place of a file would be waited for, for ever. Files do not care.
        let file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
        if file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is a named pipe, not a file"));
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        fs::File::open(folder)?.sync_all()
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes())?;
        // SAFETY: statvfs is plain data, for which zeros are a value; path is a C string that outlives the call.
        let mut stats: libc::statvfs = unsafe { std::mem::zeroed() };
        check(unsafe { libc::statvfs(path.as_ptr(), &mut stats) })?;
        let block = stats.f_frsize as u64;
        Ok(DiskSpace {
            total_bytes: block * stats.f_blocks as u64,
            available_bytes: block * stats.f_bavail as u64,
        })
    }
}

struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        // pwritev takes 1,024 parts at most and may write fewer bytes than given.
        for group in parts.chunks(1024) {
            let mut rest: Vec<io::IoSlice<'_>> =
                group.iter().filter(|part| !part.is_empty()).copied().collect();
            let mut rest = rest.as_mut_slice();
            while !rest.is_empty() {
                // SAFETY: IoSlice is guaranteed to have the layout of iovec; the slices live through the call.
                let written = unsafe {
                    libc::pwritev(
                        self.0.as_raw_fd(),
                        rest.as_ptr().cast(),
                        rest.len() as libc::c_int,
                        offset as libc::off_t,
                    )
                };
                match written {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    count if count > 0 => {
                        offset += count as u64;
                        io::IoSlice::advance_slices(&mut rest, count as usize);
                    }
                    _ => match io::Error::last_os_error() {
                        error if error.kind() == io::ErrorKind::Interrupted => {}
                        error => return Err(error),
                    },
                }
            }
        }
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        // SAFETY: a call on a file descriptor that is open as long as self.
        match check(unsafe { libc::fallocate(self.0.as_raw_fd(), 0, 0, size as libc::off_t) }) {
            // File systems without fallocate still work; they find out about a full disk when writing.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.0.set_len(size),
            other => other,
        }
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: as above.
        check(unsafe {
            libc::fallocate(self.0.as_raw_fd(), mode, offset as libc::off_t, length as libc::off_t)
        })
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn has_name(&self) -> io::Result<bool> {
        Ok(std::os::unix::fs::MetadataExt::nlink(&self.0.metadata()?) > 0)
    }

    fn forget_cached(&self, offset: u64, length: u64) -> io::Result<()> {
        let start = offset / LARGEST_FOLIO_BYTES * LARGEST_FOLIO_BYTES;
        let end = offset.saturating_add(length).checked_next_multiple_of(LARGEST_FOLIO_BYTES);
        // Without a length, to the file's end.
        let length = end.filter(|end| *end <= i64::MAX as u64).map_or(0, |end| end - start);
        let advice = libc::POSIX_FADV_DONTNEED;
        // SAFETY: as above; the call returns its error number.
        match unsafe {
            libc::posix_fadvise(self.0.as_raw_fd(), start as libc::off_t, length as libc::off_t, advice)
        } {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }

    fn lock(&self) -> io::Result<()> {
        self.0.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            fs::TryLockError::Error(error) => error,
        })
    }
}

/// Linux caches a file in pieces of up to this size, which lie at multiples of it, and drops only whole ones.
const LARGEST_FOLIO_BYTES: u64 = 2 << 20;

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Threads of the tokio runtime for blocking work.
pub struct RealThreads;

impl Threads for RealThreads {
    fn run(&self, work: Work) -> BoxFuture<'static, ()> {
        let task = tokio::task::spawn_blocking(work);
        Box::pin(async move {
            if let Err(error) = task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectored_writes_land_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = RealDisk.open(&folder.path().join("f"), OpenMode::CreateNew).unwrap();
        let parts: Vec<Vec<u8>> =
            (0..3000u32).map(|n| n.to_le_bytes()[..(n % 5) as usize % 4].to_vec()).collect();
        let slices: Vec<io::IoSlice<'_>> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
        file.write_at(&slices, 7).unwrap();
        let whole = parts.concat();
        let mut read = vec![0; whole.len()];
        file.read_at(&mut read, 7).unwrap();
        assert_eq!(read, whole);
        assert_eq!(file.size().unwrap(), 7 + whole.len() as u64);
        assert_eq!(
            file.read_at(&mut [0; 8], file.size().unwrap()).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    /// Whether the page with this offset is in the page cache.
    fn is_cached(file: &fs::File, offset: usize) -> bool {
        const PAGE: usize = 4096;
        let mut resident = 0u8;
        // SAFETY: the mapping is of one page, is not read, and ends here; mincore writes one byte for that page.
        unsafe {
            let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED);
            let at = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                protection,
                flags,
                file.as_raw_fd(),
                offset as libc::off_t,
            );
            assert_ne!(at, libc::MAP_FAILED);
            assert_eq!(libc::mincore(at, PAGE, &raw mut resident), 0);
            libc::munmap(at, PAGE);
        }
        resident & 1 == 1
    }

    /// However large the pieces are in which the system caches a file.
    #[test]
    fn what_is_forgotten_is_not_cached() {
        // Beside this program: a file system in memory has nothing but the cache.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = folder.path().join("f");
        let file = RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        for part in 0..4 {
            file.write_at(&[io::IoSlice::new(&vec![7; 2 << 20])], part * (2 << 20)).unwrap();
        }
        file.sync_all().unwrap();
        let plain = fs::File::open(&path).unwrap();
        for (offset, length) in [(5_000, 1_000), (3 << 20, 4_096), ((4 << 20) - 10, 20), (8 << 20, 0)] {
            file.read_at(&mut vec![0; 8 << 20], 0).unwrap();
            file.forget_cached(offset, length).unwrap();
            for page in (offset / 4096..(offset + length).div_ceil(4096)).map(|page| page as usize * 4096) {
                assert!(!is_cached(&plain, page), "{offset} {length}");
            }
        }
        file.read_at(&mut vec![0; 8 << 20], 0).unwrap();
        assert!(is_cached(&plain, 1 << 20));
        file.forget_cached(0, u64::MAX / 2).unwrap();
        assert!((0..8 << 20).step_by(4096).all(|page| !is_cached(&plain, page)));
    }

    #[test]
    fn a_named_pipe_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        for mode in [OpenMode::Read, OpenMode::ReadWrite] {
            let error = RealDisk.open(&path, mode).err().expect("no file");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }

    #[test]
    fn a_lock_excludes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        first.lock().unwrap();
        let second = RealDisk.open(&path, OpenMode::ReadWrite).unwrap();
        assert_eq!(second.lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        second.lock().unwrap();
    }
}
