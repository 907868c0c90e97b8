//! Volumes: creating, listing, marking for deletion.

use std::collections::{BTreeMap, BTreeSet};

use cairn_placement::{ClusterMap, MAX_COPIES, VolumeId};

use super::{
    FileError, VolumeCount, VolumeInfo, VolumeName,
    commit::{Outcome, Proposal},
    gateway::{Gateway, volume_info},
    page,
};
use crate::{
    chunks::{FRAME_BYTES, VolumeKey},
    meta::{
        Compare, Freshness, Op, RangeRead,
        keys::{
            self,
            count::CountRecord,
            volume::{State, VolumeRecord},
        },
        prefix_end,
    },
};

/// Which listing a page token is of: there is one of volumes.
const PAGES: &[u8] = b"volumes";
/// Copies of a volume that asks for none in particular.
const DEFAULT_COPIES: usize = 3;
const DEFAULT_CHUNK_BYTES: u32 = 4 << 20;
const MAX_CHUNK_BYTES: u32 = 16 << 20;
/// Times that a creation is decided afresh because other volumes were created.
const CREATE_ATTEMPTS: usize = 32;

/// How many copies have a place of their own. Where there are zones, each copy needs another one, or the loss of a zone
/// would take more than one. Nodes that are all in one zone, as those that were given none, count each for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    zones: usize,
    nodes: usize,
}

impl Room {
    fn of(map: &ClusterMap) -> Self {
        let zones: BTreeSet<&str> = map.nodes.values().map(|node| node.zone.as_str()).collect();
        Self { zones: zones.len(), nodes: map.nodes.len() }
    }

    fn most(self) -> usize {
        let places = if self.zones > 1 { self.zones } else { self.nodes };
        places.min(MAX_COPIES)
    }

    fn admit(self, copies: usize) -> Result<(), FileError> {
        let (most, Self { zones, nodes }) = (self.most(), self);
        let problem = match copies {
            _ if copies <= most => return Ok(()),
            _ if copies > MAX_COPIES => format!("a volume keeps {MAX_COPIES} copies at most, not {copies}"),
            _ if zones > 1 => format!(
                "{copies} copies need {copies} zones, and this cluster has {zones}: ask for {most} at most, or use a \
                 cluster with more zones"
            ),
            _ => format!(
                "{copies} copies need {copies} nodes, and this cluster has {nodes}: ask for {most} at most, or use a \
                 cluster with more nodes"
            ),
        };
        Err(FileError::InvalidArgument(problem))
    }
}

impl Gateway {
    pub(super) async fn do_create_volume(
        &self,
        name: &VolumeName,
        copies: u8,
        chunk_size_bytes: u32,
    ) -> Result<(VolumeInfo, bool), FileError> {
        let (_, map) = self.placed()?;
        let copies = match usize::from(copies) {
            0 => Room::of(&map).most().min(DEFAULT_COPIES),
            copies => copies,
        };
        let chunk_size_bytes = if chunk_size_bytes == 0 { DEFAULT_CHUNK_BYTES } else { chunk_size_bytes };
        if chunk_size_bytes > MAX_CHUNK_BYTES || chunk_size_bytes % FRAME_BYTES as u32 != 0 {
            return Err(FileError::InvalidArgument(format!(
                "a chunk's size is a multiple of {FRAME_BYTES} bytes, at most {MAX_CHUNK_BYTES}"
            )));
        }
        for _ in 0..CREATE_ATTEMPTS {
            match self.fresh_volume(name).await {
                Ok(present) => {
                    Self::must_be_active(&present)?;
                    let same = usize::from(present.record.copies) == copies
                        && present.record.chunk_size_bytes == chunk_size_bytes;
                    let exists = || FileError::VolumeExists(name.to_string());
                    return same.then(|| (present.info(), false)).ok_or_else(exists);
                }
                Err(FileError::VolumeNotFound(_)) => {}
                Err(error) => return Err(error),
            }
            Room::of(&map).admit(copies)?;
            if let Some(info) = self.try_create(name, copies as u8, chunk_size_bytes).await? {
                return Ok((info, true));
            }
        }
        Err(FileError::Conflict("many volumes are being created at once".into()))
    }

