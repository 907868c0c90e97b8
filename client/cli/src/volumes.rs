//! `cairn volumes`, `mkvol` and `rmvol`.

use cairn_client::{Client, CreateVolume, Volume, VolumeState};
use serde::Serialize;

use crate::args::{Mkvol, Rmvol};
use crate::failure::{Exit, Failure};
use crate::output::{Output, local_time, shown, size, table, utc_time};

/// A volume, as programs see it.
#[derive(Debug, Serialize)]
pub struct VolumeDocument {
    pub name: String,
    pub id: u32,
    pub copies: u32,
    pub chunk_size_bytes: u32,
    pub state: &'static str,
    pub created: Option<String>,
    /// When last counted.
    pub files: Option<u64>,
    pub size_bytes: Option<u64>,
}

impl From<&Volume> for VolumeDocument {
    fn from(volume: &Volume) -> Self {
        Self {
            name: volume.name.clone(),
            id: volume.id,
            copies: volume.copies,
            chunk_size_bytes: volume.chunk_size_bytes,
            state: state_of(volume),
            created: utc_time(volume.created_unix_ms),
            files: volume.files,
            size_bytes: volume.size_bytes,
        }
    }
}

pub fn state_of(volume: &Volume) -> &'static str {
    match volume.state() {
        VolumeState::VolumeActive => "active",
        VolumeState::VolumeBeingDeleted => "deleting",
        VolumeState::Unspecified => "unknown",
    }
}

pub async fn list(client: &Client, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Document {
        volumes: Vec<VolumeDocument>,
    }
    let volumes = client.volumes().await?;
    output.answer(&Document { volumes: volumes.iter().map(VolumeDocument::from).collect() }, || {
        if volumes.is_empty() {
            return "there is no volume yet: create one with `cairn mkvol NAME`\n".to_owned();
        }
        let titles =
            ["NAME", "FILES", "SIZE", "COPIES", "CHUNK SIZE", "STATE", "CREATED"].map(str::to_owned).to_vec();
        let rows = volumes.iter().map(|volume| {
            vec![
                shown(&volume.name),
                volume.files.map_or_else(|| "?".to_owned(), |files| files.to_string()),
                volume.size_bytes.map_or_else(|| "?".to_owned(), size),
                volume.copies.to_string(),
                size(volume.chunk_size_bytes.into()),
                state_of(volume).to_owned(),
                local_time(volume.created_unix_ms),
            ]
        });
        table(&std::iter::once(titles).chain(rows).collect::<Vec<_>>(), &[1, 2, 3, 4])
    });
    Ok(Exit::Ok)
}

pub async fn create(client: &Client, mkvol: Mkvol, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Document {
        volume: VolumeDocument,
        created: bool,
    }
    let Mkvol { name, copies, chunk_size } = mkvol;
    let (volume, created) =
        client.create_volume(CreateVolume { name, copies, chunk_size_bytes: chunk_size }).await?;
    output.done(&Document { volume: VolumeDocument::from(&volume), created }, || {
        let done = if created { "created volume" } else { "there is already the same volume" };
        let (name, copies) = (shown(&volume.name), volume.copies);
        format!(
            "{done} {name}: copies of each chunk: {copies}, chunks of {}\n",
            size(volume.chunk_size_bytes.into())
        )
    });
    Ok(Exit::Ok)
}

pub async fn delete(client: &Client, rmvol: Rmvol, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Document<'a> {
        deleted: &'a str,
    }
    let Rmvol { name, with_files } = rmvol;
    client.delete_volume(&name, with_files).await?;
    output.done(&Document { deleted: &name }, || format!("deleted volume {name}\n"));
    Ok(Exit::Ok)
}
