//! Files of this machine: names on their way out, and downloads that appear whole or not at all, where they were meant
//! to and nowhere else.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use cairn_client::names::check_path;
use futures::StreamExt;
use tokio::fs::File;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::failure::{Exit, Failure};

/// A local path, relative to its folder, as a path in a volume.
pub fn to_remote(relative: &Path) -> Result<String, Failure> {
    let mut parts = Vec::new();
    for component in relative.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(not_utf8)?),
            Component::CurDir => {}
            _ => return Err(Failure::path("the path leads out of its folder", "give the folder itself")),
        }
    }
    Ok(parts.join("/"))
}

/// A file name, as the last part of a path in a volume.
pub fn name_to_remote(name: &OsStr) -> Result<&str, Failure> {
    name.to_str().ok_or_else(not_utf8)
}

fn not_utf8() -> Failure {
    Failure::path("the file name is not UTF-8, which names in Cairn are", "rename the file")
}

/// Whether a path ends in "/", which `Path` forgets.
pub fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

const PART_PREFIX: &str = ".cairn-";
const PART_SUFFIX: &str = ".part";
/// Of a file that was not there before; the user's mask takes from it.
const NEW_MODE: u32 = 0o666;
/// As many as Linux follows.
const MAX_LINKS: usize = 40;

/// Whether a name is that of a download under way, or of one that was killed: no file of the user's.
pub fn is_part(name: &OsStr) -> bool {
    let middle = name.to_str().and_then(|name| name.strip_prefix(PART_PREFIX)?.strip_suffix(PART_SUFFIX));
    middle.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A download under way: a temporary file in the folder of its target, removed unless it is finished.
pub struct Part {
    pub file: File,
    temporary: Temporary,
    target: PathBuf,
}

struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Part {
    /// Begins a file below `folder`, creating folders on the way. `relative` may come from a hostile server.
    pub async fn below(folder: &Path, relative: &str) -> Result<Self, Failure> {
        check_path(relative).map_err(|problem| {
            Failure::path(
                format!("the server names a file that cannot be: {problem}"),
                "nothing was written; report this",
            )
        })?;
        let (folder, relative) = (folder.to_owned(), relative.to_owned());
        blocking(move || {
            let target = prepare_below(&folder, &relative)?;
            Self::create(target)
        })
        .await
    }

    /// Begins the file that the user named, through links.
    pub async fn exactly(target: &Path) -> Result<Self, Failure> {
        let target = target.to_owned();
        blocking(move || {
            let target = through_links(target)?;
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent)?;
            }
            Self::create(target)
        })
        .await
    }

    fn create(target: PathBuf) -> Result<Self, Trouble> {
        let before = match std::fs::symlink_metadata(&target) {
            Ok(there) if there.is_dir() => return Err(Trouble::IsFolder(target)),
            // Renaming would replace the device itself.
            Ok(there) if !there.is_file() && !there.is_symlink() => {
                return Err(io::Error::other("it is neither a file nor a folder").into());
            }
            Ok(there) if there.is_file() => Some(there.permissions().mode() & 0o777),
            _ => None,
        };
        let temporary =
            target.with_file_name(format!("{PART_PREFIX}{:016x}{PART_SUFFIX}", rand::random::<u64>()));
        let mut options = std::fs::OpenOptions::new();
        // Whoever may not read the file that is replaced may not read the new one either, at no moment.
        let file = options.write(true).create_new(true).mode(before.unwrap_or(NEW_MODE)).open(&temporary)?;
        let temporary = Temporary(Some(temporary));
        if let Some(mode) = before {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(Self { file: File::from_std(file), temporary, target })
    }

    /// The file is complete: it takes its name.
    pub async fn finish(self) -> Result<(), Failure> {
        let Self { file, mut temporary, target } = self;
        drop(file);
        blocking(move || match temporary.0.take() {
            Some(path) => std::fs::rename(&path, &target).map_err(|error| {
                let _ = std::fs::remove_file(&path);
                match error.kind() {
                    // Made meanwhile, for a file below the same name.
                    io::ErrorKind::IsADirectory => Trouble::IsFolder(target),
                    kind => io::Error::new(kind, format!("{}: {error}", target.display())).into(),
                }
            }),
            None => Ok(()),
        })
        .await
    }
}

