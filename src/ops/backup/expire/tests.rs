use std::sync::Arc;

use super::*;
use crate::ops::backup::pin;
use crate::ops::backup::trial::{CLUSTER, Trial};
use crate::ops::backup::verify;
use crate::ops::node::{ExportsKept, VerifyBackups, VerifyDepth};
use crate::repo::faulty::{Fault, Faulty};
use crate::repo::{RepoErrorKind, seal};
use crate::topology::partitions::Keep;

/// Keeps the newest backup, and removes `agreed`.
fn request(trial: &Trial, agreed: Option<Vec<Label>>) -> ExpireBackups {
    let agreed = agreed.map(|backups| Agreed { backups, exports: Vec::new() });
    ExpireBackups {
        repository: trial.location(),
        cluster: CLUSTER.to_owned(),
        window: None,
        keep_full: Some(1),
        minimum_full: 1,
        exports: Vec::new(),
        agreed,
    }
}

fn listening() -> Reporter {
    Reporter::new(|_| Ok(()))
}

/// Backups of four days, whose WAL begins at segments 2, 4, 6 and 8 of 0 to 9.
fn four_days() -> (Trial, Vec<Label>) {
    four_days_in(Trial::new())
}

fn four_days_in(trial: Trial) -> (Trial, Vec<Label>) {
    let day = |day: u64| format!("2026-06-0{day}T12:00:00Z").parse().unwrap();
    let labels = (1..=4).map(|number| trial.back_up(day(number), number * 2)).collect();
    trial.archive(0..=9);
    (trial, labels)
}

async fn is_sound(trial: &Trial) -> Vec<Label> {
    let request = VerifyBackups {
        repository: trial.location(),
        cluster: CLUSTER.to_owned(),
        labels: Vec::new(),
        depth: VerifyDepth::Full,
        seed: 1,
        workers: 1,
    };
    let verified = verify::run_in(trial.repo.clone(), &request, &listening()).await.unwrap();
    assert_eq!(verified.verdict, verify::Verdict::Sound, "{:?}", verified.problems);
    verified.backups.into_iter().map(|backup| backup.label).collect()
}

#[tokio::test]
async fn a_look_removes_nothing_and_the_second_removal_finds_nothing() {
    let (trial, labels) = four_days();
    let before = trial.objects();
    let looked = run(&request(&trial, None), &listening()).await.unwrap();
    assert_eq!(trial.objects(), before);
    let going: Vec<Label> = looked.decision.going().map(|verdict| verdict.label.clone()).collect();
    assert_eq!(going, labels[..3]);
    assert_eq!(looked.decision.wal[0].goes.files, 8);

    let removed = run(&request(&trial, Some(going.clone())), &listening()).await.unwrap();
    let done = removed.removed.unwrap();
    assert_eq!((done.backups.len(), done.wal_files, done.freed), (3, 8, looked.decision.freed()));
    assert_eq!(is_sound(&trial).await, labels[3..]);
    assert_eq!(trial.objects().len(), 2 + 4);

    let again = run(&request(&trial, Some(going)), &listening()).await.unwrap();
    assert_eq!(again.removed, Some(Removed::default()));
}

#[tokio::test]
async fn only_what_was_agreed_goes() {
    let (trial, labels) = four_days();
    let expired = run(&request(&trial, Some(labels[..1].to_vec())), &listening()).await.unwrap();
    assert_eq!(expired.removed.unwrap().backups, labels[..1]);
    assert_eq!(is_sound(&trial).await, labels[1..]);
    // WAL goes up to the oldest one that stays.
    assert_eq!(expired.decision.wal[0].goes.files, 4);
    // Even the newest, if somebody agreed to that by mistake, is kept by the rules.
    let expired = run(&request(&trial, Some(labels.clone())), &listening()).await.unwrap();
    assert_eq!(
        (expired.removed.unwrap().backups.len(), expired.spared),
        (2, vec![labels[0].clone(), labels[3].clone()])
    );
}

