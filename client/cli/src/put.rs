//! `cairn put`: files and folders of this machine, into a volume.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use cairn_client::{Client, Condition, Counter, UploadOptions};
use tokio::runtime::Handle;
use walkdir::{DirEntry, WalkDir};

use crate::address::Address;
use crate::args::Put;
use crate::failure::{Exit, Failure};
use crate::local::{is_part, name_to_remote, standard_input, to_remote};
use crate::output::Output;
use crate::present::{Earlier, Present, has_content};
use crate::transfer::{Done, Finder, Found, Transfer, queue};

/// One file to upload.
struct Upload {
    /// `None` is standard input.
    local: Option<PathBuf>,
    path: String,
    earlier: Earlier,
}

/// One argument, and where it goes.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    StandardInput {
        path: String,
    },
    File {
        local: PathBuf,
        path: String,
    },
    /// Everything below `local`, each under its name there after `prefix`.
    Folder {
        local: PathBuf,
        prefix: String,
    },
}

pub async fn run(client: &Client, put: Put, output: &Output) -> Result<Exit, Failure> {
    let Put { sources, target, if_absent, if_match, content_type, force, jobs } = put;
    let sources: Vec<Source> =
        sources.iter().map(|local| plan(local, &target, sources.len())).collect::<Result<_, _>>()?;
    let single = matches!(sources[..], [Source::File { .. } | Source::StandardInput { .. }]);
    let condition = match (if_absent, if_match) {
        (_, Some(_)) if !single => {
            return Err(Failure::usage("--if-match is for a single file", "upload the files one by one"));
        }
        (_, Some(etag)) => Condition::IfMatch(etag),
        (true, None) => Condition::IfAbsent,
        (false, None) => Condition::Always,
    };
    let counter = Counter::default();
    let options = UploadOptions {
        condition,
        content_type: content_type.unwrap_or_default(),
        counter: Some(counter.clone()),
        ..UploadOptions::default()
    };
    let (finder, found) = queue();
    let volume = Volume { client: client.clone(), name: target.volume.clone(), runtime: Handle::current() };
    let looked_into = (!force).then_some(volume);
    tokio::task::spawn_blocking(move || find(sources, looked_into.as_ref(), &finder));
    let transfer = Transfer { output, jobs: jobs.get(), verb: "uploaded", single, counter, has_bytes: true };
    let summary = transfer
        .run(found, |upload: Upload| {
            let (client, options, volume) = (client.clone(), options.clone(), target.volume.clone());
            async move {
                let Upload { local, path, earlier } = upload;
                let Some(local) = local else {
                    let stored = client.upload_reader(&volume, &path, options, None, standard_input());
                    return Ok(Done::Moved { bytes: stored.await?.size_bytes });
                };
                if let Some(there) = earlier.find(&client, &volume, &path).await?
                    && there.content_type == options.content_type
                    && has_content(local.clone(), there.size_bytes, &there.blake3).await
                {
                    return Ok(Done::Unchanged { size_bytes: there.size_bytes });
                }
                let stored = client.upload_file(&volume, &path, options, local).await?;
                Ok(Done::Moved { bytes: stored.size_bytes })
            }
        })
        .await;
    transfer.conclude(summary)
}

/// Says where an argument goes; fails for the whole command if it is not there.
fn plan(local: &Path, target: &Address, count: usize) -> Result<Source, Failure> {
    if count > 1 && !target.is_folder {
        return Err(Failure::usage(
            format!("several files cannot all become {target}"),
            format!("end it with \"/\" to put them below it: {target}/"),
        ));
    }
    if local == Path::new("-") {
        if target.is_folder {
            let help = format!("say how to name it: {}/{}NAME", target.volume, target.prefix());
            return Err(Failure::usage("standard input has no name", help));
        }
        return Ok(Source::StandardInput { path: target.path.clone() });
    }
    let cannot_read = |error: std::io::Error| Failure::io(format!("cannot read {}", local.display()), &error);
    let metadata = std::fs::metadata(local).map_err(cannot_read)?;
    // Only a name that is taken over has to be one that Cairn can have.
    let taken = local.file_name().filter(|_| target.is_folder);
    let own_name = taken.map(name_to_remote).transpose()?;
    let below = |name: &str| format!("{}{name}", target.prefix());
    if metadata.is_dir() {
        let prefix = match own_name {
            Some(name) => format!("{}/", below(name)),
            // "." and ".." have no name of their own.
            None => target.prefix(),
        };
        return Ok(Source::Folder { local: local.to_owned(), prefix });
    }
    if !metadata.is_file() {
        let cause = format!("{} is neither a file nor a folder", local.display());
        return Err(Failure::local(cause, "pipe its content: cairn put - VOLUME/PATH"));
    }
    let path = match own_name {
        Some(name) => below(name),
        None => target.path.clone(),
    };
    Ok(Source::File { local: local.to_owned(), path })
}

