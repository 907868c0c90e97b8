//! `cairn du`: what files take, by listing them.

use cairn_client::{Client, FileInfo, VolumeState};
use serde::Serialize;

use crate::address::Address;
use crate::args::Du;
use crate::below::Below;
use crate::failure::{Exit, Failure};
use crate::output::{Output, json, shown, size};

/// Content is sealed in frames of so many bytes, each with a tag (docs/formats.md).
const FRAME_BYTES: u64 = 64 << 10;
const TAG_BYTES: u64 = 16;

/// A sum over files.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct Usage {
    files: u64,
    size_bytes: u64,
    /// On all disks together, when every copy is there.
    stored_bytes: u64,
}

impl Usage {
    fn of(size_bytes: u64, copies: u32) -> Self {
        let stored_bytes = sealed_bytes(size_bytes).saturating_mul(copies.into());
        Self { files: 1, size_bytes, stored_bytes }
    }

    fn add(&mut self, other: Usage) {
        self.files += other.files;
        self.size_bytes = self.size_bytes.saturating_add(other.size_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(other.stored_bytes);
    }
}

/// What one copy takes. Chunks are whole multiples of a frame, so that only the last frame of a file is shorter.
fn sealed_bytes(size_bytes: u64) -> u64 {
    size_bytes.saturating_add(size_bytes.div_ceil(FRAME_BYTES) * TAG_BYTES)
}

/// Sums by first-level folder. A listing has each folder's files in a row, so that one sum at a time is enough.
#[derive(Default)]
struct Folders {
    open: Option<(String, Usage)>,
    total: Usage,
}

impl Folders {
    /// Answers the folder that ended with this file.
    fn add(&mut self, relative: &str, usage: Usage) -> Option<(String, Usage)> {
        self.total.add(usage);
        let folder = relative.split_once('/').map(|(folder, _)| folder);
        if let (Some((open, sum)), Some(folder)) = (&mut self.open, folder)
            && open == folder
        {
            sum.add(usage);
            return None;
        }
        std::mem::replace(&mut self.open, folder.map(|folder| (folder.to_owned(), usage)))
    }
}

pub async fn run(client: &Client, du: Du, output: &Output) -> Result<Exit, Failure> {
    match du.source {
        Some(source) => below(client, &source, output).await,
        None => all_volumes(client, output).await,
    }
}

async fn below(client: &Client, source: &Address, output: &Output) -> Result<Exit, Failure> {
    let copies = client.volume(&source.volume).await?.copies;
    let mut folders = Folders::default();
    if !source.is_folder {
        // A path without "/" at its end may be a file, a folder, or both.
        match client.stat(&source.volume, &source.path).await {
            Ok(FileInfo { size_bytes, .. }) => folders.total.add(Usage::of(size_bytes, copies)),
            Err(error) if error.code_name() == "FILE_NOT_FOUND" => {}
            Err(error) => return Err(error.into()),
        }
    }
    let opening = format!(
        "{{\"volume\":{},\"path\":{},\"copies\":{copies},\"folders\":[",
        json(&source.volume),
        json(&source.path)
    );
    let mut printer = Printer { output, opening, begun: false };
    let mut files = Below::new(client, source);
    while let Some((file, relative)) = files.next().await? {
        if let Some((folder, usage)) = folders.add(&relative?, Usage::of(file.size_bytes, copies)) {
            printer.row("path", &format!("{}{folder}/", source.prefix()), None, usage);
        }
    }
    if folders.total.files == 0 && !source.path.is_empty() {
        let help = format!("see `cairn ls {}`", source.volume);
        return Err(Failure::not_found(format!("there is no file {source}, and none below it"), help));
    }
    if let Some((folder, usage)) = folders.open.take() {
        printer.row("path", &format!("{}{folder}/", source.prefix()), None, usage);
    }
    printer.finish(&source.to_string(), folders.total);
    Ok(Exit::Ok)
}

async fn all_volumes(client: &Client, output: &Output) -> Result<Exit, Failure> {
    let mut printer = Printer { output, opening: "{\"volumes\":[".to_owned(), begun: false };
    let mut total = Usage::default();
    for volume in client.volumes().await? {
        if volume.state() == VolumeState::VolumeBeingDeleted {
            output.warning(&format!("{}: left out, it is being deleted", volume.name));
            continue;
        }
        let source = Address { volume: volume.name, path: String::new(), is_folder: true };
        let mut usage = Usage::default();
        let mut files = Below::new(client, &source);
        while let Some((file, _)) = files.next().await? {
            usage.add(Usage::of(file.size_bytes, volume.copies));
        }
        total.add(usage);
        printer.row("name", &source.volume, Some(volume.copies), usage);
    }
    printer.finish("total", total);
    Ok(Exit::Ok)
}

/// Prints line by line, so that any number of folders needs no memory; in JSON it is still one document.
struct Printer<'a> {
    output: &'a Output,
    opening: String,
    begun: bool,
}