/// The file that a path leads to, there or not.
fn through_links(mut target: PathBuf) -> io::Result<PathBuf> {
    for _ in 0..MAX_LINKS {
        if !std::fs::symlink_metadata(&target).is_ok_and(|there| there.is_symlink()) {
            return Ok(target);
        }
        let to = std::fs::read_link(&target)?;
        target = target.parent().unwrap_or(Path::new("")).join(to);
    }
    Err(io::Error::other(format!("{}: too many symbolic links", target.display())))
}

/// Why a file cannot be written here. In a volume, a name may be a file's and a folder's at once; not so on a disk.
#[derive(Debug)]
enum Trouble {
    Io(io::Error),
    /// Where the file should go there is a folder.
    IsFolder(PathBuf),
    /// Where a folder of the file's should be there is a file.
    IsFile(PathBuf),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Io(error)
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let both = |cause: String| {
            let help = "get this one by itself, to another place; a \"/\" at the end of a name means the folder of that name";
            Failure::local(format!("{cause}: a local path cannot be both"), help)
        };
        match trouble {
            Trouble::Io(error) => Failure::io("cannot write", &error),
            Trouble::IsFolder(path) => {
                both(format!("{} is a folder, and would have to be this file", path.display()))
            }
            Trouble::IsFile(path) => {
                both(format!("{} is a file, and would have to be a folder for this one", path.display()))
            }
        }
    }
}

/// Creates the folders between `folder` and the file, and refuses to go through links: a name from a server must not
/// lead out of the folder.
fn prepare_below(folder: &Path, relative: &str) -> Result<PathBuf, Trouble> {
    std::fs::create_dir_all(folder)?;
    let mut path = folder.to_owned();
    let mut parts: Vec<&str> = relative.split('/').collect();
    let name = parts.pop().unwrap_or_default();
    for part in parts {
        path.push(part);
        // Made before it is looked at: what another download has made meanwhile, a file perhaps, is looked at too.
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made?;
                continue;
            }
        }
        let there = std::fs::symlink_metadata(&path)?;
        if there.is_symlink() {
            let cause = format!("{} is a symbolic link, which is not followed", path.display());
            return Err(io::Error::other(cause).into());
        }
        if !there.is_dir() {
            return Err(Trouble::IsFile(path));
        }
    }
    Ok(path.join(name))
}

/// Standard input. Read by a thread that nobody waits for: a terminal may never say another word. What one read gives is handed on at
/// once: whoever takes it decides for how long to gather.
pub fn standard_input() -> impl AsyncRead + Send + 'static {
    // As much as a pipe holds.
    const PIECE_BYTES: usize = 64 << 10;
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(2);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let (next, last) = match input.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    piece.truncate(length);
                    (Ok(Bytes::from(piece)), false)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => (Err(error), true),
            };
            if sender.blocking_send(next).is_err() || last {
                return;
            }
        }
    });
    let pieces =
        futures::stream::unfold(
            receiver,
            |mut receiver| async move { Some((receiver.recv().await?, receiver)) },
        );
    StreamReader::new(pieces.boxed())
}

