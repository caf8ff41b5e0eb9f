//! What lies beside the backups: rows of partitions that were dropped from their tables, and dumps.
//!
//! Sampled, some are held against their hashes as they are stored; at full depth all of them, and rows are decompressed and counted.

use serde::{Deserialize, Serialize};

use super::{Chance, Problem, ProblemKind, Verdict, Verified, Work};
use crate::error::Result;
use crate::ops::backup::holdings::{DumpFolder, ExportFolder, Holdings, OfSystem};
use crate::ops::node::VerifyDepth;
use crate::repo::dump::{DumpKeys, DumpManifest};
use crate::repo::export::{ExportKeys, ExportManifest, folder_of};
use crate::repo::rows::{ReadError, Reader};
use crate::repo::seal::{self, Blake3};
use crate::repo::{self, Key};
use crate::units::ByteCount;

/// How much is read at a time.
const PIECE: u64 = 4 << 20;
/// Sampled, it ends after the object that reaches so much: one export may be larger than a backup.
const SAMPLED: u64 = 1 << 30;

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    Export,
    Dump,
}

/// An export or a dump that has a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BesideVerified {
    pub kind: Beside,
    /// `shop.events_2019_12`, or the name of the dump and its label.
    pub name: String,
    pub folder: Key,
    pub verdict: Verdict,
    pub why: Option<String>,
    /// Of an export.
    pub rows: Option<u64>,
    pub stored: ByteCount,
    /// Whether every stored byte of it was read.
    pub read: bool,
}

/// One of them, with what is known of it before its bytes are read.
struct Item {
    verified: BesideVerified,
    manifest: Key,
    object: Key,
    expected: Option<Expected>,
    problem: Option<Problem>,
}

/// What the bytes must be.
enum Expected {
    Rows(Box<ExportManifest>),
    Dump(Blake3),
}

/// Checks all of a cluster.
pub(super) fn check(work: &Work<'_>, holdings: &Holdings, verified: &mut Verified) -> Result<()> {
    let exports = holdings
        .systems
        .iter()
        .flat_map(|of| of.exports.iter().filter_map(move |(folder, found)| export(work, of, folder, found)));
    let dumps = holdings.dumps.iter().filter_map(|(name, found)| dump(work, name, found));
    let mut items: Vec<Item> = exports.chain(dumps).collect();
    let whole: Vec<&Item> = items.iter().filter(|item| item.problem.is_none()).collect();
    let chosen = chosen(work, &whole);
    work.expect(chosen.iter().map(|item| item.verified.stored.0).sum());
    let read = work.in_parallel(&chosen, |item| (item.object.clone(), read(work, item)))?;
    for (object, problem) in read {
        let item = items.iter_mut().find(|item| item.object == object).expect("it was chosen among them");
        item.verified.read = problem.is_none();
        item.problem = problem;
    }
    for Item { verified: mut of, problem, .. } in items {
        if let Some(problem) = problem {
            (of.verdict, of.why) = (problem.kind.verdict(), Some(problem.why.clone()));
            verified.problems.push(problem);
        }
        verified.beside.push(of);
    }
    Ok(())
}

