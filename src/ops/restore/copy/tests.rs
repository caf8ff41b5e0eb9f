//! Small invented backups in a repository of their own, copied, damaged, and copied over what is there.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::*;
use crate::ops::node::restore::Claim;
use crate::ops::restore::place::MARKER;
use crate::pg::system::SystemIdentifier;
use crate::repo::codec;
use crate::repo::dir::DirRepo;
use crate::repo::layout::{ClusterKeys, Label};
use crate::repo::manifest::{Chunk, Contents, DataObject, Dir, Link, Manifest, Part, Tablespace};
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{Key, wait};
use crate::topology::model::Codec;

const LABEL: &str = "20261121T100203Z-full";

fn system() -> SystemIdentifier {
    SystemIdentifier::new(7_398_812_045_532_218_841).unwrap()
}

/// A repository with one backup, and a place to restore it to.
struct Stage {
    directory: tempfile::TempDir,
    repo: DirRepo,
    contents: Contents,
    raw: BTreeMap<String, Vec<u8>>,
}

impl Stage {
    /// Packs files into chunks of at most `limit` bytes, a data object for each three; runs of 8 KiB of zeros are left out.
    fn new(files: &[(&str, Vec<u8>)], limit: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
        let mut stage = Self { directory, repo, contents: Contents::default(), raw: BTreeMap::new() };
        for (path, mode) in [
            (".", 0o750),
            ("base", 0o700),
            ("base/5", 0o700),
            ("global", 0o700),
            ("pg_tblspc", 0o700),
            ("pg_wal", 0o700),
        ] {
            stage.contents.dirs.push(Dir { path: path.to_owned(), mode });
        }
        if files.iter().any(|(path, _)| path.starts_with("pg_tblspc/16385/")) {
            for path in ["pg_tblspc/16385", "pg_tblspc/16385/PG_18"] {
                stage.contents.dirs.push(Dir { path: path.to_owned(), mode: 0o700 });
            }
            let target = stage.path("original");
            stage.contents.links.push(Link { path: "pg_tblspc/16385".to_owned(), target });
        }
        let mut pending: Vec<u8> = Vec::new();
        let mut object: Vec<u8> = Vec::new();
        for (path, bytes) in files {
            stage.raw.insert((*path).to_owned(), bytes.clone());
            let mut parts = Vec::new();
            for (number, block) in bytes.chunks(BLOCK).enumerate() {
                if block.iter().all(|byte| *byte == 0) {
                    continue;
                }
                if pending.len() + block.len() > limit {
                    stage.end_chunk(&mut pending, &mut object);
                }
                parts.push(Part {
                    at: (number * BLOCK) as u64,
                    length: u32::try_from(block.len()).unwrap(),
                    chunk: u32::try_from(stage.contents.chunks.len()).unwrap(),
                    from: u32::try_from(pending.len()).unwrap(),
                });
                pending.extend_from_slice(block);
            }
            stage.contents.files.push(File {
                path: (*path).to_owned(),
                mode: 0o640,
                size: bytes.len() as u64,
                mtime: 1_795_255_200,
                crc32c: crc32c::crc32c(bytes),
                parts,
                damaged_blocks: Vec::new(),
            });
        }
        stage.end_chunk(&mut pending, &mut object);
        stage.end_object(&mut object);
        stage.commit();
        stage
    }

    fn end_chunk(&mut self, pending: &mut Vec<u8>, object: &mut Vec<u8>) {
        if pending.is_empty() {
            return;
        }
        let frame = zstd::bulk::compress(pending, 3).unwrap();
        self.contents.chunks.push(Chunk {
            object: u32::try_from(self.contents.objects.len() + 1).unwrap(),
            offset: object.len() as u64,
            stored: u32::try_from(frame.len()).unwrap(),
            size: u32::try_from(pending.len()).unwrap(),
            blake3: Blake3::of(&frame),
            backup: None,
            codec: Codec::Zstd,
            content: Some(Blake3::of(pending)),
        });
        object.extend(frame);
        pending.clear();
        if self.contents.chunks.len().is_multiple_of(3) {
            self.end_object(object);
        }
    }