/// Writes to standard output, which may be as slow as its reader.
pub async fn to_standard_output(piece: Bytes) -> Result<(), Failure> {
    blocking(move || {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(&piece).and_then(|()| stdout.flush());
        if matches!(&written, Err(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            // The reader has seen enough (`| head`), and nobody needs to be told.
            std::process::exit(Exit::Failed as i32);
        }
        Ok(written?)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(Failure::from),
        Err(error) => Err(Failure::local(format!("cannot write: {error}"), "try again")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn write(folder: &Path, relative: &str, content: &str) -> Result<(), Failure> {
        let mut part = Part::below(folder, relative).await?;
        part.file.write_all(content.as_bytes()).await.unwrap();
        part.file.flush().await.unwrap();
        part.finish().await
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn files_appear_whole_with_their_folders() {
        let root = tempfile::tempdir().unwrap();
        let back = root.path().join("new/back");
        write(&back, "a/b/c", "first").await.unwrap();
        write(&back, "a/b/c", "second").await.unwrap();
        assert_eq!(std::fs::read_to_string(back.join("a/b/c")).unwrap(), "second");
        let half = Part::below(&back, "a/b/half").await.unwrap();
        assert_eq!(names(&back.join("a/b")).len(), 2);
        drop(half);
        assert_eq!(names(&back.join("a/b")), ["c"], "a broken download leaves nothing");
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_keeps_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("secret");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for wanted in [0o600, 0o640, 0o755] {
            std::fs::write(&path, "old").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(wanted)).unwrap();
            let mut part = Part::exactly(&path).await.unwrap();
            let under_way = names(root.path()).into_iter().find(|name| is_part(OsStr::new(name))).unwrap();
            assert_eq!(mode(&root.path().join(under_way)), wanted, "while it is on its way");
            part.file.write_all(b"new").await.unwrap();
            part.file.flush().await.unwrap();
            part.finish().await.unwrap();
            assert_eq!((mode(&path), std::fs::read_to_string(&path).unwrap()), (wanted, "new".into()));
        }
    }

    #[tokio::test]
    async fn a_link_that_the_user_named_is_followed_also_to_what_is_not_there_yet() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("folder/file", &link).unwrap();
        for content in ["first", "second"] {
            let mut part = Part::exactly(&link).await.unwrap();
            part.file.write_all(content.as_bytes()).await.unwrap();
            part.file.flush().await.unwrap();
            part.finish().await.unwrap();
            assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(std::fs::read_to_string(root.path().join("folder/file")).unwrap(), content);
        }
        let circle = root.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        let failure = Part::exactly(&circle).await.err().expect("a circle leads nowhere");
        assert!(failure.cause.contains("too many symbolic links"), "{failure:?}");
    }

    #[tokio::test]
    async fn nothing_leaves_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let back = root.path().join("back");
        for hostile in ["../x", "/etc/x", "a/../../x", "a//x", "", ".", "a/", "a\0b"] {
            assert!(write(&back, hostile, "x").await.is_err(), "{hostile:?}");
        }
        let outside = root.path().join("outside");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(&back).unwrap();
        std::os::unix::fs::symlink(&outside, back.join("link")).unwrap();
        let failure = write(&back, "link/x", "x").await.unwrap_err();
        assert!(failure.cause.contains("symbolic link"), "{failure:?}");
        assert_eq!(names(&outside).len(), 0);
        // A link in the place of the file itself is replaced, not followed.
        std::os::unix::fs::symlink(outside.join("x"), back.join("file")).unwrap();
        write(&back, "file", "x").await.unwrap();
        assert_eq!(names(&outside).len(), 0);
        assert!(std::fs::symlink_metadata(back.join("file")).unwrap().is_file());
    }

    #[tokio::test]
    async fn files_and_folders_of_one_name_do_not_mix() {
        let root = tempfile::tempdir().unwrap();
        let refused = |failure: Failure, path: &str, what: &str| {
            let path = root.path().join(path).display().to_string();
            let (cause, help) = (failure.cause, failure.help);
            assert!(cause.starts_with(&format!("{path} is a {what}, and would have to be ")), "{cause}");
            assert!(
                cause.ends_with(": a local path cannot be both") && help.contains("another place"),
                "{help}"
            );
        };
        write(root.path(), "a", "x").await.unwrap();
        refused(write(root.path(), "a/b", "x").await.unwrap_err(), "a", "file");
        write(root.path(), "c/d", "x").await.unwrap();
        refused(write(root.path(), "c", "x").await.unwrap_err(), "c", "folder");
        // Both at the same time: the folder is made while the file is on its way.
        let late = Part::below(root.path(), "e").await.unwrap();
        write(root.path(), "e/f", "x").await.unwrap();
        refused(late.finish().await.unwrap_err(), "e", "folder");
        assert_eq!(
            (names(&root.path().join("e")), names(root.path())),
            (vec!["f".into()], ["a", "c", "e"].map(String::from).to_vec())
        );
        assert!(Part::exactly(Path::new("/dev/null")).await.is_err(), "a device is not replaced");
    }

    #[test]
    fn local_names_become_remote_ones() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(to_remote(Path::new("a/ü b/c")).unwrap(), "a/ü b/c");
        assert_eq!(to_remote(Path::new("./a")).unwrap(), "a");
        assert!(to_remote(Path::new("../a")).is_err());
        assert_eq!(to_remote(Path::new(OsStr::from_bytes(b"a/\xff"))).unwrap_err().code, "INVALID_PATH");
        assert!(ends_in_slash(Path::new("back/")) && !ends_in_slash(Path::new("back")));
    }

    proptest! {
        #[test]
        fn no_name_leads_out(relative in "(\\.\\.|\\.|[a-c\\\\ ]{1,2}|/|\0){1,8}") {
            let root = tempfile::tempdir().unwrap();
            let back = root.path().join("back");
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let written = runtime.block_on(write(&back, &relative, "x")).is_ok();
            prop_assert!(names(root.path()).iter().all(|name| name == "back"));
            prop_assert_eq!(written, check_path(&relative).is_ok());
        }
    }
}