impl Printer<'_> {
    fn row(&mut self, key: &'static str, name: &str, copies: Option<u32>, usage: Usage) {
        if !self.output.is_json() {
            return self.line(name, usage);
        }
        let opening = if self.begun { "," } else { &self.opening };
        let copies = copies.map_or(String::new(), |copies| format!("\"copies\":{copies},"));
        let row = format!("{opening}{{\"{key}\":{},{copies}{}", json(&name), &json(&usage)[1..]);
        self.output.raw(&row);
        self.begun = true;
    }

    fn line(&mut self, name: &str, usage: Usage) {
        if !self.begun {
            self.output.raw(&columns("SIZE", "STORED", "FILES", "NAME"));
            self.begun = true;
        }
        let Usage { files, size_bytes, stored_bytes } = usage;
        self.output.raw(&columns(&size(size_bytes), &size(stored_bytes), &files.to_string(), &shown(name)));
    }

    fn finish(mut self, name: &str, total: Usage) {
        if !self.output.is_json() {
            return self.line(name, total);
        }
        let opening = if self.begun { "" } else { &self.opening };
        self.output.raw(&format!("{opening}],\"total\":{}}}\n", json(&total)));
    }
}

/// Of one width for all lines: the later ones are not known yet.
fn columns(size: &str, stored: &str, files: &str, name: &str) -> String {
    format!("{size:>8}  {stored:>8}  {files:>9}  {name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_has_a_tag() {
        const FRAME: u64 = FRAME_BYTES;
        for (size, frames) in [
            (0, 0),
            (1, 1),
            (FRAME, 1),
            (FRAME + 1, 2),
            (4 << 20, 64),
            ((4 << 20) + 1, 65),
            (1 << 40, 1 << 24),
        ] {
            assert_eq!(sealed_bytes(size), size + 16 * frames, "{size}");
        }
        assert_eq!(Usage::of(100, 3), Usage { files: 1, size_bytes: 100, stored_bytes: 348 });
        assert_eq!(
            Usage::of(u64::MAX, 7).stored_bytes,
            u64::MAX,
            "what a server claims is no reason to crash"
        );
    }

    #[test]
    fn folders_are_summed_in_the_order_of_the_listing() {
        let mut folders = Folders::default();
        let mut ended = Vec::new();
        for path in ["a", "a.txt", "a/1", "a/b/2", "b/3", "c", "d/4", "d/5"] {
            ended.extend(folders.add(path, Usage::of(10, 1)));
        }
        ended.extend(folders.open.take());
        let sums: Vec<_> = ended.iter().map(|(name, usage)| (name.as_str(), usage.files)).collect();
        assert_eq!(sums, [("a", 2), ("b", 1), ("d", 2)]);
        assert_eq!((folders.total.files, folders.total.size_bytes), (8, 80));
    }
}