#[tokio::test]
async fn what_comes_into_use_between_the_look_and_the_removal_stays() {
    let (trial, labels) = four_days();
    let held = Held::take_to_use(&trial.repo, &Trial::system(), Purpose::Restore, vec![labels[1].clone()])
        .await
        .unwrap();
    let expired = run(&request(&trial, Some(labels[..3].to_vec())), &listening()).await.unwrap();
    assert_eq!(expired.spared, [labels[1].clone()]);
    assert_eq!(expired.decision.wal[0].goes.files, 4);
    assert_eq!(is_sound(&trial).await, [labels[1].clone(), labels[3].clone()]);
    held.release().await.unwrap();
    let expired = run(&request(&trial, Some(labels[..3].to_vec())), &listening()).await.unwrap();
    assert_eq!(expired.removed.unwrap().backups, [labels[1].clone()]);
}

#[tokio::test]
async fn nothing_in_use_is_removed_whenever_it_comes_into_use() {
    // At every call of the removal somebody takes a lease of the oldest backup, if it is not being removed, and reads its manifest.
    let (trial, labels) = four_days();
    let counted = Faulty::new(trial.repo.clone(), |_, _| None);
    let agreed = Some(labels[..3].to_vec());
    run_in(Arc::new(counted.clone()), &request(&trial, agreed.clone()), &listening()).await.unwrap();
    let (mut used, mut refused) = (0, 0);
    for moment in 1..=counted.calls() {
        let (trial, labels) = four_days();
        let keys = Trial::system();
        let (ask, asked) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>();
        // The removal waits at this call until the other one has what it wants.
        let pause = move |call: u64, _: &str| {
            if call == moment {
                let (done, wait) = std::sync::mpsc::channel();
                ask.send(done).unwrap();
                wait.recv().unwrap();
            }
            None
        };
        let faulty: SharedRepo = Arc::new(Faulty::new(trial.repo.clone(), pause));
        let request = request(&trial, agreed.clone());
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run_in(faulty, &request, &listening())).map(|_| ())
        });
        let done = asked.recv().unwrap();
        // By turns with a lease and with a pin.
        let taken = if moment % 2 == 0 {
            let labels = vec![labels[0].clone()];
            Held::take_to_use(&trial.repo, &keys, Purpose::Restore, labels).await.map(Some)
        } else {
            pin::pin(&trial.repo, CLUSTER, &labels[0], None, "").await.map(|_| None)
        };
        let manifest = trial.repo.read(&keys.backup(&labels[0]).manifest()).await.unwrap();
        let before = trial.repo.list_all(keys.backup(&labels[0]).folder()).await.unwrap();
        done.send(()).unwrap();
        removal.join().unwrap().unwrap();
        match taken {
            Ok(held) if manifest.is_some() => {
                used += 1;
                assert_eq!(
                    trial.repo.list_all(keys.backup(&labels[0]).folder()).await.unwrap(),
                    before,
                    "at call {moment}"
                );
                assert!(is_sound(&trial).await.contains(&labels[0]), "at call {moment}");
                if let Some(held) = held {
                    held.release().await.unwrap();
                }
            }
            // It is gone, or going, and whoever wanted it knows.
            Ok(_) | Err(_) => refused += 1,
        }
    }
    assert!(used > 5 && refused > 5, "{used} {refused}");
}

