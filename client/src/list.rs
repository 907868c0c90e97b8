//! Listings, page by page.

use cairn_proto::v1::{self as wire, FileInfo};

use crate::Client;
use crate::error::{Error, Result};
use crate::retry::Repeat;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Only paths that begin so.
    pub prefix: String,
    /// Roll paths with a "/" after the prefix up into [`Page::prefixes`], as folders.
    pub delimited: bool,
    /// Entries of a page: 1 to 10,000, or 0 for the default of 1,000. More are refused.
    pub page_size: u32,
}

/// Some files, in order, and the folders among them.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub files: Vec<FileInfo>,
    pub prefixes: Vec<String>,
}

/// A listing that goes on.
pub struct Listing {
    client: Client,
    request: wire::ListRequest,
    done: bool,
}

impl Client {
    /// Begins a listing; nothing is asked for before [`Listing::next_page`].
    pub fn list(&self, volume: &str, options: ListOptions) -> Listing {
        let ListOptions { prefix, delimited, page_size } = options;
        let delimiter = if delimited { "/" } else { "" };
        let request = wire::ListRequest {
            volume: volume.to_owned(),
            prefix,
            delimiter: delimiter.to_owned(),
            page: Some(wire::PageRequest { size: page_size, token: String::new() }),
        };
        Listing { client: self.clone(), request, done: false }
    }
}

impl Listing {
    /// The next page; `None` after the last. A page may be empty and not the last.
    pub async fn next_page(&mut self) -> Result<Option<Page>> {
        if self.done {
            return Ok(None);
        }
        let client = &self.client;
        let answer = client
            .unary(Repeat::Safe, self.request.clone(), |node, request| {
                let mut files = client.files(&node);
                async move { files.list(request).await }
            })
            .await?;
        let page = self.request.page.get_or_insert_default();
        // A page that leads to itself would be listed for ever.
        if !answer.next_page_token.is_empty() && answer.next_page_token == page.token {
            return Err(Error::protocol("the node's listing does not go on"));
        }
        self.done = answer.next_page_token.is_empty();
        page.token = answer.next_page_token;
        Ok(Some(Page { files: answer.files, prefixes: answer.prefixes }))
    }
}