    async fn try_create(
        &self,
        name: &VolumeName,
        copies: u8,
        chunk_size_bytes: u32,
    ) -> Result<Option<VolumeInfo>, FileError> {
        let counter = self.retry_read(|| self.meta.get(b"volume-id")).await?;
        let last = counter.as_ref().map(keys::number).transpose()?.unwrap_or(0);
        let id = u32::try_from(last + 1)
            .map_err(|_| FileError::Internal("this cluster has given out all volume numbers".into()))?;
        let key = VolumeKey::random(&*self.env.random);
        let record = VolumeRecord {
            id,
            copies,
            chunk_size_bytes,
            state: State::Active,
            created_unix_ms: self.env.clock.unix_ms(),
            wrapped_key: hex::encode(self.kek.wrap(VolumeId(id), &key, self.env.random.bytes())),
        };
        let volume_key = keys::volume::key(name.as_str());
        let proposal = Proposal {
            compare: vec![
                Compare::absent(volume_key.clone()),
                Compare::unchanged(keys::volume_id_key(), counter.map_or(0, |entry| entry.mod_revision)),
            ],
            then: vec![
                Op::put(volume_key, keys::to_json(&record)),
                Op::put(keys::volume_id_key(), id.to_string()),
            ],
            look: vec![],
        };
        let outcome = self.commit(self.env.random.bytes(), proposal).await?;
        Ok(matches!(outcome, Outcome::Committed).then(|| volume_info(name, &record)))
    }

    pub(super) async fn do_list_volumes(
        &self,
        limit: usize,
        token: &str,
    ) -> Result<(Vec<VolumeInfo>, String), FileError> {
        let start = match token {
            "" => keys::volume::PREFIX.to_vec(),
            token => [keys::volume::PREFIX, page::name(PAGES, token)?.as_bytes(), &[0]].concat(),
        };
        let read = RangeRead {
            start: start.into(),
            end: prefix_end(keys::volume::PREFIX),
            limit: limit.clamp(1, super::MAX_PAGE),
            ..RangeRead::default()
        };
        let page = self.retry_read(|| self.meta.range(read.clone())).await?;
        let mut volumes = Vec::new();
        for entry in &page.entries {
            let name = String::from_utf8_lossy(&entry.key[keys::volume::PREFIX.len()..]);
            volumes.push(volume_info(&VolumeName::parse(&name)?, &keys::from_json(entry)?));
        }
        self.add_counts(&mut volumes).await?;
        let last = volumes.last().filter(|_| page.more);
        let next = last.map_or_else(String::new, |volume| page::token(PAGES, volume.name.as_str()));
        Ok((volumes, next))
    }

    pub(super) async fn do_volume(&self, name: &VolumeName) -> Result<VolumeInfo, FileError> {
        let mut volumes = [self.fresh_volume(name).await?.info()];
        self.add_counts(&mut volumes).await?;
        let [volume] = volumes;
        Ok(volume)
    }

    /// Adds what the volumes, which are sorted by name, held when they were last counted.
    async fn add_counts(&self, volumes: &mut [VolumeInfo]) -> Result<(), FileError> {
        let (Some(first), Some(last)) = (volumes.first(), volumes.last()) else { return Ok(()) };
        let read = RangeRead {
            start: keys::count::key(first.name.as_str()),
            end: [&keys::count::key(last.name.as_str())[..], &[0]].concat().into(),
            freshness: Freshness::Stale,
            ..RangeRead::default()
        };
        let counts = self.retry_read(|| self.meta.range(read.clone())).await?.entries;
        let mut by_volume = BTreeMap::new();
        for entry in &counts {
            let count: CountRecord = keys::from_json(entry)?;
            by_volume.insert(VolumeId(count.volume), VolumeCount { files: count.files, bytes: count.bytes });
        }
        for volume in volumes {
            volume.count = by_volume.get(&volume.id).copied();
        }
        Ok(())
    }