/// A copy brings the WAL of a backup first, and makes it a backup at any call of the removal, or after it.
#[tokio::test]
async fn the_wal_of_a_backup_that_is_copied_here_meanwhile_stays() {
    let (mut moment, mut commits) = (1, 0);
    loop {
        let (trial, labels) = four_days();
        let keys = Trial::system();
        let manifest = keys.backup(&labels[0]).manifest();
        let bytes = trial.repo.read(&manifest).await.unwrap().unwrap();
        trial.repo.remove(&manifest).await.unwrap();
        let held = Held::take_for_copy(&trial.repo, &keys, labels[..1].to_vec()).await.unwrap();
        let inner = trial.repo.clone();
        let commit = move || {
            repo::wait(inner.create(&manifest, &bytes)).unwrap();
            repo::wait(inner.remove(&keys.lease("copy"))).unwrap();
        };
        let at_call = commit.clone();
        let copy = move |call: u64, _: &str| {
            if call == moment {
                at_call();
            }
            None
        };
        let faulty = Faulty::new(trial.repo.clone(), copy);
        let request = request(&trial, Some(labels[1..3].to_vec()));
        run_in(Arc::new(faulty.clone()), &request, &listening()).await.unwrap();
        if faulty.calls() < moment {
            commit();
        }
        drop(held);
        let sound = is_sound(&trial).await;
        assert_eq!(sound, [labels[0].clone(), labels[3].clone()], "at call {moment}");
        if faulty.calls() < moment {
            break;
        }
        commits += 1;
        moment += 1;
    }
    assert!(commits > 20, "{commits}");
}

#[tokio::test]
async fn killed_at_any_call_it_leaves_what_can_be_restored_and_the_next_run_finishes() {
    // What stays in the end: a backup of four objects, and two segments.
    can_be_killed_at_any_call(four_days, 2 + 4).await;
}

/// The oldest one had a pin, which must be read as long as the backup is there.
#[tokio::test]
async fn of_encrypted_backups_nothing_is_left_that_cannot_be_read_and_no_data_key_in_the_end() {
    let pinned = || {
        let (trial, labels) = four_days_in(Trial::encrypted());
        let keys = Trial::system().backup(&labels[0]);
        let over = Some(Timestamp::UNIX_EPOCH);
        let (by, at) = (crate::engine::record::Actor::here(), Timestamp::UNIX_EPOCH);
        let pin = Pin { format: seal::FORMAT, until: over, reason: String::new(), by, at };
        repo::wait(trial.repo.store(&keys.pin(), &seal::write_document(&pin))).unwrap();
        (trial, labels)
    };
    // And the data keys of that backup and of the timeline.
    can_be_killed_at_any_call(pinned, 2 + 4 + 2).await;
}

async fn can_be_killed_at_any_call(four_days: impl Fn() -> (Trial, Vec<Label>), stay: usize) {
    let (trial, labels) = four_days();
    let counted = Faulty::new(trial.repo.clone(), |_, _| None);
    let agreed = Some(labels[..3].to_vec());
    run_in(Arc::new(counted.clone()), &request(&trial, agreed.clone()), &listening()).await.unwrap();
    for last in 1..=counted.calls() {
        for after in [false, true] {
            let (trial, labels) = four_days();
            // From one call on nothing works any more.
            let dead = move |call: u64, _: &str| {
                let fault = if after && call == last { Fault::After } else { Fault::Before };
                (call >= last).then_some(fault(RepoErrorKind::Other))
            };
            let faulty = Arc::new(Faulty::new(trial.repo.clone(), dead));
            // It may still end well: giving back a lease is not what counts.
            let ended = run_in(faulty, &request(&trial, agreed.clone()), &listening()).await;
            assert!(ended.is_err() || last + 12 > counted.calls(), "call {last}");
            // Its leases die with a process, which this one does not.
            for found in lease::read_all(&trial.repo, &Trial::system()).await.unwrap() {
                trial.repo.remove(&found.key).await.unwrap();
            }
            let whole = is_sound(&trial).await;
            assert!(whole.ends_with(&labels[3..]), "call {last}: {whole:?}");
            assert!(
                labels.ends_with(&whole) || labels.starts_with(&whole[..whole.len() - 1]),
                "call {last}: {whole:?}"
            );

            let looked = run_in(trial.repo.clone(), &request(&trial, None), &listening()).await.unwrap();
            let left = looked.decision.going().map(|verdict| verdict.label.clone()).collect();
            run_in(trial.repo.clone(), &request(&trial, Some(left)), &listening()).await.unwrap();
            assert_eq!(trial.objects().len(), stay, "call {last}");
            assert_eq!(is_sound(&trial).await, labels[3..]);
        }
    }
}

