//! What is there already, so that the transfer of a folder that broke off can be taken up again.
//!
//! A file is passed over only if size, BLAKE3 digest and content type are what the transfer would make them. What a
//! volume has is asked for in pages, in the order in which the files are looked for. Where that would read many names
//! for few files (three files put into a folder of a million), each file is asked about alone.

use std::fs::{File, symlink_metadata};
use std::io::{self, Read};
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::vec;

use cairn_client::{Client, FileInfo, ListOptions, Listing};

use crate::failure::Failure;

/// Pages that may be read without a word.
const FREE_PAGES: u64 = 4;
/// Reading a page costs about as much as asking about so many files, one by one.
const FILES_PER_PAGE: u64 = 20;
const PIECE_BYTES: usize = 1 << 20;

/// What is known of a file's place before it is transferred.
#[derive(Debug)]
pub enum Earlier {
    Absent,
    File(FileInfo),
    /// Not looked for yet.
    Ask,
}

impl Earlier {
    /// The file that is there, asked for if need be.
    pub async fn find(self, client: &Client, volume: &str, path: &str) -> Result<Option<FileInfo>, Failure> {
        match self {
            Earlier::Absent => Ok(None),
            Earlier::File(file) => Ok(Some(file)),
            Earlier::Ask => match client.stat(volume, path).await {
                Ok(file) => Ok(Some(file)),
                Err(error) if error.code_name() == "FILE_NOT_FOUND" => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// What a volume has below a prefix, for whoever asks in the order of the names. Whoever does not is told that less is
/// there than is, and transfers more than needed.
pub struct Present {
    listing: State,
    page: Peekable<vec::IntoIter<FileInfo>>,
    pages: u64,
    asked: u64,
}

enum State {
    Open(Listing),
    Ended,
    /// It has too many names between those that are asked for.
    GivenUp,
}

impl Present {
    pub fn new(client: &Client, volume: &str, prefix: &str) -> Self {
        let options = ListOptions { prefix: prefix.to_owned(), ..ListOptions::default() };
        Self {
            listing: State::Open(client.list(volume, options)),
            page: Vec::new().into_iter().peekable(),
            pages: 0,
            asked: 0,
        }
    }

    pub async fn at(&mut self, path: &str) -> Result<Earlier, Failure> {
        self.asked += 1;
        loop {
            if let Some(earlier) = in_page(&mut self.page, path) {
                return Ok(earlier);
            }
            let listing = match &mut self.listing {
                State::Open(listing) => listing,
                State::Ended => return Ok(Earlier::Absent),
                State::GivenUp => return Ok(Earlier::Ask),
            };
            if !is_worth_a_page(self.pages, self.asked) {
                self.listing = State::GivenUp;
                return Ok(Earlier::Ask);
            }
            self.pages += 1;
            match listing.next_page().await? {
                Some(page) => self.page = page.files.into_iter().peekable(),
                None => self.listing = State::Ended,
            }
        }
    }
}

/// Whether the names read so far are in proportion to the files asked about.
fn is_worth_a_page(pages: u64, asked: u64) -> bool {
    pages < FREE_PAGES + asked / FILES_PER_PAGE
}

/// `None`: the page ends before the path.
fn in_page(page: &mut Peekable<vec::IntoIter<FileInfo>>, path: &str) -> Option<Earlier> {
    while let Some(file) = page.next_if(|file| file.path.as_str() <= path) {
        if file.path == path {
            return Some(Earlier::File(file));
        }
    }
    page.peek().map(|_| Earlier::Absent)
}

/// Whether the file of this name has this very content. What cannot be read has not.
pub async fn has_content(local: PathBuf, size_bytes: u64, blake3: &[u8]) -> bool {
    let wanted = blake3.to_owned();
    let look = move || {
        let file = File::open(&local)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() != size_bytes {
            return Ok(false);
        }
        io::Result::Ok(digest(file)?.as_bytes()[..] == wanted[..])
    };
    matches!(tokio::task::spawn_blocking(look).await, Ok(Ok(true)))
}

/// As [`has_content`], of a file below a folder; one that is reached through a symbolic link does not count.
pub async fn has_content_below(folder: &Path, relative: &str, size_bytes: u64, blake3: &[u8]) -> bool {
    if cairn_client::names::check_path(relative).is_err() {
        return false;
    }
    let mut path = folder.to_owned();
    for part in relative.split('/') {
        path.push(part);
        if symlink_metadata(&path).map_or(true, |there| there.is_symlink()) {
            return false;
        }
    }
    has_content(path, size_bytes, blake3).await
}

fn digest(mut file: File) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(count) => hasher.update(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_gone_through_in_order() {
        let file = |path: &str| FileInfo { path: path.into(), ..FileInfo::default() };
        let mut page = vec![file("a"), file("a.b"), file("a/b"), file("c")].into_iter().peekable();
        let mut at = |path: &str| in_page(&mut page, path);
        assert!(matches!(at("a"), Some(Earlier::File(found)) if found.path == "a"));
        assert!(matches!(at("a.a"), Some(Earlier::Absent)));
        assert!(matches!(at("a/b"), Some(Earlier::File(found)) if found.path == "a/b"));
        assert!(matches!(at("b"), Some(Earlier::Absent)));
        assert!(matches!(at("c"), Some(Earlier::File(_))));
        assert!(at("d").is_none(), "only the next page knows");
    }

    #[test]
    fn a_large_folder_is_not_read_for_a_few_files() {
        assert!(is_worth_a_page(0, 1) && is_worth_a_page(3, 1));
        assert!(!is_worth_a_page(4, 1), "the files asked about are few and far between");
        assert!((0..1_000).all(|page| is_worth_a_page(page, page * 1_000)), "they are most of what is there");
    }

    #[tokio::test]
    async fn only_the_very_same_content_counts() {
        let root = tempfile::tempdir().unwrap();
        let content = vec![7; PIECE_BYTES + 5];
        std::fs::create_dir(root.path().join("a")).unwrap();
        std::fs::write(root.path().join("a/b"), &content).unwrap();
        let (size, digest) = (content.len() as u64, blake3::hash(&content));
        let has = async |name: &str, size, digest: &[u8]| {
            let direct = has_content(root.path().join(name), size, digest).await;
            assert!(!direct || has_content_below(root.path(), name, size, digest).await, "{name}");
            direct
        };
        assert!(has("a/b", size, digest.as_bytes()).await);
        assert!(!has("a/b", size + 1, digest.as_bytes()).await);
        assert!(!has("a/b", size, &[0; 32]).await);
        assert!(!has("a/b", size, &[]).await, "a server that does not say");
        assert!(!has("a/c", size, digest.as_bytes()).await);
        assert!(!has("a", size, digest.as_bytes()).await);
    }

    #[tokio::test]
    async fn what_is_behind_a_link_does_not_count() {
        let root = tempfile::tempdir().unwrap();
        let digest = blake3::hash(b"x");
        std::fs::create_dir_all(root.path().join("outside")).unwrap();
        std::fs::create_dir_all(root.path().join("back")).unwrap();
        std::fs::write(root.path().join("outside/x"), "x").unwrap();
        let back = root.path().join("back");
        std::os::unix::fs::symlink("../outside", back.join("folder")).unwrap();
        std::os::unix::fs::symlink("../outside/x", back.join("file")).unwrap();
        for name in ["folder/x", "file", "../outside/x"] {
            assert!(!has_content_below(&back, name, 1, digest.as_bytes()).await, "{name}");
        }
        assert!(has_content_below(root.path(), "outside/x", 1, digest.as_bytes()).await);
    }
}