    fn end_object(&mut self, object: &mut Vec<u8>) {
        if object.is_empty() {
            return;
        }
        self.contents.objects.push(DataObject {
            number: None,
            size: ByteCount(object.len() as u64),
            blake3: Blake3::of(object),
        });
        let number = u32::try_from(self.contents.objects.len()).unwrap();
        wait(self.repo.store(&keys().data(number), object)).unwrap();
        object.clear();
    }

    /// Stores the list and the manifest.
    fn commit(&self) {
        let identity = Identity { kind: Kind::Files, name: LABEL, system_identifier: system() };
        let list = seal::seal(identity, &self.contents.write(), 3).unwrap();
        wait(self.repo.store(&keys().files(), &list)).unwrap();
        let golden = include_str!("../../../../tests/golden/manifest-v1.json");
        let mut manifest: Manifest = seal::read_document(golden.as_bytes()).unwrap();
        manifest.label = LABEL.parse().unwrap();
        manifest.system_identifier = system();
        manifest.cluster = "inventory".to_owned();
        manifest.needs = Vec::new();
        manifest.damaged_pages = 0;
        manifest.tablespaces = self
            .contents
            .links
            .iter()
            .map(|link| Tablespace { oid: 16385, location: link.target.clone(), size: ByteCount(0) })
            .collect();
        manifest.files_blake3 = Blake3::of(&list);
        manifest.files_stored = ByteCount(list.len() as u64);
        wait(self.repo.store(&keys().manifest(), &seal::write_document(&manifest))).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn job(&self) -> CopyForRestore {
        CopyForRestore {
            repository: crate::repo::Location::plain(""),
            cluster: "inventory".to_owned(),
            system_identifier: system(),
            label: LABEL.parse().unwrap(),
            data_directory: self.path("copy"),
            tablespaces: BTreeMap::from([(16385, self.path("copy-tablespaces-16385"))]),
            claim: Claim::Scratch { id: "r1".to_owned() },
            dressing: Dressing {
                shared: None,
                node: "archive_mode = 'off'\n".to_owned(),
                access: "local all postgres peer map=pgherd\n".to_owned(),
                users: vec!["postgres".to_owned()],
                neutral: vec!["restore_command".to_owned()],
                signal: Some(Signal::Recovery),
            },
            workers: 3,
        }
    }

    fn copy(&self) -> Result<Restored> {
        self.copy_as(&self.job())
    }

    fn copy_as(&self, job: &CopyForRestore) -> Result<Restored> {
        copy(&self.repo, job, &|_, _| {}, &|| false)
    }

    /// Holds the copy to be the backup: every file, every byte, and nothing else.
    #[track_caller]
    fn is_whole(&self) {
        for (path, bytes) in &self.raw {
            if ["postgresql.conf", "postgresql.auto.conf"].contains(&path.as_str()) {
                continue;
            }
            let at = self.path("copy").join(path);
            assert!(fs::read(&at).unwrap() == *bytes, "{path} differs");
            assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o640, "{path}");
        }
        let text = fs::read_to_string(self.path("copy/backup_manifest")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        for file in manifest["Files"].as_array().unwrap() {
            let path = file["Path"].as_str().unwrap();
            let bytes = fs::read(self.path("copy").join(path)).unwrap();
            let crc: String =
                crc32c::crc32c(&bytes).to_le_bytes().iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(file["Checksum"], crc.as_str(), "{path}");
            assert_eq!(file["Size"], bytes.len(), "{path}");
        }
        let listed = manifest["Files"].as_array().unwrap().len();
        // Besides the manifest itself and recovery.signal.
        assert_eq!(count_files(&self.path("copy")), listed + 2);
    }

    fn can_start(&self) -> bool {
        self.path("copy/global/pg_control").exists()
    }
}

fn count_files(directory: &Path) -> usize {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { count_files(&path) } else { 1 }
        })
        .sum()
}

