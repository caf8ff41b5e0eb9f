//! A small repository for tests: whole backups and WAL of a cluster that never ran.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::pg::wal_header::LONG;
use crate::repo::about::About;
use crate::repo::crypt::Encrypted;
use crate::repo::crypt::keyring::Keyring;
use crate::repo::dir::DirRepo;
use crate::repo::dump::{self, DumpKeys, DumpManifest};
use crate::repo::export::{ExportKeys, ExportManifest};
use crate::repo::layout::{self, ClusterKeys, Label, SystemKeys};
use crate::repo::manifest::{Chunk, Contents, DataObject, Dir, File, Manifest, Part, Source};
use crate::repo::rows::Writer;
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{self, Key, Location, SharedRepo, wait};
use crate::secret::Secret;
use crate::topology::model::Codec;
use crate::units::ByteCount;

pub(super) const CLUSTER: &str = "inventory";
pub(super) const MIB: u64 = 1 << 20;

/// Returns the manifest of an empty backup that ended when it began.
pub(super) fn manifest(ended: Timestamp) -> Manifest {
    Manifest {
        format: 1,
        label: Label::full(ended),
        herd: "shop".to_owned(),
        cluster: CLUSTER.to_owned(),
        system_identifier: SystemIdentifier::new(1).unwrap(),
        pgherd: "0.1.0".to_owned(),
        server_version: 180_006,
        node: "a".to_owned(),
        from: Source::Primary,
        begun: ended,
        ended,
        timeline: TimelineId::new(1).unwrap(),
        start_lsn: Lsn::new(40),
        stop_lsn: Lsn::new(400),
        wal_segment_size: WalSegmentSize::new(MIB).unwrap(),
        data_checksums: true,
        block_size: 8192,
        blocks_a_file: 131_072,
        backup_label: String::new(),
        tablespace_map: String::new(),
        tablespaces: Vec::new(),
        level: 3,
        compression: Codec::Zstd,
        needs: Vec::new(),
        files: 0,
        directories: 0,
        size: ByteCount(0),
        stored: ByteCount(0),
        damaged_pages: 0,
        files_blake3: Blake3::of(b""),
        files_stored: ByteCount(0),
    }
}

/// A repository in a directory of its own.
pub(super) struct Trial {
    directory: tempfile::TempDir,
    pub(super) repo: SharedRepo,
}

impl Trial {
    pub(super) fn new() -> Self {
        // In memory where there is such a place: thousands of small objects are synced.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let url = format!("file://{}", directory.path().join("repository").display());
        let repo = repo::create(&Location::plain(url)).unwrap();
        Self { directory, repo }
    }

    /// The same, encrypted. What opens it by its URL finds no key.
    pub(super) fn encrypted() -> Self {
        let Self { directory, repo } = Self::new();
        let about = wait(Box::pin(About::of(&*repo))).unwrap().encrypted();
        wait(repo.store(&layout::repository(), &about.write())).unwrap();
        let keyring = Keyring::parse(&[Secret::new("1".repeat(64))]).unwrap();
        let repo = Arc::new(Encrypted::new(repo, &about, keyring).unwrap());
        Self { directory, repo }
    }

    /// Opens an encrypted one as somebody does who has a key of something else.
    pub(super) fn with_another_key(&self) -> SharedRepo {
        let inner: SharedRepo = Arc::new(DirRepo::open(&self.directory.path().join("repository")).unwrap());
        let about = wait(Box::pin(About::of(&*inner))).unwrap();
        let keyring = Keyring::parse(&[Secret::new("2".repeat(64))]).unwrap();
        Arc::new(Encrypted::new(inner, &about, keyring).unwrap())
    }

    pub(super) fn location(&self) -> Location {
        Location::plain(self.repo.url())
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        self.directory.path().join("repository").join(key.as_str())
    }

    pub(super) fn system() -> SystemKeys {
        ClusterKeys::new(CLUSTER).system(SystemIdentifier::new(7).unwrap())
    }

