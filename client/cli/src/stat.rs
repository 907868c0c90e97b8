//! `cairn stat`: what is known of a file or a volume.

use std::time::Duration;

use cairn_client::{ChunkLocation, Client, CopyState, FileInfo, StatOptions};
use serde::Serialize;

use crate::args::Stat;
use crate::failure::{Exit, Failure};
use crate::ls::FileDocument;
use crate::output::{Output, hex, local_time, shown, size, table, utc_time};
use crate::volumes::{VolumeDocument, state_of};

#[derive(Serialize)]
struct Document {
    file: FileDocument,
    /// How long ago this was known to be so; absent: it is so now.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<Vec<ChunkDocument>>,
}

#[derive(Serialize)]
struct ChunkDocument {
    index: u32,
    offset: u64,
    length: u64,
    placement_group: u32,
    copies: Vec<CopyDocument>,
}

#[derive(Serialize)]
struct CopyDocument {
    node: String,
    zone: String,
    state: &'static str,
}

pub async fn run(client: &Client, stat: Stat, output: &Output) -> Result<Exit, Failure> {
    let Stat { source, chunks, allow_stale } = stat;
    if source.path.is_empty() {
        if chunks || allow_stale {
            let option = if chunks { "--chunks" } else { "--allow-stale" };
            return Err(Failure::usage(
                format!("{option} is for a file"),
                format!("name one: {source}/PATH"),
            ));
        }
        return volume(client, &source.volume, output).await;
    }
    let options = StatOptions { chunks, allow_stale };
    let answer = client.stat_with(&source.volume, &source.path, options).await?;
    let file = answer.file.unwrap_or_default();
    let found = chunks.then_some(answer.chunks);
    if let Some(age_ms) = answer.stale_ms {
        output.stale(&source, Duration::from_millis(age_ms));
    }
    let document = Document {
        file: FileDocument::from(file.clone()),
        stale_ms: answer.stale_ms,
        chunks: found.as_ref().map(|found| found.iter().map(chunk_document).collect()),
    };
    output.answer(&document, || describe(&file) + &found.map_or(String::new(), |found| chunk_table(&found)));
    Ok(Exit::Ok)
}

async fn volume(client: &Client, name: &str, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Document {
        volume: VolumeDocument,
    }
    let volume = client.volume(name).await?;
    output.answer(&Document { volume: VolumeDocument::from(&volume) }, || {
        lines(&[
            ("volume", shown(&volume.name)),
            ("files", volume.files.map_or_else(|| "not counted yet".to_owned(), |files| files.to_string())),
            ("size", volume.size_bytes.map_or_else(|| "not counted yet".to_owned(), exact_size)),
            ("copies", volume.copies.to_string()),
            ("chunk size", exact_size(volume.chunk_size_bytes.into())),
            ("state", state_of(&volume).to_owned()),
            ("created", both_times(volume.created_unix_ms)),
        ])
    });
    Ok(Exit::Ok)
}

fn describe(file: &FileInfo) -> String {
    let mut rows = vec![
        ("file", shown(&format!("{}/{}", file.volume, file.path))),
        ("size", exact_size(file.size_bytes)),
        ("modified", both_times(file.modified_unix_ms)),
        ("etag", shown(&file.etag)),
        ("blake3", hex(&file.blake3)),
    ];
    if !file.content_type.is_empty() {
        rows.push(("type", shown(&file.content_type)));
    }
    lines(&rows)
}

fn exact_size(bytes: u64) -> String {
    if bytes < 1_024 { size(bytes) } else { format!("{} ({bytes} bytes)", size(bytes)) }
}

fn both_times(unix_ms: i64) -> String {
    format!("{} ({})", local_time(unix_ms), utc_time(unix_ms).unwrap_or_default())
}

fn lines(rows: &[(&str, String)]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|(name, value)| vec![format!("{name}:"), value.clone()]).collect();
    table(&rows, &[])
}

fn chunk_table(chunks: &[ChunkLocation]) -> String {
    let titles = ["CHUNK", "OFFSET", "SIZE", "GROUP", "COPIES"].map(str::to_owned).to_vec();
    let rows = chunks.iter().map(|chunk| {
        let copies: Vec<String> = chunk
            .copies
            .iter()
            .map(|copy| match copy.state() {
                CopyState::CopyPresent => shown(&format!("{} ({})", copy.node, copy.zone)),
                _ => shown(&format!("{} ({}): {}", copy.node, copy.zone, state_name(copy.state()))),
            })
            .collect();
        vec![
            chunk.index.to_string(),
            chunk.offset.to_string(),
            size(chunk.length),
            chunk.placement_group.to_string(),
            copies.join(", "),
        ]
    });
    table(&std::iter::once(titles).chain(rows).collect::<Vec<_>>(), &[0, 1, 2, 3])
}

fn chunk_document(chunk: &ChunkLocation) -> ChunkDocument {
    let copies = chunk.copies.iter().map(|copy| CopyDocument {
        node: copy.node.clone(),
        zone: copy.zone.clone(),
        state: state_name(copy.state()),
    });
    ChunkDocument {
        index: chunk.index,
        offset: chunk.offset,
        length: chunk.length,
        placement_group: chunk.placement_group,
        copies: copies.collect(),
    }
}

fn state_name(state: CopyState) -> &'static str {
    match state {
        CopyState::CopyPresent => "present",
        CopyState::CopyMissing => "missing",
        CopyState::CopyUnreachable => "unreachable",
        CopyState::Unspecified => "unknown",
    }
}
