//! `cairn rm`: files, or everything below a path.

use cairn_client::{Client, Condition, Counter, ListOptions};

use crate::address::Address;
use crate::args::Rm;
use crate::below::has_files_below;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::transfer::{Done, Finder, Found, Transfer, queue};

const RECURSIVE: &str = "add --recursive to delete every file below it; `cairn rmvol` deletes a volume";

/// One file to delete.
struct Delete {
    volume: String,
    path: String,
    condition: Condition,
}

pub async fn run(client: &Client, rm: Rm, output: &Output) -> Result<Exit, Failure> {
    let Rm { sources, recursive, if_match, jobs } = rm;
    if let Some(folder) = sources.iter().find(|source| source.is_folder && !recursive) {
        return Err(Failure::usage(format!("{folder} is not a file"), RECURSIVE));
    }
    let single = sources.len() == 1 && !recursive;
    if if_match.is_some() && !single {
        return Err(Failure::usage("--if-match is for a single file", "delete the files one by one"));
    }
    let condition = if_match.map_or(Condition::Always, Condition::IfMatch);
    let (finder, found) = queue();
    let search = tokio::spawn(find(client.clone(), sources, recursive, condition, finder));
    let counter = Counter::default();
    let transfer = Transfer { output, jobs: jobs.get(), verb: "deleted", single, counter, has_bytes: false };
    let summary = transfer
        .run(found, |delete: Delete| {
            let client = client.clone();
            async move {
                let Delete { volume, path, condition } = delete;
                match client.delete(&volume, &path, condition).await {
                    Ok(gone) => Ok(Done::Moved { bytes: gone.map_or(0, |file| file.size_bytes) }),
                    Err(error) => Err(or_folder(&client, volume, path, error).await),
                }
            }
        })
        .await;
    search.abort();
    transfer.conclude(summary)
}

/// A folder is no file, and whoever names one wants to know that.
async fn or_folder(client: &Client, volume: String, path: String, error: cairn_client::Error) -> Failure {
    let source = Address { volume, path, is_folder: false };
    let is_folder =
        error.code_name() == "FILE_NOT_FOUND" && has_files_below(client, &source).await.is_ok_and(|any| any);
    if is_folder {
        Failure::not_found(format!("there is no file {source}, but there are files below it"), RECURSIVE)
    } else {
        error.into()
    }
}

async fn find(
    client: Client,
    sources: Vec<Address>,
    recursive: bool,
    condition: Condition,
    finder: Finder<Delete>,
) {
    let alone = sources.len() == 1;
    for source in sources {
        let outcome = if recursive {
            find_below(&client, &source, alone, &finder).await
        } else {
            let Address { volume, path, .. } = source.clone();
            let task = Delete { volume, path, condition: condition.clone() };
            send(&finder, Found::File { path: source.to_string(), size_bytes: None, task }).await
        };
        if outcome.is_none() {
            return;
        }
    }
}

/// The file of this name, if there is one, and everything below. `None`: nobody listens any more.
async fn find_below(client: &Client, source: &Address, alone: bool, finder: &Finder<Delete>) -> Option<()> {
    let mut any = false;
    if !source.is_folder {
        match client.stat(&source.volume, &source.path).await {
            Ok(file) => {
                any = true;
                send(finder, found(&source.volume, file.path, file.etag)).await?;
            }
            Err(error) if error.code_name() == "FILE_NOT_FOUND" => {}
            Err(error) => return send(finder, Found::Broken(error.into())).await,
        }
    }
    let mut listing =
        client.list(&source.volume, ListOptions { prefix: source.prefix(), ..ListOptions::default() });
    loop {
        let page = match listing.next_page().await {
            Ok(Some(page)) => page,
            Ok(None) => break,
            Err(error) => return send(finder, Found::Broken(error.into())).await,
        };
        for file in page.files {
            any = true;
            send(finder, found(&source.volume, file.path, file.etag)).await?;
        }
    }
    if any || source.path.is_empty() {
        return Some(());
    }
    let failure =
        Failure::not_found(format!("there is no file {source}, and none below it"), "see `cairn ls`");
    // Of several arguments, the others may still be there.
    let found =
        if alone { Found::Broken(failure) } else { Found::Failed { path: source.to_string(), failure } };
    send(finder, found).await
}

/// What was listed is deleted only as it was listed: so a deletion whose answer got lost can be repeated, and a file
/// stored meanwhile stays.
fn found(volume: &str, path: String, etag: String) -> Found<Delete> {
    let task = Delete { volume: volume.to_owned(), path: path.clone(), condition: Condition::IfMatch(etag) };
    Found::File { path: format!("{volume}/{path}"), size_bytes: None, task }
}

async fn send(finder: &Finder<Delete>, found: Found<Delete>) -> Option<()> {
    finder.send(found).await.ok()
}
