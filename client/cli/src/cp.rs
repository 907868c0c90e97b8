//! `cairn cp`: a file, or everything below a path, to another place in the cluster.

use cairn_client::{Client, Condition, Counter, FileInfo, UploadOptions};

use crate::args::Cp;
use crate::below::Below;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::places::{Places, below, places};
use crate::present::{Earlier, Present};
use crate::transfer::{Done, Finder, Found, Transfer, queue};

/// One file to copy.
struct CopyTask {
    file: FileInfo,
    to: String,
    earlier: Earlier,
}

pub async fn run(client: &Client, cp: Cp, output: &Output) -> Result<Exit, Failure> {
    let Cp { source, target, if_absent, if_match, force, jobs } = cp;
    let places = places(client, (&source, &target), "copied").await?;
    let single = matches!(places, Places::File { .. });
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
    let search = match places {
        Places::File { file, to } => {
            let _ = finder.send(found_file(file, to, Earlier::Absent)).await;
            drop(finder);
            None
        }
        Places::Folder { prefix } => {
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
async fn find(mut files: Below, prefix: String, mut present: Option<Present>, finder: Finder<CopyTask>) {
    loop {
        let found = match next(&mut files, &prefix, present.as_mut()).await {
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
    files: &mut Below,
    prefix: &str,
    present: Option<&mut Present>,
) -> Result<Option<Found<CopyTask>>, Failure> {
    let Some((file, relative)) = files.next().await? else { return Ok(None) };
    let to = match relative.and_then(|relative| below(prefix, &relative)) {
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