fn keys() -> crate::repo::layout::BackupKeys {
    ClusterKeys::new("inventory").system(system()).backup(&LABEL.parse::<Label>().unwrap())
}

/// Bytes that look like chance and are always the same.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn with_hole() -> Vec<u8> {
    let mut bytes = noise(5, 40 * BLOCK);
    bytes[7 * BLOCK..20 * BLOCK].fill(0);
    bytes[38 * BLOCK..].fill(0);
    bytes
}

fn usual() -> Stage {
    Stage::new(
        &[
            ("PG_VERSION", b"18\n".to_vec()),
            ("base/5/1249", noise(1, 5 * BLOCK)),
            ("base/5/16400", with_hole()),
            ("base/5/16401", Vec::new()),
            ("base/5/16402", vec![0; 3 * BLOCK]),
            ("base/5/16403", noise(2, 100)),
            ("global/pg_control", noise(3, BLOCK)),
            ("pg_tblspc/16385/PG_18/16500", noise(4, 11 * BLOCK + 17)),
            ("postgresql.conf", b"restore_command = 'cp'\n".to_vec()),
            ("postgresql.auto.conf", b"work_mem = '4MB'\n".to_vec()),
        ],
        3 * BLOCK,
    )
}

#[test]
fn a_copy_is_the_backup_byte_for_byte() {
    let stage = usual();
    let restored = stage.copy().unwrap();
    stage.is_whole();
    assert_eq!(restored.removed, 0);
    let conf = fs::read_to_string(stage.path("copy/postgresql.conf")).unwrap();
    assert!(conf.starts_with("#pgherd restore: restore_command = 'cp'\n"), "{conf}");
    assert!(conf.ends_with("include 'pgherd.node.conf'\n"), "{conf}");
    assert_eq!(fs::metadata(stage.path("copy")).unwrap().mode() & 0o7777, 0o750);
    let link = fs::read_link(stage.path("copy/pg_tblspc/16385")).unwrap();
    assert_eq!(link, stage.path("copy-tablespaces-16385"));
    assert!(!stage.path("original").exists(), "the original tablespace was written");
}

#[test]
fn runs_of_zeros_stay_holes() {
    let stage = usual();
    let restored = stage.copy().unwrap();
    let stored: usize = stage.contents.files.iter().flat_map(|f| &f.parts).map(|p| p.length as usize).sum();
    assert_eq!(restored.written, ByteCount(stored as u64));
    assert!(stored < stage.raw.values().map(Vec::len).sum());
}

#[test]
fn every_damaged_chunk_is_refused_with_the_files_in_it() {
    let stage = usual();
    for number in 0..stage.contents.chunks.len() {
        let chunk = stage.contents.chunks[number].clone();
        let key = keys().data(chunk.object);
        let good = wait(stage.repo.read(&key)).unwrap().unwrap();
        let mut bad = good.clone();
        bad[usize::try_from(chunk.offset).unwrap() + chunk.stored as usize / 2] ^= 4;
        wait(stage.repo.store(&key, &bad)).unwrap();
        let error = stage.copy().unwrap_err();
        wait(stage.repo.store(&key, &good)).unwrap();
        assert!(error.what().contains(key.as_str()), "{error}");
        let detail = error.detail_text().unwrap();
        let file =
            stage.contents.files.iter().find(|f| f.parts.iter().any(|p| p.chunk as usize == number)).unwrap();
        assert!(detail.contains(&file.path), "{detail}");
        assert!(!stage.can_start(), "chunk {number}");
        // What is there already would not be fetched again.
        fs::remove_dir_all(stage.path("copy")).unwrap();
        fs::remove_dir_all(stage.path("copy-tablespaces-16385")).unwrap();
    }
    // The same restore again, with the backup whole.
    stage.copy().unwrap();
    stage.is_whole();
}

