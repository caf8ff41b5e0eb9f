use std::fs;
use std::sync::Arc;

use super::*;
use crate::engine::lease;
use crate::ops::backup::pin;
use crate::ops::backup::trial::{CLUSTER, Trial};
use crate::repo::RepoErrorKind;
use crate::repo::faulty::{Fault, Faulty};
use crate::repo::layout::ClusterKeys;

fn request(trial: &Trial, depth: VerifyDepth) -> VerifyBackups {
    VerifyBackups {
        repository: trial.location(),
        cluster: CLUSTER.to_owned(),
        labels: Vec::new(),
        depth,
        seed: 7,
        workers: 2,
    }
}

async fn verified(trial: &Trial, depth: VerifyDepth) -> Verified {
    run_in(trial.repo.clone(), &request(trial, depth), &Reporter::new(|_| Ok(()))).await.unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Two backups and the WAL from before the first one to behind the second one; a pin, a lease, a history file, a lock.
async fn whole() -> (Trial, [Label; 2]) {
    whole_in(Trial::new()).await
}

async fn whole_in(trial: Trial) -> (Trial, [Label; 2]) {
    let labels = [trial.back_up(at("2026-06-01T12:00:00Z"), 2), trial.back_up(at("2026-06-02T12:00:00Z"), 4)];
    trial.archive(1..=6);
    trial.store_wal("00000002.history".parse().unwrap(), b"1\t0/600000\tno recovery target specified\n");
    trial.export("events_2019_11");
    trial.dump();
    pin::pin(&trial.repo, CLUSTER, &labels[0], None, "audit").await.unwrap();
    let lock = seal::write_document(&serde_json::json!({"format": 1, "by": "dba"}));
    trial.repo.store(&ClusterKeys::new(CLUSTER).lock(), &lock).await.unwrap();
    let lease = serde_json::json!({"format": 1, "by": "dba"});
    trial.repo.store(&Trial::system().lease("7f3a"), &seal::write_document(&lease)).await.unwrap();
    (trial, labels)
}

#[tokio::test]
async fn a_whole_repository_is_sound_at_every_depth() {
    for trial in [Trial::new(), Trial::encrypted()] {
        is_sound_at_every_depth(whole_in(trial).await.0).await;
    }
}

async fn is_sound_at_every_depth(trial: Trial) {
    for (depth, chunks, files, wal) in
        [(VerifyDepth::Quick, 0, 0, 0), (VerifyDepth::Sampled, 3, 0, 7), (VerifyDepth::Full, 3, 4, 7)]
    {
        // A lease that we do not know the fields of is not damaged, and keeps nobody from looking.
        let verified = verified(&trial, depth).await;
        assert_eq!(verified.problems, [], "{depth:?}");
        assert_eq!(verified.verdict, Verdict::Sound);
        assert_eq!((verified.lost.len(), verified.strays.len()), (0, 0));
        for backup in &verified.backups {
            assert_eq!((backup.chunks_read, backup.files_read), (chunks, files), "{depth:?}");
        }
        assert_eq!(verified.wal[0].files_read, wal, "{depth:?}");
        let beside: Vec<_> =
            verified.beside.iter().map(|one| (one.kind, one.name.as_str(), one.rows, one.read)).collect();
        let read = depth != VerifyDepth::Quick;
        let export = (Beside::Export, "orders.events_2019_11", Some(500), read);
        assert_eq!(beside, [export, (Beside::Dump, "legal 20261121T100203Z", None, read)], "{depth:?}");
    }
    let leases = lease::read_all(&trial.repo, &Trial::system()).await.unwrap();
    assert_eq!(leases.len(), 1, "its own lease is given back");
}

#[tokio::test]
async fn every_flipped_bit_is_found_at_full_depth() {
    for trial in [Trial::new(), Trial::encrypted()] {
        finds_every_flipped_bit(whole_in(trial).await.0).await;
    }
}

async fn finds_every_flipped_bit(trial: Trial) {
    let mut objects = trial.objects();
    objects.push(layout::repository());
    let mut chance = Chance::new(20_261_121, "flips");
    for key in &objects {
        let size = fs::metadata(trial.path(key)).unwrap().len() * 8;
        // Every object, and each in its first and last bit.
        let mut bits = vec![0, size - 1];
        bits.extend((0..12).map(|_| chance.next() % size));
        for bit in bits.into_iter().map(|bit| usize::try_from(bit).unwrap()) {
            trial.flip(key, bit);
            let verified = verified(&trial, VerifyDepth::Full).await;
            assert_eq!(verified.verdict, Verdict::Damaged, "bit {bit} of {key}");
            assert!(
                verified.problems.iter().any(|problem| problem.object == *key),
                "bit {bit} of {key}: {:?}",
                verified.problems
            );
            trial.flip(key, bit);
        }
    }
    assert_eq!(verified(&trial, VerifyDepth::Full).await.verdict, Verdict::Sound);
}

#[tokio::test]
async fn a_missing_or_cut_data_object_is_found_at_every_depth_with_the_files_that_it_costs() {
    let (trial, labels) = whole().await;
    let key = Trial::system().backup(&labels[1]).data(2);
    let bytes = fs::read(trial.path(&key)).unwrap();
    for depth in [VerifyDepth::Quick, VerifyDepth::Sampled, VerifyDepth::Full] {
        for (cut, kind) in [(None, ProblemKind::Missing), (Some(5), ProblemKind::Damaged)] {
            match cut {
                None => fs::remove_file(trial.path(&key)).unwrap(),
                Some(length) => fs::write(trial.path(&key), &bytes[..length]).unwrap(),
            }
            let verified = verified(&trial, depth).await;
            fs::write(trial.path(&key), &bytes).unwrap();
            let [problem] = verified.problems.as_slice() else { panic!("{:?}", verified.problems) };
            assert_eq!((problem.kind, &problem.object), (kind, &key), "{depth:?}");
            assert_eq!(problem.files, ["base/5/16384"]);
            let verdicts: Vec<Verdict> = verified.backups.iter().map(|backup| backup.verdict).collect();
            assert_eq!(verdicts, [Verdict::Sound, Verdict::Damaged]);
            assert_eq!(verified.lost, [], "the first backup reaches everything");
        }
    }
}

#[tokio::test]
async fn a_missing_segment_costs_the_time_up_to_the_next_backup() {
    let (trial, labels) = whole().await;
    let key = Trial::system().wal(WalFile::Segment(Trial::segment(3)));
    fs::remove_file(trial.path(&key)).unwrap();
    for depth in [VerifyDepth::Quick, VerifyDepth::Full] {
        let verified = verified(&trial, depth).await;
        assert_eq!(verified.problems.iter().map(|problem| &problem.object).collect::<Vec<_>>(), [&key]);
        assert_eq!(verified.problems[0].kind, ProblemKind::Missing);
        let [lost] = verified.lost.as_slice() else { panic!("{:?}", verified.lost) };
        assert_eq!(
            (lost.from_lsn.to_string(), lost.to_lsn.to_string()),
            ("0/300000".to_owned(), "0/400000".to_owned())
        );
        assert!(verified.backups.iter().all(|backup| backup.verdict == Verdict::Sound));
    }
    // One that a backup needs to become consistent.
    let key = Trial::system().wal(WalFile::Segment(Trial::segment(4)));
    fs::remove_file(trial.path(&key)).unwrap();
    let verified = verified(&trial, VerifyDepth::Quick).await;
    let second = verified.backups.iter().find(|backup| backup.label == labels[1]).unwrap();
    assert_eq!(second.verdict, Verdict::Damaged);
    assert!(second.why.as_ref().unwrap().contains("000000010000000000000004"), "{second:?}");
    let asked = VerifyBackups { labels: vec![labels[1].clone()], ..request(&trial, VerifyDepth::Quick) };
    let alone = run(&asked, &Reporter::new(|_| Ok(()))).await.unwrap();
    assert_eq!((alone.verdict, alone.backups.len()), (Verdict::Damaged, 1));
    assert_eq!(alone.problems.iter().map(|problem| &problem.object).collect::<Vec<_>>(), [&key]);
}

#[tokio::test]
async fn a_segment_of_another_place_under_a_whole_seal_is_damaged() {
    let (trial, _) = whole().await;
    trial.store_wal(WalFile::Segment(Trial::segment(5)), &Trial::wal(6));
    assert_eq!(verified(&trial, VerifyDepth::Quick).await.verdict, Verdict::Sound);
    let verified = verified(&trial, VerifyDepth::Full).await;
    assert!(verified.problems[0].why.contains("its name says 0/500000"), "{:?}", verified.problems);
}

#[tokio::test]
async fn what_is_gone_with_all_backups_of_a_time_is_said() {
    let (trial, labels) = whole().await;
    let key = Trial::system().backup(&labels[0]).files();
    trial.flip(&key, 77);
    let verified = verified(&trial, VerifyDepth::Quick).await;
    let [lost] = verified.lost.as_slice() else { panic!("{:?}", verified.lost) };
    assert_eq!(
        (lost.from_lsn.to_string(), lost.to_lsn.to_string()),
        ("0/200000".to_owned(), "0/400000".to_owned())
    );
}

#[tokio::test]
async fn a_history_file_that_is_missing_is_missed() {
    let (trial, _) = whole().await;
    trial.store_wal("000000020000000000000006".parse().unwrap(), &Trial::wal(6));
    assert_eq!(verified(&trial, VerifyDepth::Quick).await.verdict, Verdict::Sound);
    let key = Trial::system().wal("00000002.history".parse().unwrap());
    fs::remove_file(trial.path(&key)).unwrap();
    let verified = verified(&trial, VerifyDepth::Quick).await;
    assert_eq!(verified.problems.iter().map(|problem| &problem.object).collect::<Vec<_>>(), [&key]);
}

/// Verifies with calls that fail; `fails` is told what is done, such as `read KEY`.
async fn with_failing(trial: &Trial, fails: impl Fn(&str) -> bool + Send + Sync + 'static) -> Verified {
    let fault = move |_, call: &str| fails(call).then_some(Fault::Before(RepoErrorKind::Denied));
    let repo: SharedRepo = Arc::new(Faulty::new(trial.repo.clone(), fault));
    run_in(repo, &request(trial, VerifyDepth::Full), &Reporter::new(|_| Ok(()))).await.unwrap()
}

#[tokio::test]
async fn what_cannot_be_read_is_neither_sound_nor_damaged() {
    let (trial, labels) = whole().await;
    let backup = Trial::system().backup(&labels[0]);
    for key in [
        backup.data(1),
        backup.files(),
        backup.manifest(),
        backup.pin(),
        Trial::system().wal(WalFile::Segment(Trial::segment(3))),
        Trial::system().wal("00000002.history".parse().unwrap()),
        ClusterKeys::new(CLUSTER).lock(),
        layout::repository(),
    ] {
        let call = format!("read {key}");
        let verified = with_failing(&trial, move |made| made == call).await;
        assert_eq!(verified.verdict, Verdict::CannotTell, "{key}: {:?}", verified.problems);
        let found: Vec<_> = verified.problems.iter().map(|problem| (problem.kind, &problem.object)).collect();
        assert_eq!(found, [(ProblemKind::Unreadable, &key)]);
        assert_eq!(verified.lost, [], "{key}");
    }
}

#[tokio::test]
async fn what_another_key_would_open_is_neither_sound_nor_damaged() {
    let (trial, _) = whole_in(Trial::encrypted()).await;
    let (repo, request) = (trial.with_another_key(), request(&trial, VerifyDepth::Full));
    let verified = run_in(repo, &request, &Reporter::new(|_| Ok(()))).await.unwrap();
    assert_eq!(verified.verdict, Verdict::CannotTell, "{:?}", verified.problems);
    assert!(
        verified.problems.iter().all(|problem| problem.kind == ProblemKind::Unreadable),
        "{:?}",
        verified.problems
    );
    assert!(verified.problems[0].why.contains("the keys given are"), "{:?}", verified.problems[0]);
}

#[tokio::test]
async fn what_cannot_be_listed_is_not_missing() {
    let (trial, labels) = whole().await;
    let segments = Trial::system().wal(WalFile::Segment(Trial::segment(3)));
    let folder = Key::new(segments.as_str().rsplit_once('/').unwrap().0).unwrap();
    for folder in [folder, Trial::system().wal_folder(), Trial::system().backup(&labels[0]).folder().clone()]
    {
        let (call, all) = (format!("list {folder}"), format!("list {CLUSTER}"));
        let turn = AtomicUsize::new(0);
        // Listing everything at once fails as well, as it does in a directory; listing the level of the cluster does not.
        let verified = with_failing(&trial, move |made| {
            made == call || made == all && turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2)
        });
        let verified = verified.await;
        assert_eq!(verified.verdict, Verdict::CannotTell, "{folder}: {:?}", verified.problems);
        assert!(verified.problems.iter().all(|problem| problem.kind == ProblemKind::Unreadable));
        assert_eq!(verified.lost, []);
    }
}

