//! `cairn get`: a file, or everything below a path, onto this machine.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cairn_client::{Client, Counter, Download, DownloadOptions, ErrorCode, FileInfo};

use crate::address::Address;
use crate::args::Get;
use crate::below::{Below, has_files_below};
use crate::failure::{Exit, Failure};
use crate::local::{Part, ends_in_slash, to_standard_output};
use crate::output::Output;
use crate::present::has_content_below;
use crate::transfer::{Done, Finder, Found, Summary, Transfer, queue};

/// One file to download.
struct Fetch {
    file: FileInfo,
    /// Below the target folder.
    relative: String,
}

pub async fn run(client: &Client, get: Get, output: &Output) -> Result<Exit, Failure> {
    let Get { source, target, offset, length, force, allow_stale, jobs } = get;
    let counter = Counter::default();
    if !source.is_folder {
        let options = DownloadOptions {
            offset: offset.unwrap_or(0),
            length,
            allow_stale,
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
    if offset.is_some() || length.is_some() || allow_stale {
        let help = format!("name the file below {source}/");
        return Err(Failure::usage("--offset, --length and --allow-stale are for a single file", help));
    }
    let folder = match target {
        Some(path) if path == Path::new("-") => {
            return Err(Failure::usage("several files cannot go to standard output", "name a folder"));
        }
        Some(path) if ends_in_slash(&path) => path.join(source.name()),
        Some(path) => path,
        None => PathBuf::from(source.name()),
    };
    let transfer =
        Transfer { output, jobs: jobs.get(), verb: "downloaded", single: false, counter, has_bytes: true };
    all_below(client, &source, folder, force, transfer).await
}

/// Where a single file goes.
fn place(source: &Address, target: Option<&Path>) -> PathBuf {
    match target {
        None => PathBuf::from(source.name()),
        Some(path) if ends_in_slash(path) || path.is_dir() => path.join(source.name()),
        Some(path) => path.to_owned(),
    }
}

/// To standard output, where nothing else may be then.
async fn pour(mut download: Download) -> Result<Summary, Failure> {
    let (began, bytes) = (Instant::now(), download.length());
    while let Some(piece) = download.next_piece().await? {
        to_standard_output(piece).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Summary { files: 1, bytes, seconds, ..Summary::default() })
}

async fn one(
    download: Download,
    source: &Address,
    target: Option<&Path>,
    counter: Counter,
    output: &Output,
) -> Result<Exit, Failure> {
    let stale = download.stale();
    if let Some(age) = stale {
        output.stale(source, age);
    }
    let stale_ms = stale.map(|age| age.as_millis() as u64);
    if target == Some(Path::new("-")) {
        let summary = Summary { stale_ms, ..pour(download).await? };
        output.aside(&summary);
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
            let written = download.write_to(&mut part.file).await;
            written.map_err(|error| match error.code() {
                ErrorCode::Unspecified => at(&target, error.into()),
                _ => error.into(),
            })?;
            part.finish().await?;
            Ok(Done::Moved { bytes: length })
        })
        .await;
    transfer.conclude(Summary { stale_ms, ..summary })
}

async fn all_below(
    client: &Client,
    source: &Address,
    folder: PathBuf,
    force: bool,
    transfer: Transfer<'_>,
) -> Result<Exit, Failure> {
    let (finder, found) = queue();
    let search = tokio::spawn(find(Below::new(client, source), finder));
    let summary = transfer
        .run(found, |fetch: Fetch| {
            let (client, volume, folder) = (client.clone(), source.volume.clone(), folder.clone());
            let counter = Some(transfer.counter.clone());
            let options = DownloadOptions { counter, ..DownloadOptions::default() };
            async move {
                let Fetch { file: FileInfo { path, size_bytes, blake3, .. }, relative } = fetch;
                if !force && has_content_below(&folder, &relative, size_bytes, &blake3).await {
                    return Ok(Done::Unchanged { size_bytes });
                }
                let mut part = Part::below(&folder, &relative).await?;
                let download = client.download(&volume, &path, options).await?;
                let length = download.length();
                download.write_to(&mut part.file).await?;
                part.finish().await?;
                Ok(Done::Moved { bytes: length })
            }
        })
        .await;
    search.abort();
    let nothing = summary.files + summary.unchanged + summary.failed == 0 && summary.stopped.is_none();
    if nothing && !source.path.is_empty() {
        return Err(Failure::not_found(format!("there is no file below {source}/"), "see `cairn ls`"));
    }
    transfer.conclude(summary)
}

async fn find(mut below: Below, finder: Finder<Fetch>) {
    loop {
        let found = match below.next().await {
            Ok(Some((file, Ok(relative)))) => Found::File {
                path: file.path.clone(),
                size_bytes: Some(file.size_bytes),
                task: Fetch { file, relative },
            },
            Ok(Some((file, Err(failure)))) => Found::Failed { path: file.path, failure },
            Ok(None) => return,
            Err(failure) => {
                let _ = finder.send(Found::Broken(failure)).await;
                return;
            }
        };
        if finder.send(found).await.is_err() {
            return;
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
