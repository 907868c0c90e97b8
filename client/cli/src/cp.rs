//! `cairn cp`: a file, or everything below a path, to another place in the cluster.

use cairn_client::names::check_path;
use cairn_client::{Client, Condition, Counter, FileInfo, UploadOptions};

use crate::address::Address;
use crate::args::Cp;
use crate::below::{Below, has_files_below};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::present::{Earlier, Present};
use crate::transfer::{Done, Finder, Found, Transfer, queue};

/// One file to copy.
struct CopyTask {
    file: FileInfo,
    to: String,
    earlier: Earlier,
}

/// What is copied, and where to.
enum Plan {
    File {
        file: FileInfo,
        to: String,
    },
    /// Everything below the source, each under its name there after `prefix`.
    Folder {
        prefix: String,
    },
}

pub async fn run(client: &Client, cp: Cp, output: &Output) -> Result<Exit, Failure> {
    let Cp { source, target, if_absent, if_match, force, jobs } = cp;
    let plan = plan(client, &source, &target).await?;
    let single = matches!(plan, Plan::File { .. });
    let condition = match (if_absent, if_match) {
        (_, Some(_)) if !single => {
            return Err(Failure::usage("--if-match is for a single file", "copy the files one by one"));
        }
        (_, Some(etag)) => Condition::IfMatch(etag),
        (true, None) => Condition::IfAbsent,
        (false, None) => Condition::Always,
    };
    let counter = Counter::default();
    let options = UploadOptions { condition, counter: Some(counter.clone()), ..UploadOptions::default() };
    let (finder, found) = queue();
    let search = match plan {
        Plan::File { file, to } => {
            let _ = finder.send(found_file(file, to, Earlier::Absent)).await;
            drop(finder);
            None
        }
        Plan::Folder { prefix } => {
            let present = (!force).then(|| Present::new(client, &target.volume, &prefix));
            Some(tokio::spawn(find(Below::new(client, &source), prefix, present, finder)))
        }
    };
    let transfer = Transfer { output, jobs: jobs.get(), verb: "copied", single, counter, has_bytes: true };
    let summary = transfer
        .run(found, |copy: CopyTask| {
            let (client, options, volume) = (client.clone(), options.clone(), target.volume.clone());
            async move {
                let CopyTask { file, to, earlier } = copy;
                let there = earlier.find(&client, &volume, &to).await?;
                if there.is_some_and(|there| is_same(&there, &file)) {
                    return Ok(Done::Unchanged { size_bytes: file.size_bytes });
                }
                let stored = client.copy((&file.volume, &file.path), (&volume, &to), options).await?;
                Ok(Done::Moved { bytes: stored.size_bytes })
            }
        })
        .await;
    if let Some(search) = search {
        search.abort();
    }
    transfer.conclude(summary)
}

async fn plan(client: &Client, source: &Address, target: &Address) -> Result<Plan, Failure> {
    if !source.is_folder {
        match client.stat(&source.volume, &source.path).await {
            Ok(file) => return Ok(Plan::File { to: file_target(source, target)?, file }),
            Err(error) if error.code_name() == "FILE_NOT_FOUND" => {}
            Err(error) => return Err(error.into()),
        }
    }
    let prefix = folder_target(source, target)?;
    if !source.path.is_empty() && !has_files_below(client, source).await? {
        let help = format!("see `cairn ls {}`", source.volume);
        return Err(Failure::not_found(format!("there is no file {source}, and none below it"), help));
    }
    Ok(Plan::Folder { prefix })
}

fn file_target(source: &Address, target: &Address) -> Result<String, Failure> {
    let to =
        if target.is_folder { format!("{}{}", target.prefix(), source.name()) } else { target.path.clone() };
    if source.volume == target.volume && source.path == to {
        return Err(Failure::usage(format!("{source} cannot be copied onto itself"), "name another path"));
    }
    check_path(&to).map_err(|problem| Failure::path(problem.to_string(), "choose a shorter path"))?;
    Ok(to)
}

/// What the names of the copies begin with.
fn folder_target(source: &Address, target: &Address) -> Result<String, Failure> {
    let prefix = match target.is_folder && !source.path.is_empty() {
        true => format!("{}{}/", target.prefix(), source.name()),
        // A whole volume has no name to take along.
        false => target.prefix(),
    };
    let from = source.prefix();
    // The copies would be copied too, or replace what is still to be copied.
    if source.volume == target.volume && (prefix.starts_with(&from) || from.starts_with(&prefix)) {
        let cause = format!("{source} and {}/{prefix} are within each other", target.volume);
        return Err(Failure::usage(cause, "copy it to a path beside it, or into another volume"));
    }
    Ok(prefix)
}

