//! `cairn ls`: files, one level or everything below.

use cairn_client::{Client, FileInfo, ListOptions, Page};
use serde::Serialize;

use crate::address::Address;
use crate::args::Ls;
use crate::failure::{Exit, Failure};
use crate::output::{self, Output, json, local_time, shown, size, table};
use crate::volumes;

/// A file, as programs see it.
#[derive(Debug, Serialize)]
pub struct FileDocument {
    pub volume: String,
    pub path: String,
    pub size_bytes: u64,
    pub etag: String,
    pub blake3: String,
    pub modified: Option<String>,
    pub content_type: String,
}

impl From<FileInfo> for FileDocument {
    fn from(file: FileInfo) -> Self {
        Self {
            volume: file.volume,
            path: file.path,
            size_bytes: file.size_bytes,
            etag: file.etag,
            blake3: output::hex(&file.blake3),
            modified: output::utc_time(file.modified_unix_ms),
            content_type: file.content_type,
        }
    }
}

pub async fn run(client: &Client, ls: Ls, output: &Output) -> Result<Exit, Failure> {
    let Ls { source, recursive, long } = ls;
    let Some(source) = source else {
        return volumes::list(client, output).await;
    };
    let options = ListOptions { prefix: source.prefix(), delimited: !recursive, page_size: 0 };
    let mut listing = client.list(&source.volume, options);
    let mut printer = Printer::new(output, &source, long);
    if !source.is_folder {
        // A path without "/" at its end may be a file, a folder, or both.
        match client.stat(&source.volume, &source.path).await {
            Ok(file) => printer.page(Page { files: vec![file], prefixes: vec![] }),
            Err(error) if error.code_name() == "FILE_NOT_FOUND" => {}
            Err(error) => return Err(error.into()),
        }
    }
    while let Some(page) = listing.next_page().await? {
        printer.page(page);
    }
    if printer.entries == 0 && !source.path.is_empty() {
        let help = format!("see `cairn ls {}`", source.volume);
        return Err(Failure::not_found(format!("there is no file {source}, and none below it"), help));
    }
    printer.finish();
    Ok(Exit::Ok)
}

/// Prints page by page, so that a listing of millions needs no memory; in JSON it is still one document.
struct Printer<'a> {
    output: &'a Output,
    source: &'a Address,
    long: bool,
    entries: u64,
    folders: Vec<String>,
    files_begun: bool,
}

impl<'a> Printer<'a> {
    fn new(output: &'a Output, source: &'a Address, long: bool) -> Self {
        Self { output, source, long, entries: 0, folders: Vec::new(), files_begun: false }
    }

    fn page(&mut self, page: Page) {
        self.entries += (page.files.len() + page.prefixes.len()) as u64;
        if self.output.is_json() {
            self.page_json(page);
        } else {
            self.output.raw(&rows(page, self.long));
        }
    }

    fn page_json(&mut self, page: Page) {
        let mut text = String::new();
        for file in page.files {
            if self.files_begun {
                text.push(',');
            } else {
                text += &self.opening();
            }
            self.files_begun = true;
            text += &json(&FileDocument::from(file));
        }
        self.folders.extend(page.prefixes);
        self.output.raw(&text);
    }

    fn opening(&self) -> String {
        format!("{{\"volume\":{},\"path\":{},\"files\":[", json(&self.source.volume), json(&self.source.path))
    }

    fn finish(self) {
        if !self.output.is_json() {
            return;
        }
        let opening = if self.files_begun { String::new() } else { self.opening() };
        self.output.raw(&format!("{opening}],\"folders\":{}}}\n", json(&self.folders)));
    }
}

/// One page as a table, files and folders in one order.
fn rows(page: Page, long: bool) -> String {
    let mut entries: Vec<(String, Vec<String>)> = Vec::new();
    let row = |size: String, date: String, etag: String, name: String| {
        if long { vec![size, date, etag, name] } else { vec![size, date, name] }
    };
    for prefix in page.prefixes {
        let cells = row("-".into(), "-".into(), "-".into(), shown(&prefix));
        entries.push((prefix, cells));
    }
    for file in page.files {
        let cells = row(
            size(file.size_bytes),
            local_time(file.modified_unix_ms),
            shown(&file.etag),
            shown(&file.path),
        );
        entries.push((file.path, cells));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let cells: Vec<Vec<String>> = entries.into_iter().map(|(_, cells)| cells).collect();
    table(&cells, &[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_files_are_in_one_order() {
        let file = |path: &str, size_bytes| FileInfo { path: path.into(), size_bytes, ..FileInfo::default() };
        let page = Page { files: vec![file("a", 5), file("c", 2_048)], prefixes: vec!["b/".into()] };
        let text = rows(page, false);
        let names: Vec<&str> = text.lines().map(|line| line.rsplit("  ").next().unwrap()).collect();
        assert_eq!(names, ["a", "b/", "c"]);
        assert!(text.starts_with("    5 B  "), "{text}");
    }
}
