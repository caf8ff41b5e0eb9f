use std::sync::Arc;

use super::*;
use crate::ops::backup::pin::{self, Pin};
use crate::ops::backup::trial::{CLUSTER, Trial};
use crate::ops::backup::verify::{self, Verdict, Verified};
use crate::ops::node::{VerifyBackups, VerifyDepth};
use crate::repo::RepoErrorKind;
use crate::repo::faulty::{Fault, Faulty};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Two backups, the WAL from before the first one to behind the second one, a history file, an export and a dump.
fn whole(trial: &Trial) -> [Label; 2] {
    let labels = [trial.back_up(at("2026-06-01T12:00:00Z"), 2), trial.back_up(at("2026-06-02T12:00:00Z"), 4)];
    trial.archive(1..=6);
    trial.store_wal("00000002.history".parse().unwrap(), b"1\t0/600000\tno recovery target specified\n");
    trial.export("events_2019_11");
    trial.dump();
    labels
}

fn request(from: &Trial, to: &Trial, labels: &[Label]) -> CopyBackups {
    CopyBackups {
        from: from.location(),
        to: to.location(),
        cluster: CLUSTER.to_owned(),
        labels: labels.to_vec(),
        workers: 2,
    }
}

async fn copied(from: &Trial, to: &Trial, labels: &[Label]) -> Result<Transferred> {
    let repos = (from.repo.clone(), to.repo.clone());
    run_in(repos, &request(from, to, labels), &Reporter::new(|_| Ok(()))).await
}

/// Reads every byte of what a copy has made.
async fn verified(trial: &Trial) -> Verified {
    let request = VerifyBackups {
        repository: trial.location(),
        cluster: CLUSTER.to_owned(),
        labels: Vec::new(),
        depth: VerifyDepth::Full,
        seed: 7,
        workers: 2,
    };
    verify::run_in(trial.repo.clone(), &request, &Reporter::new(|_| Ok(()))).await.unwrap()
}

fn names(trial: &Trial) -> Vec<String> {
    let objects = trial.objects().into_iter().map(String::from);
    objects.filter(|key| !key.contains("/lease/") && !key.contains("key")).collect()
}