/// Whether copying would leave the same behind.
fn is_same(there: &FileInfo, file: &FileInfo) -> bool {
    there.size_bytes == file.size_bytes
        && there.blake3.len() == 32
        && there.blake3 == file.blake3
        && there.content_type == file.content_type
}

fn found_file(file: FileInfo, to: String, earlier: Earlier) -> Found<CopyTask> {
    let path = format!("{}/{}", file.volume, file.path);
    Found::File { path, size_bytes: Some(file.size_bytes), task: CopyTask { file, to, earlier } }
}

/// Goes through the source, and beside it through what is at the target.
async fn find(mut below: Below, prefix: String, mut present: Option<Present>, finder: Finder<CopyTask>) {
    loop {
        let found = match next(&mut below, &prefix, present.as_mut()).await {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(failure) => Found::Broken(failure),
        };
        let is_last = matches!(found, Found::Broken(_));
        if finder.send(found).await.is_err() || is_last {
            return;
        }
    }
}

async fn next(
    below: &mut Below,
    prefix: &str,
    present: Option<&mut Present>,
) -> Result<Option<Found<CopyTask>>, Failure> {
    let Some((file, relative)) = below.next().await? else { return Ok(None) };
    let to = relative.and_then(|relative| {
        let to = format!("{prefix}{relative}");
        let checked = check_path(&to).map(|()| to);
        checked.map_err(|problem| Failure::path(problem.to_string(), "choose a shorter path to copy to"))
    });
    let to = match to {
        Ok(to) => to,
        Err(failure) => return Ok(Some(Found::Failed { path: file.path, failure })),
    };
    let earlier = match present {
        Some(present) => present.at(&to).await?,
        None => Earlier::Absent,
    };
    Ok(Some(found_file(file, to, earlier)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn files_and_folders_go_where_the_help_says() {
        let file = |source: &str, target: &str| file_target(&address(source), &address(target));
        assert_eq!(file("files/a/b.txt", "files/c.txt").unwrap(), "c.txt");
        assert_eq!(file("files/a/b.txt", "files").unwrap(), "b.txt");
        assert_eq!(file("files/a/b.txt", "files/c/").unwrap(), "c/b.txt");
        assert_eq!(file("files/a/b.txt", "other/a/").unwrap(), "a/b.txt");
        for target in ["files/a/b.txt", "files/a/"] {
            assert_eq!(file("files/a/b.txt", target).unwrap_err().exit, Exit::Usage, "{target}");
        }
        let folder = |source: &str, target: &str| folder_target(&address(source), &address(target));
        assert_eq!(folder("files/photos", "other").unwrap(), "photos/");
        assert_eq!(folder("files/photos", "other/p").unwrap(), "p/");
        assert_eq!(folder("files/2026/photos", "other/p/").unwrap(), "p/photos/");
        assert_eq!(folder("files", "other").unwrap(), "", "a volume has no name to take along");
        assert_eq!(folder("files", "other/old/").unwrap(), "old/");
        assert_eq!(folder("files/photos", "files/photos2").unwrap(), "photos2/", "it is another folder");
        assert_eq!(folder("files/a/b", "files").unwrap(), "b/");
    }

    #[test]
    fn a_folder_is_not_copied_into_itself() {
        for (source, target) in [
            ("files/a", "files/a"),
            ("files/a", "files/a/b"),
            ("files/a", "files"),
            ("files/a/b", "files/a"),
            ("files", "files/copy"),
            ("files", "files"),
        ] {
            let refused = folder_target(&address(source), &address(target)).unwrap_err();
            assert_eq!(refused.exit, Exit::Usage, "{source} {target}");
        }
    }

    #[test]
    fn what_differs_in_anything_is_copied() {
        let blake3: Vec<u8> = vec![1; 32];
        let file = FileInfo { size_bytes: 5, blake3: blake3.into(), ..FileInfo::default() };
        let later = FileInfo { etag: "other".into(), modified_unix_ms: 7, ..file.clone() };
        assert!(is_same(&later, &file), "when it was stored is no difference");
        for other in [
            FileInfo { size_bytes: 6, ..file.clone() },
            FileInfo { blake3: vec![2; 32].into(), ..file.clone() },
            FileInfo { content_type: "text/plain".into(), ..file.clone() },
        ] {
            assert!(!is_same(&other, &file), "{other:?}");
        }
        let silent = FileInfo { blake3: Vec::new().into(), ..file };
        assert!(!is_same(&silent, &silent), "a server that does not say");
    }
}
