//! `cairn get`: a file, or everything below a path, onto this machine.

use std::path::{Path, PathBuf};

use cairn_client::{Client, Counter, Download, DownloadOptions, ListOptions};

use crate::address::Address;
use crate::args::Get;
use crate::failure::{Exit, Failure};
use crate::local::{Part, ends_in_slash, to_standard_output};
use crate::output::Output;
use crate::transfer::{Finder, Found, Transfer, queue};

/// One file to download.
struct Fetch {
    path: String,
    /// Below the target folder.
    relative: String,
}

pub async fn run(client: &Client, get: Get, output: &Output) -> Result<Exit, Failure> {
    let Get { source, target, offset, length, jobs } = get;
    let counter = Counter::default();
    if !source.is_folder {
        let options = DownloadOptions {
            offset: offset.unwrap_or(0),
            length,
            counter: Some(counter.clone()),
            ..DownloadOptions::default()
        };
        match client.download(&source.volume, &source.path, options).await {
            Ok(download) => return one(download, &source, target.as_deref(), counter, output).await,
            Err(error)
                if error.code_name() == "FILE_NOT_FOUND" && has_files_below(client, &source).await? => {}
            Err(error) => return Err(error.into()),
        }
    }
    if offset.is_some() || length.is_some() {
        let help = format!("name the file below {source}/");
        return Err(Failure::usage("--offset and --length are for a single file", help));
    }
    let folder = match target {
        Some(path) if path == Path::new("-") => {
            return Err(Failure::usage("several files cannot go to standard output", "name a folder"));
        }
        Some(path) if ends_in_slash(&path) => path.join(source.name()),
        Some(path) => path,
        None => PathBuf::from(source.name()),
    };
    all_below(client, &source, folder, jobs.get(), counter, output).await
}

async fn has_files_below(client: &Client, source: &Address) -> Result<bool, Failure> {
    let options = ListOptions { prefix: source.prefix(), page_size: 1, ..ListOptions::default() };
    let page = client.list(&source.volume, options).next_page().await?;
    Ok(page.is_some_and(|page| !page.files.is_empty()))
}

/// Where a single file goes.
fn place(source: &Address, target: Option<&Path>) -> PathBuf {
    match target {
        None => PathBuf::from(source.name()),
        Some(path) if ends_in_slash(path) || path.is_dir() => path.join(source.name()),
        Some(path) => path.to_owned(),
    }
}

async fn one(
    download: Download,
    source: &Address,
    target: Option<&Path>,
    counter: Counter,
    output: &Output,
) -> Result<Exit, Failure> {
    if target == Some(Path::new("-")) {
        let mut download = download;
        while let Some(piece) = download.next_piece().await? {
            to_standard_output(piece).await?;
        }
        return Ok(Exit::Ok);
    }
    let target = place(source, target);
    let (finder, found) = queue();
    let entry = Found::File {
        path: source.to_string(),
        size_bytes: Some(download.length()),
        task: (download, target),
    };
    let _ = finder.send(entry).await;
    drop(finder);
    let transfer = Transfer { output, jobs: 1, verb: "downloaded", single: true, counter, has_bytes: true };
    let summary = transfer
        .run(found, |(download, target): (Download, PathBuf)| async move {
            let length = download.length();
            let mut part = Part::exactly(&target).await.map_err(|failure| at(&target, failure))?;
            download.write_to(&mut part.file).await?;
            part.finish().await?;
            Ok(length)
        })
        .await;
    transfer.conclude(summary)
}

async fn all_below(
    client: &Client,
    source: &Address,
    folder: PathBuf,
    jobs: usize,
    counter: Counter,
    output: &Output,
) -> Result<Exit, Failure> {
    let (finder, found) = queue();
    let search = find(client.clone(), source.clone(), finder);
    let search = tokio::spawn(search);
    let transfer = Transfer {
        output,
        jobs,
        verb: "downloaded",
        single: false,
        counter: counter.clone(),
        has_bytes: true,
    };
    let summary = transfer
        .run(found, |fetch: Fetch| {
            let (client, volume, folder) = (client.clone(), source.volume.clone(), folder.clone());
            let options = DownloadOptions { counter: Some(counter.clone()), ..DownloadOptions::default() };
            async move {
                let Fetch { path, relative } = fetch;
                let mut part = Part::below(&folder, &relative).await?;
                let download = client.download(&volume, &path, options).await?;
                let length = download.length();
                download.write_to(&mut part.file).await?;
                part.finish().await?;
                Ok(length)
            }
        })
        .await;
    search.abort();
    let nothing = summary.files + summary.failed == 0 && summary.stopped.is_none();
    if nothing && !source.path.is_empty() {
        return Err(Failure::not_found(format!("there is no file below {source}/"), "see `cairn ls`"));
    }
    transfer.conclude(summary)
}

/// Lists what is below the source. Names come from a server: those that do not belong there are failures.
async fn find(client: Client, source: Address, finder: Finder<Fetch>) {
    let prefix = source.prefix();
    let mut listing =
        client.list(&source.volume, ListOptions { prefix: prefix.clone(), ..ListOptions::default() });
    loop {
        let page = match listing.next_page().await {
            Ok(Some(page)) => page,
            Ok(None) => return,
            Err(error) => {
                let _ = finder.send(Found::Broken(error.into())).await;
                return;
            }
        };
        for file in page.files {
            let found = match file.path.strip_prefix(&prefix) {
                Some(relative) if !relative.is_empty() => Found::File {
                    task: Fetch { relative: relative.to_owned(), path: file.path.clone() },
                    path: file.path,
                    size_bytes: Some(file.size_bytes),
                },
                _ => {
                    let failure =
                        Failure::path("the server lists a file that was not asked for", "report this");
                    Found::Failed { path: file.path, failure }
                }
            };
            if finder.send(found).await.is_err() {
                return;
            }
        }
    }
}

fn at(target: &Path, failure: Failure) -> Failure {
    Failure { cause: format!("{}: {}", target.display(), failure.cause), ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_file_goes_where_the_help_says() {
        let root = tempfile::tempdir().unwrap();
        let source: Address = "files/2026/report.pdf".parse().unwrap();
        assert_eq!(place(&source, None), Path::new("report.pdf"));
        assert_eq!(place(&source, Some(Path::new("new/"))), Path::new("new/report.pdf"));
        assert_eq!(place(&source, Some(Path::new("other.pdf"))), Path::new("other.pdf"));
        assert_eq!(place(&source, Some(root.path())), root.path().join("report.pdf"));
    }
}