/// Where the files go, to see what of them is there already.
struct Volume {
    client: Client,
    name: String,
    runtime: Handle,
}

/// Looks through all sources, and for what is in a folder also into the volume. Ends early when nobody listens any more.
fn find(sources: Vec<Source>, volume: Option<&Volume>, finder: &Finder<Upload>) {
    for source in sources {
        match source {
            Source::StandardInput { path } => {
                let task = Upload { local: None, path, earlier: Earlier::Absent };
                let _ = finder.blocking_send(Found::File { path: "-".to_owned(), size_bytes: None, task });
            }
            Source::File { local, path } => {
                let size_bytes = std::fs::metadata(&local).ok().map(|metadata| metadata.len());
                // What was named is sent.
                let task = Upload { local: Some(local.clone()), path, earlier: Earlier::Absent };
                let _ =
                    finder.blocking_send(Found::File { path: local.display().to_string(), size_bytes, task });
            }
            Source::Folder { local, prefix } => {
                let mut present = volume.map(|volume| Present::new(&volume.client, &volume.name, &prefix));
                for entry in WalkDir::new(&local).follow_links(false).sort_by(by_path) {
                    let Some(mut found) = look_at(entry, &local, &prefix) else { continue };
                    if let (Some(volume), Some(present)) = (volume, &mut present) {
                        found = with_earlier(found, volume, present);
                    }
                    let is_last = matches!(found, Found::Broken(_));
                    if finder.blocking_send(found).is_err() || is_last {
                        return;
                    }
                }
            }
        }
    }
}

/// In the order that a volume lists the paths in, byte by byte: "a.txt" is before "a/b".
fn by_path(a: &DirEntry, b: &DirEntry) -> Ordering {
    let end = |entry: &DirEntry| entry.file_type().is_dir().then_some(b'/');
    let bytes = |entry: &DirEntry| entry.file_name().as_encoded_bytes().to_vec();
    bytes(a).into_iter().chain(end(a)).cmp(bytes(b).into_iter().chain(end(b)))
}

fn with_earlier(found: Found<Upload>, volume: &Volume, present: &mut Present) -> Found<Upload> {
    let Found::File { path, size_bytes, mut task } = found else { return found };
    match volume.runtime.block_on(present.at(&task.path)) {
        Ok(earlier) => task.earlier = earlier,
        Err(failure) => return Found::Broken(failure),
    }
    Found::File { path, size_bytes, task }
}

