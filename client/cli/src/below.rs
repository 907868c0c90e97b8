//! The files below a path of a volume, one after the other, a page in memory at a time.

use std::vec;

use cairn_client::{Client, FileInfo, ListOptions, Listing};

use crate::address::Address;
use crate::failure::Failure;

pub struct Below {
    listing: Listing,
    prefix: String,
    page: vec::IntoIter<FileInfo>,
}

impl Below {
    /// All files below `source`; nothing is asked for yet.
    pub fn new(client: &Client, source: &Address) -> Self {
        let prefix = source.prefix();
        let options = ListOptions { prefix: prefix.clone(), ..ListOptions::default() };
        Self { listing: client.list(&source.volume, options), prefix, page: Vec::new().into_iter() }
    }

    /// The next file, and its name below the path: names come from a server, and one that does not belong there is a
    /// failure of its own.
    pub async fn next(&mut self) -> Result<Option<(FileInfo, Result<String, Failure>)>, Failure> {
        loop {
            if let Some(file) = self.page.next() {
                let relative = relative(&file.path, &self.prefix);
                return Ok(Some((file, relative)));
            }
            let Some(page) = self.listing.next_page().await? else { return Ok(None) };
            self.page = page.files.into_iter();
        }
    }
}

fn relative(path: &str, prefix: &str) -> Result<String, Failure> {
    match path.strip_prefix(prefix) {
        Some(relative) if !relative.is_empty() => Ok(relative.to_owned()),
        _ => Err(Failure::path("the server lists a file that was not asked for", "report this")),
    }
}

pub async fn has_files_below(client: &Client, source: &Address) -> Result<bool, Failure> {
    let options = ListOptions { prefix: source.prefix(), page_size: 1, ..ListOptions::default() };
    let page = client.list(&source.volume, options).next_page().await?;
    Ok(page.is_some_and(|page| !page.files.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_belong_there_is_not_taken_for_it() {
        assert_eq!(relative("a/b/c", "a/").unwrap(), "b/c");
        assert_eq!(relative("b", "").unwrap(), "b");
        for (path, prefix) in [("b/c", "a/"), ("a/", "a/"), ("", "")] {
            assert_eq!(relative(path, prefix).unwrap_err().code, "INVALID_PATH", "{path:?}");
        }
    }
}
