//! `cairn mv`: another name for a file, or for everything below a path, file by file.

use cairn_client::{Client, Condition, Counter, FileInfo, MoveOptions, UploadOptions};

use crate::args::Mv;
use crate::below::Below;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::places::{Places, below, places};
use crate::transfer::{Done, Finder, Found, Transfer, queue};

/// One file to move.
struct MoveTask {
    file: FileInfo,
    to: String,
}

pub async fn run(client: &Client, mv: Mv, output: &Output) -> Result<Exit, Failure> {
    let Mv { source, target, if_absent, jobs } = mv;
    let places = places(client, (&source, &target), "moved").await?;
    let single = matches!(places, Places::File { .. });
    let condition = if if_absent { Condition::IfAbsent } else { Condition::Always };
    let counter = Counter::default();
    let (finder, found) = queue();
    let search = match places {
        Places::File { file, to } => {
            let _ = finder.send(found_file(file, to)).await;
            drop(finder);
            None
        }
        Places::Folder { prefix } => Some(tokio::spawn(find(Below::new(client, &source), prefix, finder))),
    };
    // Between volumes the content goes through this machine.
    let has_bytes = source.volume != target.volume;
    let transfer =
        Transfer { output, jobs: jobs.get(), verb: "moved", single, counter: counter.clone(), has_bytes };
    let summary = transfer
        .run(found, |task: MoveTask| {
            let (client, volume, condition) = (client.clone(), target.volume.clone(), condition.clone());
            let counter = counter.clone();
            async move { move_one(&client, task, volume, condition, counter).await }
        })
        .await;
    if let Some(search) = search {
        search.abort();
    }
    transfer.conclude(summary)
}

/// Moves the version that was found, and no other.
async fn move_one(
    client: &Client,
    MoveTask { file, to }: MoveTask,
    volume: String,
    condition: Condition,
    counter: Counter,
) -> Result<Done, Failure> {
    let bytes = file.size_bytes;
    if file.volume == volume {
        let options = MoveOptions { if_match: Some(file.etag), condition };
        client.move_file(&volume, &file.path, &to, options).await?;
        return Ok(Done::Moved { bytes });
    }
    let options = UploadOptions { condition, counter: Some(counter), ..UploadOptions::default() };
    client.copy((&file.volume, &file.path), (&volume, &to), options).await?;
    match client.delete(&file.volume, &file.path, Condition::IfMatch(file.etag)).await {
        Ok(_) => Ok(Done::Moved { bytes }),
        Err(error) => {
            let failure = Failure::from(error);
            let cause = format!("copied to {volume}/{to}, but the source stays: {}", failure.cause);
            Err(Failure { cause, ..failure })
        }
    }
}

fn found_file(file: FileInfo, to: String) -> Found<MoveTask> {
    let path = format!("{}/{}", file.volume, file.path);
    Found::File { path, size_bytes: Some(file.size_bytes), task: MoveTask { file, to } }
}

async fn find(mut below: Below, prefix: String, finder: Finder<MoveTask>) {
    loop {
        let found = match below.next().await {
            Ok(Some((file, relative))) => place(file, relative, &prefix),
            Ok(None) => return,
            Err(failure) => Found::Broken(failure),
        };
        let is_last = matches!(found, Found::Broken(_));
        if finder.send(found).await.is_err() || is_last {
            return;
        }
    }
}

fn place(file: FileInfo, relative: Result<String, Failure>, prefix: &str) -> Found<MoveTask> {
    match relative.and_then(|relative| below(prefix, &relative)) {
        Ok(to) => found_file(file, to),
        Err(failure) => Found::Failed { path: file.path, failure },
    }
}