#[tokio::test]
async fn strays_and_unfinished_backups_are_told_and_wrong_nothing() {
    let (trial, _) = whole().await;
    let stray = Key::new(format!("{CLUSTER}/notes.txt")).unwrap();
    trial.repo.store(&stray, b"dear").await.unwrap();
    let label: Label = "20260603T120000Z-full".parse().unwrap();
    trial.repo.store(&Trial::system().backup(&label).data(1), b"half").await.unwrap();
    let verified = verified(&trial, VerifyDepth::Full).await;
    assert_eq!((verified.strays, verified.unfinished), (vec![stray], vec![label]));
    assert_eq!(verified.verdict, Verdict::Sound);
}

#[tokio::test]
async fn refuses_to_verify_nothing_and_what_is_being_removed() {
    let trial = Trial::new();
    let error = run(&request(&trial, VerifyDepth::Quick), &Reporter::new(|_| Ok(()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let (trial, labels) = whole().await;
    let keys = Trial::system();
    let held = Held::take(&trial.repo, &keys, Purpose::Expire, vec![labels[0].clone()]).await.unwrap();
    let error = run(&request(&trial, VerifyDepth::Quick), &Reporter::new(|_| Ok(()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    held.release().await.unwrap();
    assert_eq!(verified(&trial, VerifyDepth::Quick).await.verdict, Verdict::Sound);
}

#[tokio::test]
async fn nobody_who_listens_ends_it() {
    let (trial, _) = whole().await;
    let gone = Reporter::new(|_| Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
    let error = run(&request(&trial, VerifyDepth::Full), &gone).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[test]
fn a_seed_chooses_the_same_again() {
    let pick = |seed| Chance::new(seed, "x").pick(1000);
    assert_eq!(pick(1), pick(1));
    assert_ne!(pick(1), pick(2));
    assert_eq!(pick(1).len(), 42);
    assert_eq!(Chance::new(1, "x").pick(5), [0, 1, 2, 3, 4]);
    assert_eq!(Chance::new(1, "x").pick(0), Vec::<usize>::new());
}

#[tokio::test]
async fn an_export_or_a_dump_that_is_not_what_was_stored_is_named_at_the_depth_that_reads_it() {
    let (trial, _) = whole().await;
    let (export, dump) = (trial.export("events_2019_12"), trial.dump());
    for key in [export.rows(), dump] {
        let bytes = fs::read(trial.path(&key)).unwrap();
        let cuts: [(Option<Vec<u8>>, ProblemKind); 3] = [
            (None, ProblemKind::Missing),
            (Some(bytes[..5].to_vec()), ProblemKind::Damaged),
            (Some([&bytes[..7], &[bytes[7] ^ 16], &bytes[8..]].concat()), ProblemKind::Damaged),
        ];
        for (number, (cut, kind)) in cuts.into_iter().enumerate() {
            match cut {
                None => fs::remove_file(trial.path(&key)).unwrap(),
                Some(cut) => fs::write(trial.path(&key), cut).unwrap(),
            }
            for depth in [VerifyDepth::Quick, VerifyDepth::Sampled, VerifyDepth::Full] {
                let verified = verified(&trial, depth).await;
                // A listing shows no flipped bit.
                if number == 2 && depth == VerifyDepth::Quick {
                    assert_eq!(verified.problems, []);
                    continue;
                }
                let [problem] = verified.problems.as_slice() else { panic!("{:?}", verified.problems) };
                assert_eq!((problem.kind, &problem.object), (kind, &key), "{depth:?}");
                let damaged = verified.beside.iter().filter(|one| one.verdict == Verdict::Damaged);
                assert_eq!((damaged.count(), verified.verdict), (1, Verdict::Damaged));
                assert!(verified.backups.iter().all(|backup| backup.verdict == Verdict::Sound));
            }
            fs::write(trial.path(&key), &bytes).unwrap();
        }
    }
    // Rows in another place than their manifest says are not those of that place.
    let other = trial.export("events_2020_01");
    fs::copy(trial.path(&other.manifest()), trial.path(&export.manifest())).unwrap();
    let moved = verified(&trial, VerifyDepth::Quick).await;
    assert!(
        moved.problems[0].why.contains("it says that it is orders.events_2020_01"),
        "{:?}",
        moved.problems
    );
    // What has no manifest is none: one that is being made, or was cut off.
    fs::remove_file(trial.path(&export.manifest())).unwrap();
    assert_eq!(verified(&trial, VerifyDepth::Full).await.problems, []);
}

#[tokio::test]
async fn what_holds_no_backup_and_an_export_is_verified_all_the_same() {
    let trial = Trial::new();
    trial.export("events_2019_11");
    assert_eq!(verified(&trial, VerifyDepth::Full).await.verdict, Verdict::Sound);
    let none = run(&request(&Trial::new(), VerifyDepth::Full), &Reporter::new(|_| Ok(()))).await;
    assert_eq!(none.unwrap_err().kind(), ErrorKind::NotFound);
}