#[test]
fn an_object_that_is_missing_or_cut_off_is_refused() {
    let stage = usual();
    let key = keys().data(1);
    let good = wait(stage.repo.read(&key)).unwrap().unwrap();
    wait(stage.repo.store(&key, &good[..good.len() - 1])).unwrap();
    assert!(stage.copy().unwrap_err().detail_text().unwrap().contains("it ends too early"));
    wait(stage.repo.remove(&key)).unwrap();
    assert!(stage.copy().unwrap_err().detail_text().unwrap().contains("it is missing"));
    assert!(!stage.can_start());
}

#[test]
fn every_flipped_bit_of_the_list_and_of_the_manifest_is_found_before_anything_is_written() {
    let stage = usual();
    for key in [keys().files(), keys().manifest()] {
        let good = wait(stage.repo.read(&key)).unwrap().unwrap();
        for bit in (0..good.len() * 8).step_by(97) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            wait(stage.repo.store(&key, &bad)).unwrap();
            assert!(stage.copy().is_err(), "{key} bit {bit}");
        }
        wait(stage.repo.store(&key, &good)).unwrap();
    }
    assert!(!stage.path("copy").exists());
}

#[test]
fn a_list_that_leads_elsewhere_is_refused() {
    let refused = |change: &dyn Fn(&mut Contents)| {
        let mut stage = usual();
        change(&mut stage.contents);
        stage.commit();
        let error = stage.copy().unwrap_err();
        assert!(error.what().contains("files.zst cannot be used"), "{error}");
        assert!(!stage.path("copy").exists());
    };
    refused(&|contents| contents.files[1].path = "../../etc/passwd".to_owned());
    refused(&|contents| contents.files[1].path = "/etc/passwd".to_owned());
    refused(&|contents| contents.files[1].path = "base//5".to_owned());
    refused(&|contents| contents.files[1].path = "backup_label".to_owned());
    refused(&|contents| contents.files[1].path = contents.files[2].path.clone());
    refused(&|contents| contents.dirs[1].path = "base/..".to_owned());
    refused(&|contents| contents.links[0].path = "pg_tblspc/x".to_owned());
    refused(&|contents| contents.links[0].path = "pg_tblspc/16386".to_owned());
    refused(&|contents| contents.files[1].parts[0].chunk = 999);
    refused(&|contents| contents.files[1].parts[0].from = 4 << 20);
    refused(&|contents| contents.files[1].parts[1].at = 0);
    refused(&|contents| contents.files[1].size = 1);
    refused(&|contents| contents.files.retain(|file| file.path != CONTROL));
    refused(&|contents| contents.chunks[0].backup = Some(LABEL.parse().unwrap()));
}

#[test]
fn a_file_whose_checksum_is_another_one_is_refused() {
    for path in ["base/5/16400", "base/5/16402"] {
        let mut stage = usual();
        stage.contents.files.iter_mut().find(|file| file.path == path).unwrap().crc32c ^= 1;
        stage.commit();
        let error = stage.copy().unwrap_err();
        assert!(error.what().contains(path), "{error}");
        assert!(!stage.can_start());
    }
}