    /// Marks the volume; the coordinator removes its files and then its record (R18).
    pub(super) async fn do_delete_volume(
        &self,
        name: &VolumeName,
        with_files: bool,
    ) -> Result<(), FileError> {
        let volume = self.fresh_volume(name).await?;
        if volume.record.state == State::Deleting {
            return Ok(());
        }
        if !with_files {
            self.must_be_empty(name, volume.id()).await?;
        }
        let key = keys::volume::key(name.as_str());
        let record = VolumeRecord { state: State::Deleting, ..volume.record.clone() };
        let mut compare = vec![Compare::unchanged(key.clone(), volume.revision)];
        if !with_files {
            // A file may be committed after the look, and it was acknowledged.
            compare.push(Compare::vacant(&keys::file::prefix(volume.id())));
        }
        let proposal = Proposal { compare, then: vec![Op::put(key, keys::to_json(&record))], look: vec![] };
        match self.commit(self.env.random.bytes(), proposal).await? {
            Outcome::Committed => Ok(()),
            Outcome::Refused(_) if !with_files => {
                self.must_be_empty(name, volume.id()).await?;
                Err(FileError::Conflict(format!("volume {name} changed meanwhile")))
            }
            Outcome::Refused(_) => Err(FileError::Conflict(format!("volume {name} changed meanwhile"))),
        }
    }

    async fn must_be_empty(&self, name: &VolumeName, id: VolumeId) -> Result<(), FileError> {
        let read = RangeRead { limit: 1, keys_only: true, ..RangeRead::prefix(&keys::file::prefix(id)) };
        let first = self.retry_read(|| self.meta.range(read.clone())).await?.entries.pop();
        first.map_or(Ok(()), |_| Err(FileError::VolumeNotEmpty(name.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::{MemberNode, NodeId, assign};

    use super::*;

    fn room(zones: &[&str]) -> Room {
        let node = |(index, zone): (usize, &&str)| MemberNode {
            id: NodeId(index as u16 + 1),
            name: format!("n{index}"),
            zone: (*zone).to_owned(),
            weight: 1,
        };
        let nodes: Vec<_> = zones.iter().enumerate().map(node).collect();
        Room::of(&assign(&nodes, 5, 1).unwrap())
    }

    #[test]
    fn every_copy_needs_a_zone_of_its_own() {
        let room = room(&["a", "a", "b", "c"]);
        assert!((1..=3).all(|copies| room.admit(copies).is_ok()));
        let said = room.admit(4).unwrap_err().to_string();
        for part in ["4 copies need 4 zones", "this cluster has 3", "ask for 3 at most", "more zones"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn nodes_without_zones_count_each_for_itself() {
        let room = room(&["default", "default", "default"]);
        assert!(room.admit(3).is_ok());
        let said = room.admit(4).unwrap_err().to_string();
        assert!(said.contains("4 copies need 4 nodes, and this cluster has 3"), "{said}");
    }

    #[test]
    fn the_default_has_room_everywhere() {
        let many = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let cases: [(&[&str], usize); 5] =
            [(&["a"], 1), (&["a", "a"], 2), (&["a", "a", "b"], 2), (&["a", "b", "c", "c"], 3), (&many, 7)];
        for (zones, most) in cases {
            let room = room(zones);
            assert_eq!(room.most(), most, "{zones:?}");
            assert!(room.admit(room.most().min(DEFAULT_COPIES)).is_ok(), "{zones:?}");
        }
        assert!(room(&many).admit(8).unwrap_err().to_string().contains("7 copies at most"));
    }
}