/// What a killed process has left is nobody's; here the process lives on.
fn forget_leases(trial: &Trial) {
    for listed in wait(trial.repo.list_all(&Trial::system().leases())).unwrap() {
        wait(trial.repo.remove(&listed.key)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_restore_needs_is_there_afterwards_whether_it_is_encrypted_here_or_there() {
    for (from, to) in [
        (Trial::new(), Trial::new()),
        (Trial::new(), Trial::encrypted()),
        (Trial::encrypted(), Trial::new()),
        (Trial::encrypted(), Trial::encrypted()),
    ] {
        let labels = whole(&from);
        let first = copied(&from, &to, &[]).await.unwrap();
        let told: Vec<&Label> = first.backups.iter().map(|backup| &backup.label).collect();
        assert_eq!(told, labels.iter().collect::<Vec<_>>());
        // Segment 1 is from before the oldest backup.
        assert_eq!((first.wal, first.exports, first.there, first.left.len()), (6, 1, 0, 0));
        let mut expected = names(&from);
        expected.retain(|key| !key.contains("_dumps") && !key.contains(&Trial::segment(1).to_string()));
        assert_eq!(names(&to), expected);
        let seen = verified(&to).await;
        assert_eq!((seen.verdict, seen.problems), (Verdict::Sound, Vec::new()));

        let again = copied(&from, &to, &[]).await.unwrap();
        assert_eq!((again.backups.len(), again.wal, again.exports, again.there), (0, 0, 0, 2));
        assert_eq!(again.stored, ByteCount(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_ends_at_any_call_leaves_only_whole_backups_and_the_next_one_goes_on() {
    for side in ["from", "to"] {
        let mut number = 1;
        loop {
            let (from, to) = (Trial::new(), Trial::new());
            whole(&from);
            let dead =
                move |call: u64, _: &str| (call >= number).then_some(Fault::Before(RepoErrorKind::Other));
            let faulty = |trial: &Trial, on: bool| -> SharedRepo {
                if on { Arc::new(Faulty::new(trial.repo.clone(), dead)) } else { trial.repo.clone() }
            };
            let repos = (faulty(&from, side == "from"), faulty(&to, side == "to"));
            let ended = run_in(repos, &request(&from, &to, &[]), &Reporter::new(|_| Ok(()))).await;
            for trial in [&from, &to] {
                forget_leases(trial);
            }
            if let Ok(transferred) = ended {
                // It has lived for long enough; the lease alone was not given back.
                assert_eq!(transferred.backups.len(), 2);
                break;
            }
            if names(&to).iter().any(|key| key.ends_with("full/manifest.json")) {
                let seen = verified(&to).await;
                assert!(
                    seen.backups.iter().all(|backup| backup.verdict == Verdict::Sound),
                    "{side} {number}"
                );
                assert_eq!(seen.lost, Vec::new(), "{side} {number}");
            }
            copied(&from, &to, &[]).await.unwrap_or_else(|error| panic!("{side} {number}: {error:?}"));
            assert_eq!(verified(&to).await.verdict, Verdict::Sound, "{side} {number}");
            number += 1;
        }
        assert!(number > 20, "{side}: {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_copy_brought_is_taken_over_only_if_it_is_the_same() {
    let (from, to) = (Trial::new(), Trial::new());
    let labels = whole(&from);
    let keys = Trial::system().backup(&labels[0]);
    copied(&from, &to, &labels[..1]).await.unwrap();
    to.repo.remove(&keys.manifest()).await.unwrap();
    let all = copied(&from, &to, &labels[..1]).await.unwrap();
    assert_eq!(all.backups[0].taken_over, all.backups[0].stored);

    to.repo.remove(&keys.manifest()).await.unwrap();
    to.flip(&keys.data(1), 77);
    let some = copied(&from, &to, &labels[..1]).await.unwrap();
    let second = std::fs::metadata(to.path(&keys.data(2))).unwrap().len();
    assert_eq!(some.backups[0].taken_over, ByteCount(second));
    assert_eq!(verified(&to).await.verdict, Verdict::Sound);

    // Encrypted, the repository itself says that it is damaged.
    let to = Trial::encrypted();
    copied(&from, &to, &labels[..1]).await.unwrap();
    to.repo.remove(&keys.manifest()).await.unwrap();
    to.flip(&keys.data(1), 777);
    assert!(copied(&from, &to, &labels[..1]).await.unwrap().backups[0].taken_over < all.backups[0].stored);
    assert_eq!(verified(&to).await.verdict, Verdict::Sound);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_damaged_becomes_a_backup_elsewhere() {
    for made in [Trial::new as fn() -> Trial, Trial::encrypted] {
        let pristine = made();
        let labels = whole(&pristine);
        // A damaged key document may be one of another key.
        for key in pristine.objects().into_iter().filter(|key| !key.as_str().contains("key")) {
            let is_ours = key.as_str().contains("/backup/")
                || key.as_str().contains("/wal/")
                || key.as_str().contains("/partition/");
            let used = is_ours && !key.as_str().contains(&Trial::segment(1).to_string());
            let bits = std::fs::metadata(pristine.path(&key)).unwrap().len() * 8;
            for bit in [9, bits / 2, bits - 3] {
                let (from, to) = (made(), Trial::new());
                whole(&from);
                from.flip(&key, usize::try_from(bit).unwrap());
                let transferred = copied(&from, &to, &[]).await.unwrap();
                assert_eq!(!transferred.is_whole(), used, "{key} {bit}: {transferred:?}");
                // What is damaged stays out, and what needs it.
                let needed = [2, 4].map(|number| Trial::segment(number).to_string());
                let concerned = labels.iter().zip(needed).map(|(label, segment)| {
                    key.as_str().contains(label.as_str()) || key.as_str().contains(&segment)
                });
                let stay: Vec<&Label> = labels
                    .iter()
                    .zip(concerned)
                    .filter(|(_, of_it)| !of_it)
                    .map(|(label, _)| label)
                    .collect();
                let brought: Vec<&Label> = transferred.backups.iter().map(|backup| &backup.label).collect();
                assert_eq!(brought, stay, "{key} {bit}");
                assert_eq!(transferred.left.len() + stay.len(), 2, "{key} {bit}");
                forget_leases(&to);
                if !names(&to).is_empty() && names(&to).iter().any(|key| key.ends_with("full/manifest.json"))
                {
                    let seen = verified(&to).await;
                    assert!(
                        seen.backups.iter().all(|backup| backup.verdict == Verdict::Sound),
                        "{key} {bit}"
                    );
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_is_left_out_and_told_and_the_others_are_copied() {
    let (from, to) = (Trial::new(), Trial::new());
    let labels = whole(&from);
    from.repo.remove(&Trial::system().backup(&labels[0]).data(2)).await.unwrap();
    let transferred = copied(&from, &to, &[]).await.unwrap();
    assert_eq!(transferred.backups.len(), 1);
    assert_eq!(transferred.left[0].label, labels[0]);
    assert!(transferred.left[0].why.contains("data"), "{:?}", transferred.left);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_copies_into_a_repository_and_none_into_itself() {
    let (from, to) = (Trial::new(), Trial::new());
    let labels = whole(&from);
    let held = Held::take_for_copy(&to.repo, &Trial::system(), Vec::new()).await.unwrap();
    let error = copied(&from, &to, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(error.what(), "backups of cluster inventory are being copied here");
    held.release().await.unwrap();
    assert_eq!(copied(&from, &from, &[]).await.unwrap_err().kind(), ErrorKind::Refused);
    // Without a segment that it needs it is no backup.
    from.repo.remove(&Trial::system().wal(WalFile::Segment(Trial::segment(4)))).await.unwrap();
    let transferred = copied(&from, &to, &[]).await.unwrap();
    assert_eq!((transferred.backups.len(), &transferred.left[0].label), (1, &labels[1]));
    assert!(transferred.left[0].why.contains(&Trial::segment(4).to_string()), "{transferred:?}");
    let unknown: Label = "20200101T000000Z-full".parse().unwrap();
    assert_eq!(copied(&from, &to, &[unknown]).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_went_on_after_an_abort_is_copied_under_the_numbers_that_it_has() {
    let (from, to) = (Trial::new(), Trial::new());
    let label = whole(&from)[0].clone();
    let keys = Trial::system().backup(&label);
    let manifest: Manifest =
        seal::read_document(&from.repo.read(&keys.manifest()).await.unwrap().unwrap()).unwrap();
    let identity =
        Identity { kind: Kind::Files, name: label.as_str(), system_identifier: Trial::system().system() };
    let files = from.repo.read(&keys.files()).await.unwrap().unwrap();
    let mut contents = Contents::read(&seal::open(identity, &files).unwrap()).unwrap();
    // The second object is of another run than the first.
    let second = from.repo.read(&keys.data(2)).await.unwrap().unwrap();
    from.repo.store(&keys.data(100_001), &second).await.unwrap();
    from.repo.remove(&keys.data(2)).await.unwrap();
    contents.objects[1].number = Some(100_001);
    for chunk in contents.chunks.iter_mut().filter(|chunk| chunk.object == 2) {
        chunk.object = 100_001;
    }
    from.repo.remove(&keys.manifest()).await.unwrap();
    from.commit(manifest, &contents);
    copied(&from, &to, &[]).await.unwrap();
    assert!(to.path(&keys.data(100_001)).exists() && !to.path(&keys.data(2)).exists());
    assert_eq!(verified(&to).await.verdict, Verdict::Sound);
}

/// An interrupted copy of a backup lies there, and somebody, an expiry or the next backup, has just begun to remove it.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_over_nothing_that_is_being_removed() {
    for to in [Trial::new(), Trial::encrypted()] {
        let from = Trial::new();
        let labels = whole(&from);
        let keys = Trial::system().backup(&labels[0]);
        copied(&from, &to, &labels[..1]).await.unwrap();
        to.repo.remove(&keys.manifest()).await.unwrap();
        let expiry =
            Held::take(&to.repo, &Trial::system(), Purpose::Expire, labels[..1].to_vec()).await.unwrap();
        let lease = Trial::system().lease("copy");
        let (ended, ()) = tokio::join!(copied(&from, &to, &labels[..1]), async {
            let begun = std::time::Instant::now();
            while to.repo.read(&lease).await.unwrap().is_none() {
                assert!(begun.elapsed().as_secs() < 60, "the copy has not begun");
                tokio::task::yield_now().await;
            }
            for listed in to.repo.list_all(keys.folder()).await.unwrap() {
                to.repo.remove(&listed.key).await.unwrap();
            }
            expiry.release().await.unwrap();
        });
        assert_eq!(ended.unwrap().backups[0].taken_over, ByteCount(0));
        assert_eq!(verified(&to).await.verdict, Verdict::Sound);
    }
}

/// Whoever is stopped for longer than its lease lives may find less than it has brought.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_before_the_manifest_comes_is_no_backup() {
    let plain = ["data/000001", "files.zst", "wal/"].map(|object| (false, object));
    for (encrypted, object) in plain.into_iter().chain([(true, "key.json")]) {
        let from = Trial::new();
        let to = if encrypted { Trial::encrypted() } else { Trial::new() };
        let labels = whole(&from);
        let keys = Trial::system().backup(&labels[0]);
        let manifest = keys.manifest();
        let (folder, wal) = (keys.folder().clone(), Trial::system().wal_folder());
        let inner = to.repo.clone();
        // Before the folder is listed for the last time.
        let thief = move |_: u64, call: &str| {
            if call == format!("list {folder}") && wait(inner.read(&manifest)).unwrap().is_none() {
                for below in [&folder, &wal] {
                    for listed in wait(inner.list_all(below)).unwrap() {
                        if listed.key.as_str().contains(object) {
                            wait(inner.remove(&listed.key)).unwrap();
                        }
                    }
                }
            }
            None
        };
        let repos: (SharedRepo, SharedRepo) =
            (from.repo.clone(), Arc::new(Faulty::new(to.repo.clone(), thief)));
        let request = request(&from, &to, &labels[..1]);
        let ended = run_in(repos, &request, &Reporter::new(|_| Ok(()))).await;
        assert!(!ended.is_ok_and(|transferred| transferred.is_whole()), "{object}");
        assert!(
            to.repo.list_all(keys.folder()).await.unwrap().iter().all(|found| found.key != keys.manifest())
        );
        copied(&from, &to, &labels[..1]).await.unwrap();
        assert_eq!(verified(&to).await.verdict, Verdict::Sound, "{object}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_has_lost_something_in_the_other_repository_is_made_whole_there() {
    for to in [Trial::new(), Trial::encrypted()] {
        let from = Trial::new();
        let labels = whole(&from);
        copied(&from, &to, &[]).await.unwrap();
        let keys = Trial::system().backup(&labels[0]);
        for lost in [keys.data(2), keys.files()] {
            to.repo.remove(&lost).await.unwrap();
            let again = copied(&from, &to, &[]).await.unwrap();
            assert!(again.is_whole() && again.backups.len() == 1, "{lost}: {again:?}");
            assert_eq!(verified(&to).await.verdict, Verdict::Sound, "{lost}");
        }
        to.flip(&keys.manifest(), 900);
        let again = copied(&from, &to, &[]).await.unwrap();
        assert_eq!((again.backups.len(), again.backups[0].taken_over), (1, again.backups[0].stored));
        assert_eq!(verified(&to).await.verdict, Verdict::Sound);
        // What is another backup is not replaced.
        let path = keys.manifest();
        let bytes = to.repo.read(&path).await.unwrap().unwrap();
        let other = Manifest { node: "b".to_owned(), ..seal::read_document(&bytes).unwrap() };
        to.repo.store(&path, &seal::write_document(&other)).await.unwrap();
        to.repo.remove(&keys.data(2)).await.unwrap();
        let refused = copied(&from, &to, &[]).await.unwrap();
        assert!(refused.left[0].why.contains("another backup"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_backup_is_pinned_in_the_other_repository_unless_it_is_pinned_there_already() {
    for to in [Trial::new(), Trial::encrypted()] {
        let from = Trial::new();
        let labels = whole(&from);
        let key = Trial::system().backup(&labels[0]).pin();
        let read = async |trial: &Trial| {
            let bytes = trial.repo.read(&key).await.unwrap();
            bytes.map(|bytes| seal::read_document::<Pin>(&bytes).unwrap().reason)
        };
        pin::pin(&from.repo, CLUSTER, &labels[0], None, "audit").await.unwrap();
        assert_eq!(copied(&from, &to, &[]).await.unwrap().pins, 1);
        assert_eq!(read(&to).await.unwrap(), "audit");
        assert_eq!(copied(&from, &to, &[]).await.unwrap().pins, 0);

        // One that was copied before comes to its pin as well, and keeps the one that it has.
        pin::unpin(&*to.repo, CLUSTER, &labels[0]).await.unwrap();
        assert_eq!(copied(&from, &to, &labels[1..]).await.unwrap().pins, 0);
        assert_eq!(copied(&from, &to, &[]).await.unwrap().pins, 1);
        pin::pin(&to.repo, CLUSTER, &labels[0], None, "here").await.unwrap();
        assert_eq!(copied(&from, &to, &[]).await.unwrap().pins, 0);
        assert_eq!(read(&to).await.unwrap(), "here");

        // One that is over keeps nothing, wherever it is.
        let bytes = to.repo.read(&key).await.unwrap().unwrap();
        let over = Pin { until: Some(Timestamp::UNIX_EPOCH), ..seal::read_document(&bytes).unwrap() };
        to.repo.store(&key, &seal::write_document(&over)).await.unwrap();
        assert_eq!(copied(&from, &to, &[]).await.unwrap().pins, 1);
        assert_eq!(read(&to).await.unwrap(), "audit");
        from.repo.store(&key, &seal::write_document(&over)).await.unwrap();
        to.repo.remove(&key).await.unwrap();
        assert_eq!(copied(&from, &to, &[]).await.unwrap().pins, 0);
        assert!(read(&to).await.is_none());

        from.flip(&key, 300);
        let told = copied(&from, &to, &[]).await.unwrap();
        assert_eq!(told.left_objects[0].object, key);
    }
}

/// Its lease comes too late for what was removed before; that is no damage.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_where_it_is_copied_from_while_a_copy_begins_is_no_failure() {
    let (from, to) = (Trial::new(), Trial::new());
    let labels = whole(&from);
    let (inner, old) = (from.repo.clone(), Trial::system().backup(&labels[0]).folder().clone());
    let expiry = move |_: u64, call: &str| {
        if call.starts_with("store") && call.contains("/lease/") {
            for listed in wait(inner.list_all(&old)).unwrap() {
                wait(inner.remove(&listed.key)).unwrap();
            }
        }
        None
    };
    let repos: (SharedRepo, SharedRepo) = (Arc::new(Faulty::new(from.repo.clone(), expiry)), to.repo.clone());
    let transferred = run_in(repos, &request(&from, &to, &[]), &Reporter::new(|_| Ok(()))).await.unwrap();
    assert!(transferred.is_whole(), "{transferred:?}");
    assert_eq!(transferred.backups.iter().map(|backup| &backup.label).collect::<Vec<_>>(), [&labels[1]]);
    assert_eq!(verified(&to).await.verdict, Verdict::Sound);
}