#[test]
fn a_directory_that_is_not_empty_is_refused_and_left_alone() {
    let stage = usual();
    for name in ["copy", "copy-tablespaces-16385"] {
        let directory = stage.path(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("mine"), "precious").unwrap();
        let error = stage.copy().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.detail_text().unwrap().contains("mine"), "{error:?}");
        assert_eq!(fs::read_to_string(directory.join("mine")).unwrap(), "precious");
        fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn the_marker_of_another_restore_does_not_open_a_directory() {
    let stage = usual();
    stage.copy().unwrap();
    let mut job = stage.job();
    job.claim = Claim::Scratch { id: "r2".to_owned() };
    assert_eq!(stage.copy_as(&job).unwrap_err().kind(), ErrorKind::Refused);
    // Nor does one that came with a directory from elsewhere.
    fs::rename(stage.path("copy"), stage.path("moved")).unwrap();
    let mut job = stage.job();
    job.data_directory = stage.path("moved");
    assert_eq!(stage.copy_as(&job).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn a_second_run_writes_only_what_differs_and_removes_what_does_not_belong() {
    let stage = usual();
    stage.copy().unwrap();
    let again = stage.copy().unwrap();
    // pg_control is written under its other name again, and the configuration is our own.
    let own: u64 = ["postgresql.conf"].iter().map(|path| stage.raw[*path].len() as u64).sum();
    assert_eq!(again.written, ByteCount(BLOCK as u64 + own));
    stage.is_whole();

    let copy = stage.path("copy");
    fs::write(copy.join("base/5/99999"), "left").unwrap();
    fs::write(copy.join("standby.signal"), "").unwrap();
    fs::create_dir(copy.join("base/77")).unwrap();
    fs::write(copy.join("pg_wal/000000010000000000000001"), "old").unwrap();
    let mut changed = stage.raw["base/5/16400"].clone();
    changed[BLOCK] ^= 1;
    changed[10 * BLOCK] = 7;
    changed.extend_from_slice(&[1; 9000]);
    fs::write(copy.join("base/5/16400"), changed).unwrap();
    fs::write(copy.join("base/5/16401"), "no longer empty").unwrap();
    fs::write(copy.join("base/5/16402"), vec![9; 7 * BLOCK]).unwrap();
    fs::remove_file(copy.join("base/5/1249")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", copy.join("base/5/1249")).unwrap();
    fs::write(stage.path("copy-tablespaces-16385").join("PG_18/1"), "left").unwrap();
    let mended = stage.copy().unwrap();
    stage.is_whole();
    assert!(mended.removed >= 6, "{mended:?}");
    assert!(mended.written.0 < again.written.0 + 8 * BLOCK as u64, "{mended:?}");
    assert!(stage.path("copy").join(MARKER).exists());
}

#[test]
fn what_is_there_already_is_not_fetched() {
    let stage = usual();
    let all = stage.copy().unwrap().fetched.0;
    let copy = stage.path("copy");
    let chunk_of = |path: &str| {
        let file = stage.contents.files.iter().find(|file| file.path == path).unwrap();
        let mut chunks: Vec<usize> = file.parts.iter().map(|part| index(part.chunk)).collect();
        chunks.dedup();
        chunks
    };
    let stored = |chunks: &[usize]| -> u64 {
        chunks.iter().map(|number| u64::from(stage.contents.chunks[*number].stored)).sum()
    };
    // Those that the restore changes itself are in their chunks again each time.
    let mut always = [chunk_of("global/pg_control"), chunk_of("postgresql.conf")].concat();
    always.dedup();
    assert_eq!(stage.copy().unwrap().fetched.0, stored(&always));

    let mut changed = fs::read(copy.join("base/5/16400")).unwrap();
    changed[21 * BLOCK + 5] ^= 1;
    fs::write(copy.join("base/5/16400"), changed).unwrap();
    let mended = stage.copy().unwrap();
    stage.is_whole();
    assert!(mended.fetched.0 > stored(&always) && mended.fetched.0 < all, "{mended:?}");
}

#[test]
fn a_list_without_hashes_of_contents_is_compared_byte_by_byte() {
    let mut stage = usual();
    stage.contents.chunks.iter_mut().for_each(|chunk| chunk.content = None);
    stage.commit();
    let all = stage.copy().unwrap();
    let again = stage.copy().unwrap();
    stage.is_whole();
    assert_eq!(again.fetched, all.fetched);
    assert!(again.written < all.written);
}

#[test]
fn chunks_of_every_codec_are_read_side_by_side() {
    let mut stage = usual();
    let mut frame = Vec::new();
    for object in 1..=u32::try_from(stage.contents.objects.len()).unwrap() {
        let old = wait(stage.repo.read(&keys().data(object))).unwrap().unwrap();
        let mut new = Vec::new();
        for (number, chunk) in stage.contents.chunks.iter_mut().enumerate() {
            if chunk.object != object {
                continue;
            }
            let from = usize::try_from(chunk.offset).unwrap();
            let stored = &old[from..from + index(chunk.stored)];
            let raw = zstd::bulk::decompress(stored, index(chunk.size)).unwrap();
            match number % 3 {
                0 => frame = stored.to_vec(),
                1 => codec::lz4_frame(&raw, &mut frame).unwrap(),
                _ => frame.clone_from(&raw),
            }
            chunk.codec = [Codec::Zstd, Codec::Lz4, Codec::None][number % 3];
            chunk.offset = new.len() as u64;
            chunk.stored = u32::try_from(frame.len()).unwrap();
            chunk.blake3 = Blake3::of(&frame);
            new.extend_from_slice(&frame);
        }
        wait(stage.repo.store(&keys().data(object), &new)).unwrap();
        stage.contents.objects[index(object) - 1] =
            DataObject { number: None, size: ByteCount(new.len() as u64), blake3: Blake3::of(&new) };
    }
    stage.commit();
    stage.copy().unwrap();
    stage.is_whole();
}

#[test]
fn a_copy_that_was_interrupted_cannot_start_and_the_next_one_ends_it() {
    let stage = usual();
    let error = copy(&stage.repo, &stage.job(), &|_, _| {}, &|| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(!stage.can_start());
    stage.copy().unwrap();
    stage.is_whole();
}

#[test]
fn two_copies_do_not_write_into_one_directory() {
    let stage = usual();
    fs::create_dir(stage.path("copy")).unwrap();
    let other = fs::File::open(stage.path("copy")).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| stage.copy());
        // It waits for the other to end, and looks only then.
        fs::write(stage.path("copy/mine"), "precious").unwrap();
        drop(other);
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Refused);
    });
}

#[test]
fn a_tablespace_without_a_place_is_asked_for() {
    let stage = usual();
    let mut job = stage.job();
    job.tablespaces.clear();
    let error = stage.copy_as(&job).unwrap_err();
    assert!(error.hint_text().unwrap().contains("--tablespace 16385="), "{error:?}");
    job.tablespaces.insert(16385, stage.path("copy/inside"));
    assert_eq!(stage.copy_as(&job).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn an_unknown_backup_is_not_found() {
    let stage = usual();
    let mut job = stage.job();
    job.label = "20261121T100204Z-full".parse().unwrap();
    assert_eq!(stage.copy_as(&job).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_key_of_another_backup_is_used_where_a_chunk_says_so() {
    let mut stage = usual();
    let other: Label = "20261120T020000Z-full".parse().unwrap();
    let from = ClusterKeys::new("inventory").system(system()).backup(&other).data(7);
    let first: Key = keys().data(1);
    let bytes = wait(stage.repo.read(&first)).unwrap().unwrap();
    wait(stage.repo.store(&from, &bytes)).unwrap();
    wait(stage.repo.remove(&first)).unwrap();
    for chunk in stage.contents.chunks.iter_mut().filter(|chunk| chunk.object == 1) {
        chunk.object = 7;
        chunk.backup = Some(other.clone());
    }
    stage.commit();
    let manifest: Manifest =
        seal::read_document(&wait(stage.repo.read(&keys().manifest())).unwrap().unwrap()).unwrap();
    let needing = Manifest { needs: vec![other], ..manifest };
    wait(stage.repo.store(&keys().manifest(), &seal::write_document(&needing))).unwrap();
    stage.copy().unwrap();
    stage.is_whole();
}