#[tokio::test]
async fn two_at_once_remove_the_same() {
    let (trial, labels) = four_days();
    let request = request(&trial, Some(labels[..3].to_vec()));
    let started: Vec<_> = (0..2)
        .map(|_| {
            let request = request.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(run(&request, &listening())).unwrap()
            })
        })
        .collect();
    let freed: u64 = started.into_iter().map(|one| one.join().unwrap().removed.unwrap().freed.0).sum();
    assert!(freed > 0);
    assert_eq!(is_sound(&trial).await, labels[3..]);
    assert_eq!(trial.objects().len(), 2 + 4);
}

#[tokio::test]
async fn what_cannot_be_told_removes_nothing() {
    let (trial, labels) = four_days();
    let keys = Trial::system();
    let agreed = Some(labels[..3].to_vec());
    let before = trial.objects();
    for call in [
        format!("read {}", keys.backup(&labels[0]).manifest()),
        format!("list {}", keys.leases()),
        format!("list {CLUSTER}"),
    ] {
        let fault = move |_, made: &str| (made == call).then_some(Fault::Before(RepoErrorKind::Denied));
        let faulty = Arc::new(Faulty::new(trial.repo.clone(), fault));
        let ended = run_in(faulty, &request(&trial, agreed.clone()), &listening()).await;
        let nothing = match ended {
            Err(_) => true,
            Ok(expired) => expired.removed == Some(Removed::default()),
        };
        assert!(nothing);
        assert_eq!(trial.objects(), before);
    }
    // A manifest of a newer pgherd is not a damaged one.
    let newer = crate::repo::seal::write_document(&serde_json::json!({"format": 2, "label": "x"}));
    trial.repo.store(&keys.backup(&labels[3]).manifest(), &newer).await.unwrap();
    let error = run(&request(&trial, agreed), &listening()).await.unwrap_err();
    assert!(error.detail_text().unwrap().contains("format 2"), "{error:?}");
    assert_eq!(trial.objects(), before);
}

/// Encrypted, the repository itself finds the damage: that is no reason to stop either.
#[tokio::test]
async fn a_damaged_document_keeps_what_it_might_be_about_and_the_rest_goes() {
    for encrypted in [false, true] {
        for object in ["manifest.json", "pin.json", "00000002.history.zst"] {
            let (trial, labels) = four_days_in(if encrypted { Trial::encrypted() } else { Trial::new() });
            pin::pin(&trial.repo, CLUSTER, &labels[1], None, "audit").await.unwrap();
            let history = b"1\t0/F000000\tno recovery target specified\n";
            trial.store_wal("00000002.history".parse().unwrap(), history);
            let mut found = trial.objects();
            found.retain(|key| key.name() == object);
            let damaged = if object == "manifest.json" { found[1].clone() } else { found[0].clone() };
            trial.flip(&damaged, 300);
            let agreed = Some(labels[..3].to_vec());
            let expired = run_in(trial.repo.clone(), &request(&trial, agreed), &listening()).await.unwrap();
            assert_eq!(expired.unusable.len(), 1, "{encrypted} {object}");
            assert_eq!(expired.unusable[0].object, damaged, "{encrypted} {object}");
            assert_eq!(expired.spared, labels[1..2], "{encrypted} {object}");
            let removed = expired.removed.unwrap();
            assert_eq!(removed.backups.len(), 2, "{encrypted} {object}");
            // Of what WAL a backup needs only its manifest tells.
            assert_eq!(removed.wal_files == 0, object == "manifest.json", "{encrypted} {object}");
        }
    }
}