/// What an entry of a folder means; `None` for folders, which are not stored.
fn look_at(entry: walkdir::Result<DirEntry>, folder: &Path, prefix: &str) -> Option<Found<Upload>> {
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => {
            let path = error.path().unwrap_or(folder).display().to_string();
            let failure = match error.io_error() {
                Some(error) => Failure::io("cannot read", error),
                None => Failure::local(error.to_string(), "check the folder"),
            };
            return Some(Found::Failed { path, failure });
        }
    };
    let path = entry.path().display().to_string();
    let kind = entry.file_type();
    // A link that was named itself is followed.
    if kind.is_dir() || entry.depth() == 0 && kind.is_symlink() {
        return None;
    }
    if kind.is_symlink() {
        return Some(Found::Skipped { path, reason: "it is a symbolic link" });
    }
    if !kind.is_file() {
        return Some(Found::Skipped { path, reason: "it is neither a file nor a folder" });
    }
    if is_part(entry.file_name()) {
        return Some(Found::Skipped {
            path,
            reason: "it is a part of a download that goes on, or was killed",
        });
    }
    let relative = entry.path().strip_prefix(folder).unwrap_or(entry.path());
    let remote = match to_remote(relative) {
        Ok(relative) => format!("{prefix}{relative}"),
        Err(failure) => return Some(Found::Failed { path, failure }),
    };
    if let Err(problem) = cairn_client::names::check_path(&remote) {
        let failure = Failure::path(problem.to_string(), "rename the file, or choose a shorter path");
        return Some(Found::Failed { path, failure });
    }
    let size_bytes = entry.metadata().ok().map(|metadata| metadata.len());
    let task = Upload { local: Some(entry.into_path()), path: remote, earlier: Earlier::Absent };
    Some(Found::File { path, size_bytes, task })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn files_and_folders_go_where_the_help_says() {
        let root = tempfile::tempdir().unwrap();
        let (file, folder) = (root.path().join("a.txt"), root.path().join("photos"));
        std::fs::write(&file, "x").unwrap();
        std::fs::create_dir(&folder).unwrap();
        for (target, path) in [
            ("files", "a.txt"),
            ("files/", "a.txt"),
            ("files/notes/", "notes/a.txt"),
            ("files/notes/b", "notes/b"),
        ] {
            let want = Source::File { local: file.clone(), path: path.into() };
            assert_eq!(plan(&file, &address(target), 1).unwrap(), want, "{target}");
        }
        for (target, prefix) in [("files", "photos/"), ("files/p", "p/"), ("files/p/", "p/photos/")] {
            let want = Source::Folder { local: folder.clone(), prefix: prefix.into() };
            assert_eq!(plan(&folder, &address(target), 1).unwrap(), want, "{target}");
        }
        let dot = plan(&folder.join(".."), &address("files"), 1).unwrap();
        assert!(matches!(dot, Source::Folder { prefix, .. } if prefix.is_empty()));
        assert_eq!(plan(&file, &address("files/x"), 2).unwrap_err().exit, Exit::Usage);
        assert_eq!(plan(Path::new("-"), &address("files"), 1).unwrap_err().exit, Exit::Usage);
        assert!(
            plan(&root.path().join("missing"), &address("files"), 1).unwrap_err().cause.contains("missing")
        );
    }

    #[test]
    fn only_a_name_that_is_taken_over_must_be_utf_8() {
        let root = tempfile::tempdir().unwrap();
        let (file, folder) = (bad_name(root.path(), b"bad\xff"), bad_name(root.path(), b"dir\xff"));
        std::fs::write(&file, "x").unwrap();
        std::fs::create_dir(&folder).unwrap();
        let want = Source::File { local: file.clone(), path: "x".into() };
        assert_eq!(plan(&file, &address("files/x"), 1).unwrap(), want);
        let want = Source::Folder { local: folder.clone(), prefix: "x/".into() };
        assert_eq!(plan(&folder, &address("files/x"), 1).unwrap(), want);
        for local in [&file, &folder] {
            assert_eq!(plan(local, &address("files/x/"), 1).unwrap_err().code, "INVALID_PATH");
        }
    }

    fn bad_name(folder: &Path, name: &[u8]) -> PathBuf {
        folder.join(std::ffi::OsStr::from_bytes(name))
    }

    #[test]
    fn a_folder_is_searched_and_what_cannot_be_stored_is_said() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        std::fs::create_dir_all(folder.join("a/empty")).unwrap();
        std::fs::write(folder.join("a/one"), "1").unwrap();
        std::fs::write(folder.join("a.txt"), "333").unwrap();
        std::fs::write(folder.join("two ü"), "22").unwrap();
        std::fs::write(bad_name(folder, b"bad\xff"), "x").unwrap();
        std::os::unix::fs::symlink("a", folder.join("link")).unwrap();
        std::fs::write(folder.join(".cairn-0123456789abcdef.part"), "a download that was killed").unwrap();
        std::fs::write(folder.join("a/.cairn-x.part"), "4444").unwrap();
        // Named itself, a link is followed.
        let outside = tempfile::tempdir().unwrap();
        let link = outside.path().join("named");
        std::os::unix::fs::symlink(folder, &link).unwrap();
        [folder, &link].into_iter().for_each(look_through);
    }

    fn look_through(folder: &Path) {
        let (finder, mut found) = queue();
        let source = Source::Folder { local: folder.to_owned(), prefix: "p/".into() };
        find(vec![source], None, &finder);
        drop(finder);
        let (mut files, mut failed, mut skipped) = (vec![], 0, 0);
        while let Some(found) = found.blocking_recv() {
            match found {
                Found::File { task, size_bytes, .. } => files.push((task.path, size_bytes.unwrap())),
                Found::Failed { failure, .. } => {
                    assert_eq!(failure.code, "INVALID_PATH");
                    failed += 1;
                }
                Found::Skipped { path, .. } => {
                    assert!(path.ends_with("link") || path.ends_with("abcdef.part"), "{path}");
                    skipped += 1;
                }
                Found::Broken(failure) => panic!("{failure:?}"),
            }
        }
        let want = [("p/a.txt", 3), ("p/a/.cairn-x.part", 4), ("p/a/one", 1), ("p/two ü", 2)];
        assert_eq!(files, want.map(|(path, size)| (path.to_owned(), size)), "in the order of a listing");
        assert_eq!((failed, skipped), (1, 2));
    }
}