/// Chooses what is read.
fn chosen<'i>(work: &Work<'_>, whole: &[&'i Item]) -> Vec<&'i Item> {
    match work.request.depth {
        VerifyDepth::Quick => Vec::new(),
        VerifyDepth::Full => whole.to_vec(),
        VerifyDepth::Sampled => {
            let mut chance = Chance::new(work.request.seed, "exports and dumps");
            let mut picked = chance.pick(whole.len());
            if !picked.is_empty() {
                let first = chance.next() % picked.len() as u64;
                picked.rotate_left(usize::try_from(first).unwrap_or(0));
            }
            let mut sum = 0;
            let fits = |number: &usize| {
                let goes = sum < SAMPLED;
                sum += whole[*number].verified.stored.0;
                goes
            };
            picked.into_iter().take_while(fits).map(|number| whole[number]).collect()
        }
    }
}

/// Looks at an export; `None` for one that was never ended, which is none.
fn export(work: &Work<'_>, of: &OfSystem, folder: &Key, found: &ExportFolder) -> Option<Item> {
    found.manifest?;
    let keys = ExportKeys::at(folder.clone());
    let mut item = Item::new(Beside::Export, folder, keys.manifest(), keys.rows());
    let manifest: ExportManifest = match document(work, &item.manifest) {
        Document::Gone => return None,
        Document::Bad(problem) => return Some(Item { problem: Some(problem), ..item }),
        Document::Read(manifest) => manifest,
    };
    let (schema, name) = (manifest.schema.as_str(), manifest.partition.as_str());
    let named = ExportKeys::new(&of.keys, &manifest.database, (schema, name), manifest.at);
    let ours = manifest.cluster == of.keys.cluster() && manifest.system_identifier == of.keys.system();
    item.verified.name = format!("{schema}.{name}");
    item.verified.rows = Some(manifest.rows);
    item.verified.stored = manifest.stored;
    if !ours || named.ok().as_ref() != Some(&keys) {
        item.damaged(format!(
            "it says that it is {schema}.{name} of cluster {}, at {}",
            manifest.cluster, manifest.at
        ));
    } else {
        item.has_size(found.rows);
    }
    item.expected = Some(Expected::Rows(Box::new(manifest)));
    Some(item)
}

/// Looks at a dump; `None` for one that was never ended, which is none.
fn dump(work: &Work<'_>, (name, label): &(String, String), found: &DumpFolder) -> Option<Item> {
    found.manifest?;
    let keys = DumpKeys::new(&work.request.cluster, name);
    let mut item =
        Item::new(Beside::Dump, &folder_of(&keys.manifest(label)), keys.manifest(label), keys.data(label));
    item.verified.name = format!("{name} {label}");
    let manifest: DumpManifest = match document(work, &item.manifest) {
        Document::Gone => return None,
        Document::Bad(problem) => return Some(Item { problem: Some(problem), ..item }),
        Document::Read(manifest) => manifest,
    };
    item.verified.stored = manifest.size;
    if (&manifest.cluster, &manifest.name, &manifest.label) != (&work.request.cluster, name, label) {
        item.damaged(format!(
            "it says that it is {} {} of cluster {}",
            manifest.name, manifest.label, manifest.cluster
        ));
    } else {
        item.has_size(found.data);
    }
    item.expected = Some(Expected::Dump(manifest.data_blake3));
    Some(item)
}

/// A manifest as it is found.
enum Document<T> {
    /// It was removed since it was listed.
    Gone,
    Bad(Problem),
    Read(T),
}

fn document<T: Serialize + serde::de::DeserializeOwned>(work: &Work<'_>, key: &Key) -> Document<T> {
    match repo::wait(work.repo.read(key)) {
        Ok(None) => Document::Gone,
        Err(error) => Document::Bad(Problem::unreadable(key.clone(), &error)),
        Ok(Some(bytes)) => match seal::read_document(&bytes) {
            Ok(manifest) => Document::Read(manifest),
            Err(error) => Document::Bad(Problem::new(ProblemKind::Damaged, key.clone(), error.to_string())),
        },
    }
}

/// Reads what was stored, and says what of it is not what the manifest says.
fn read(work: &Work<'_>, item: &Item) -> Option<Problem> {
    let expected = item.expected.as_ref()?;
    let wrong = match (expected, work.request.depth) {
        (Expected::Rows(manifest), VerifyDepth::Full) => rows(work, item, manifest),
        (Expected::Rows(manifest), VerifyDepth::Quick | VerifyDepth::Sampled) => {
            bytes(work, item, manifest.stored_blake3)
        }
        (Expected::Dump(hash), _) => bytes(work, item, *hash),
    };
    work.done(item.verified.stored.0);
    let (kind, why) = wrong.err()?;
    // What has expired meanwhile is not missing.
    let is_gone =
        kind == ProblemKind::Missing && matches!(repo::wait(work.repo.read(&item.manifest)), Ok(None));
    (!is_gone).then(|| Problem::new(kind, item.object.clone(), why))
}

type Wrong = (ProblemKind, String);

fn is_not_there() -> Wrong {
    (ProblemKind::Missing, "it is not there".to_owned())
}

/// Holds an object as it is stored against its hash.
fn bytes(work: &Work<'_>, item: &Item, expected: Blake3) -> Result<(), Wrong> {
    let mut hash = blake3::Hasher::new();
    let mut at = 0;
    while at < item.verified.stored.0 && !work.is_stopped() {
        let piece = repo::wait(work.repo.read_range(&item.object, at, PIECE));
        let piece = piece.map_err(|error| (ProblemKind::of(&error), error.why))?.ok_or_else(is_not_there)?;
        if piece.is_empty() {
            return Err((ProblemKind::Damaged, format!("it ends after {at} bytes")));
        }
        hash.update(&piece);
        at += piece.len() as u64;
    }
    if work.is_stopped() || Blake3::from_bytes(*hash.finalize().as_bytes()) == expected {
        return Ok(());
    }
    Err((ProblemKind::Damaged, "it does not have the hash that the manifest says".to_owned()))
}

/// Decompresses rows, counts them, and holds them and the object against the manifest.
fn rows(work: &Work<'_>, item: &Item, manifest: &ExportManifest) -> Result<(), Wrong> {
    let wrong = |error: ReadError| match error {
        ReadError::Repo(error) => (ProblemKind::of(&error), error.why),
        ReadError::Missing(..) => is_not_there(),
        ReadError::Damaged(_, _, error) => (ProblemKind::Damaged, format!("it does not decompress: {error}")),
    };
    let damaged = |why: String| Err((ProblemKind::Damaged, why));
    let mut reader = Reader::begin(&**work.repo, &item.object)
        .map_err(|error| (ProblemKind::Unreadable, error.what().to_owned()))?;
    while reader.next().map_err(wrong)?.is_some() {
        if work.is_stopped() {
            return Ok(());
        }
    }
    let (seen, stored, hash) = reader.seen();
    if (stored, hash) != (manifest.stored, manifest.stored_blake3) {
        return damaged("it does not have the hash that the manifest says".to_owned());
    }
    if seen.rows != manifest.rows {
        return damaged(format!("it holds {} rows, the manifest says {}", seen.rows, manifest.rows));
    }
    if (seen.size, seen.content) != (manifest.size, manifest.content_blake3) {
        return damaged("its rows are not those that the manifest says".to_owned());
    }
    Ok(())
}

impl Item {
    fn new(kind: Beside, folder: &Key, manifest: Key, object: Key) -> Self {
        let verified = BesideVerified {
            kind,
            name: folder.to_string(),
            folder: folder.clone(),
            verdict: Verdict::Sound,
            why: None,
            rows: None,
            stored: ByteCount(0),
            read: false,
        };
        Self { verified, manifest, object, expected: None, problem: None }
    }

    /// The manifest is not the one of this place.
    fn damaged(&mut self, why: String) {
        self.problem = Some(Problem::new(ProblemKind::Damaged, self.manifest.clone(), why));
    }

    /// Holds what a listing says against the manifest.
    fn has_size(&mut self, listed: Option<ByteCount>) {
        let expected = self.verified.stored;
        let found = match listed {
            None => Some((ProblemKind::Missing, "it is not there".to_owned())),
            Some(size) if size != expected => {
                Some((ProblemKind::Damaged, format!("it has {} bytes, expected {}", size.0, expected.0)))
            }
            Some(_) => None,
        };
        self.problem = found.map(|(kind, why)| Problem::new(kind, self.object.clone(), why));
    }
}