    /// Stores segments of timeline 1, 1 MiB each.
    pub(super) fn archive(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let file = WalFile::Segment(Self::segment(number));
            self.store_wal(file, &Self::wal(number));
        }
    }

    /// Makes a segment of PostgreSQL 18: a header, and the same byte over and over.
    pub(super) fn wal(number: u64) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend(0xD118_u16.to_le_bytes());
        content.extend(LONG.to_le_bytes());
        content.extend(1_u32.to_le_bytes());
        content.extend((number * MIB).to_le_bytes());
        content.extend([0; 8]);
        content.extend(7_u64.to_le_bytes());
        content.extend(u32::try_from(MIB).unwrap().to_le_bytes());
        content.extend(8192_u32.to_le_bytes());
        content.resize(usize::try_from(MIB).unwrap(), u8::try_from(number % 251).unwrap());
        content
    }

    pub(super) fn segment(number: u64) -> SegmentName {
        let size = WalSegmentSize::new(MIB).unwrap();
        SegmentName::holding(Lsn::new(number * MIB), TimelineId::new(1).unwrap(), size)
    }

    pub(super) fn store_wal(&self, file: WalFile, content: &[u8]) {
        let (keys, name) = (Self::system(), file.to_string());
        let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: keys.system() };
        let object = seal::seal(identity, content, 3).unwrap();
        wait(self.repo.store(&keys.wal(file), &object)).unwrap();
    }

    /// Stores a backup of three files in two data objects, whose WAL is the segment `start`.
    pub(super) fn back_up(&self, ended: Timestamp, start: u64) -> Label {
        let keys = Self::system();
        let mut manifest = manifest(ended);
        manifest.system_identifier = keys.system();
        manifest.start_lsn = Lsn::new(start * MIB + 40);
        manifest.stop_lsn = Lsn::new(start * MIB + 400);
        let backup = keys.backup(&manifest.label);

        let text = |seed: u64, length: usize| -> Vec<u8> {
            let mut state = seed ^ start;
            let next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                u8::try_from(state >> 60).unwrap()
            };
            std::iter::repeat_with(next).take(length).collect()
        };
        let (small, other, large) = (text(1, 300), text(2, 500), text(3, 4000));
        let bundle = [small.clone(), other.clone()].concat();
        let mut contents = Contents::default();
        for (object, pieces) in [(1, vec![&bundle[..], &large[..1500]]), (2, vec![&large[1500..]])] {
            let mut stored = Vec::new();
            for piece in pieces {
                let frame = zstd::bulk::compress(piece, 3).unwrap();
                contents.chunks.push(Chunk {
                    object,
                    offset: stored.len() as u64,
                    stored: u32::try_from(frame.len()).unwrap(),
                    size: u32::try_from(piece.len()).unwrap(),
                    blake3: Blake3::of(&frame),
                    backup: None,
                    codec: Codec::Zstd,
                    content: Some(Blake3::of(piece)),
                });
                stored.extend(frame);
            }
            wait(self.repo.store(&backup.data(object), &stored)).unwrap();
            contents.objects.push(DataObject {
                number: None,
                size: ByteCount(stored.len() as u64),
                blake3: Blake3::of(&stored),
            });
        }
        let part = |at, length, chunk, from| Part { at, length, chunk, from };
        // The large one has a hole of 8 KiB after its first 1500 bytes, and one at its end.
        let sparse = [&large[..1500], &[0; 8192], &large[1500..], &[0; 100]].concat();
        for (path, bytes, parts) in [
            ("PG_VERSION", &small, vec![part(0, 300, 0, 0)]),
            ("base/5/1259", &other, vec![part(0, 500, 0, 300)]),
            ("base/5/16384", &sparse, vec![part(0, 1500, 1, 0), part(9692, 2500, 2, 0)]),
            ("base/5/16390", &Vec::new(), Vec::new()),
        ] {
            contents.files.push(File {
                path: path.to_owned(),
                mode: 0o600,
                size: bytes.len() as u64,
                mtime: 0,
                crc32c: crc32c::crc32c(bytes),
                parts,
                damaged_blocks: Vec::new(),
            });
        }
        contents.dirs.push(Dir { path: ".".to_owned(), mode: 0o700 });
        self.commit(manifest, &contents)
    }

    /// Stores the list and the manifest.
    pub(super) fn commit(&self, mut manifest: Manifest, contents: &Contents) -> Label {
        let (keys, label) = (Self::system(), manifest.label.clone());
        let backup = keys.backup(&label);
        let identity = Identity { kind: Kind::Files, name: label.as_str(), system_identifier: keys.system() };
        let files = seal::seal(identity, &contents.write(), 3).unwrap();
        manifest.files = contents.files.len() as u64;
        manifest.directories = contents.dirs.len() as u64;
        manifest.size = ByteCount(contents.files.iter().map(|file| file.size).sum());
        manifest.stored = ByteCount(contents.objects.iter().map(|object| object.size.0).sum());
        manifest.files_blake3 = Blake3::of(&files);
        manifest.files_stored = ByteCount(files.len() as u64);
        wait(self.repo.store(&backup.files(), &files)).unwrap();
        wait(self.repo.store(&backup.manifest(), &seal::write_document(&manifest))).unwrap();
        label
    }

    /// Returns the keys of all objects.
    pub(super) fn objects(&self) -> Vec<Key> {
        let folders = [ClusterKeys::new(CLUSTER).folder(), dump::dumps(CLUSTER)];
        let listed = folders.iter().flat_map(|folder| wait(self.repo.list_all(folder)).unwrap());
        listed.map(|listed| listed.key).collect()
    }

    /// Stores the rows of a partition that ended with November 2019.
    pub(super) fn export(&self, partition: &str) -> ExportKeys {
        let golden = include_str!("../../../tests/golden/partition-export-v1.json");
        let manifest: ExportManifest = seal::read_document(golden.as_bytes()).unwrap();
        let system = Self::system();
        let names = (manifest.schema.as_str(), partition);
        let keys = ExportKeys::new(&system, &manifest.database, names, manifest.at).unwrap();
        let mut writer = Writer::begin(&*self.repo, &keys.rows()).unwrap();
        for number in 0..500 {
            writer.take(format!("{number},2019-11-01 00:00:00+00,\"{{}}\"\n").as_bytes()).unwrap();
        }
        let (rows, stored, stored_blake3) = writer.end().unwrap();
        let manifest = ExportManifest {
            cluster: CLUSTER.to_owned(),
            system_identifier: system.system(),
            partition: partition.to_owned(),
            rows: rows.rows,
            size: rows.size,
            content_blake3: rows.content,
            stored,
            stored_blake3,
            ..manifest
        };
        wait(self.repo.store(&keys.manifest(), &seal::write_document(&manifest))).unwrap();
        keys
    }

    /// Stores a dump.
    pub(super) fn dump(&self) -> Key {
        let golden = include_str!("../../../tests/golden/dump-v1.json");
        let manifest: DumpManifest = seal::read_document(golden.as_bytes()).unwrap();
        let keys = DumpKeys::new(CLUSTER, &manifest.name);
        let data = b"PGDMP and whatever follows".repeat(40);
        let manifest = DumpManifest {
            cluster: CLUSTER.to_owned(),
            size: ByteCount(data.len() as u64),
            data_blake3: Blake3::of(&data),
            ..manifest
        };
        wait(self.repo.store(&keys.data(&manifest.label), &data)).unwrap();
        wait(self.repo.store(&keys.manifest(&manifest.label), &seal::write_document(&manifest))).unwrap();
        keys.data(&manifest.label)
    }

    /// Flips one bit of an object, as a failing disk does: behind the repository's back.
    pub(super) fn flip(&self, key: &Key, bit: usize) {
        let mut bytes = std::fs::read(self.path(key)).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(self.path(key), bytes).unwrap();
    }
}