#[tokio::test]
async fn a_newer_backup_that_lost_data_does_not_push_out_an_older_one() {
    let (trial, labels) = four_days();
    let keys = Trial::system().backup(&labels[3]);
    std::fs::remove_file(trial.path(&keys.data(2))).unwrap();
    let looked = run(&request(&trial, None), &listening()).await.unwrap();
    let going: Vec<Label> = looked.decision.going().map(|verdict| verdict.label.clone()).collect();
    assert_eq!(going, labels[..2]);
}

#[tokio::test]
async fn pinned_backups_and_strays_stay_and_interrupted_ones_go() {
    let (trial, labels) = four_days();
    pin::pin(&trial.repo, CLUSTER, &labels[0], None, "audit").await.unwrap();
    let stray = Key::new(format!("{CLUSTER}/notes.txt")).unwrap();
    trial.repo.store(&stray, b"dear").await.unwrap();
    let half: Label = "20260601T130000Z-full".parse().unwrap();
    trial.repo.store(&Trial::system().backup(&half).data(1), b"half").await.unwrap();
    let agreed = vec![labels[1].clone(), labels[2].clone(), half.clone()];
    let expired = run(&request(&trial, Some(agreed)), &listening()).await.unwrap();
    assert_eq!((expired.removed.unwrap().backups.len(), expired.strays), (3, vec![stray.clone()]));
    assert_eq!(is_sound(&trial).await, [labels[0].clone(), labels[3].clone()]);
    assert!(trial.repo.read(&stray).await.unwrap().is_some());
    assert!(trial.repo.list_all(Trial::system().backup(&half).folder()).await.unwrap().is_empty());
}

#[tokio::test]
async fn nobody_who_listens_ends_it() {
    let (trial, labels) = four_days();
    let gone = Reporter::new(|_| Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
    gone.progress(Progress::default());
    let before = trial.objects();
    let error = run(&request(&trial, Some(labels[..3].to_vec())), &gone).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(trial.objects(), before);
}

#[tokio::test]
async fn an_export_goes_only_when_its_table_says_so_and_the_operator_has_seen_it() {
    let (trial, _) = four_days();
    let old = trial.export("events_2019_11");
    let kept = |keep: &str, agreed: Option<Vec<Key>>| ExpireBackups {
        keep_full: Some(4),
        exports: vec![ExportsKept {
            database: "orders".to_owned(),
            table: "orders.order_events".parse().unwrap(),
            keep: Keep::parse(keep).unwrap(),
            timezone: "UTC".to_owned(),
        }],
        agreed: agreed.map(|exports| Agreed { backups: Vec::new(), exports }),
        ..request(&trial, None)
    };
    let run = async |request: ExpireBackups| run(&request, &listening()).await.unwrap();
    // Of WAL, too, nothing is left that could go.
    run(kept("40 years", Some(Vec::new()))).await;
    assert!(run(ExpireBackups { exports: Vec::new(), ..kept("1 year", None) }).await.is_empty());
    assert!(run(kept("40 years", None)).await.is_empty());
    let before = trial.objects();
    let looked = run(kept("1 year", None)).await;
    assert_eq!(
        (looked.exports.len(), looked.exports[0].rows, looked.freed()),
        (1, 500, looked.exports[0].stored)
    );
    run(kept("1 year", Some(Vec::new()))).await;
    assert_eq!(trial.objects(), before);
    // A manifest that cannot be read keeps what it might be of.
    trial.flip(&old.manifest(), 900);
    let unread = run(kept("1 year", None)).await;
    assert!(unread.is_empty() && unread.unusable[0].object == old.manifest(), "{unread:?}");
    trial.flip(&old.manifest(), 900);
    let removed = run(kept("1 year", Some(looked.agreement().exports))).await;
    assert_eq!(removed.removed.unwrap().exports, 1);
    assert_eq!(trial.objects().len() + 2, before.len());
    is_sound(&trial).await;
    assert!(run(kept("1 year", None)).await.is_empty());
}
