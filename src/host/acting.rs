//! Blocking file operations off the threads that drive everything else, and as which user they are done.
//!
//! What root does with the files of an os-user runs on a thread that has laid root's rights down: that user's effective ids, its groups, no
//! capability. So the kernel judges every directory, link and file on the way as if that user opened it. The thread's real and saved user
//! stay root, without which the os-user could signal it (kill(2)) or look into it (ptrace(2), "Ptrace access mode checking"). It starts no
//! program, which would inherit those, and ends with its operation.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use tokio::sync::{Semaphore, oneshot};

use super::Effect;

/// How many operations run at once, so that a look at a large herd takes no thread a file.
const AT_ONCE: usize = 64;
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// All of its groups.
    pub(super) groups: Vec<u32>,
}

/// Operations that nobody waits for any more and that have not ended, by their number.
static HANGING: Mutex<Hanging> = Mutex::new(Hanging { begun: 0, operations: BTreeMap::new() });
/// How often it is looked whether a change that nobody waits for has ended.
const PAUSE: Duration = Duration::from_millis(5);

struct Hanging {
    begun: u64,
    operations: BTreeMap<u64, (Effect, String)>,
}

/// Runs `operation` on a thread that may block, as somebody else where that is asked for.
///
/// One that hangs (a disk that does not answer) holds up nobody but who waits for it. Two things are not
/// done beside one that nobody waits for any more: the same look, since a thread a look would be too many in the end; and anything after a
/// change, which would be done before what was meant to come first.
///
/// # Errors
/// That of the operation; [`io::ErrorKind::TimedOut`] while the same look hangs; [`io::ErrorKind::PermissionDenied`], and nothing is done,
/// where the caller may not become that user.
pub(super) async fn run<T: Send + 'static>(
    effect: Effect,
    what: &str,
    identity: Option<Identity>,
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // Who stops waiting gives its turn away, also while its thread hangs.
    let _turn = TURNS.acquire().await.map_err(io::Error::other)?;
    let number = begin(what).await?;
    let (told, ended) = oneshot::channel();
    let running = Arc::new(());
    let mut waiting = Waiting { number, effect, what, running: Some(Arc::clone(&running)) };
    let acts = identity.is_some();
    let work = move || {
        let done = identity.as_ref().map_or(Ok(()), become_user).and_then(|()| operation());
        // Nobody may wait any more.
        told.send(done).ok();
        let mut hanging = hanging();
        hanging.operations.remove(&number);
        drop(running);
    };
    if acts {
        // A thread of tokio's would be the os-user's for whoever has it next.
        thread::Builder::new().name("file".to_owned()).spawn(work)?;
    } else {
        tokio::task::spawn_blocking(work);
    }
    let ended = ended.await;
    waiting.running = None;
    ended.map_err(|_| io::Error::other("the thread that did it has ended"))?
}

/// Waits until no change is under way that nobody waits for, and returns the number of the next operation.
async fn begin(what: &str) -> io::Result<u64> {
    loop {
        {
            let mut hanging = hanging();
            let changes = hanging.operations.values().any(|(effect, _)| *effect == Effect::Changes);
            if !changes {
                if hanging.operations.values().any(|(_, other)| other == what) {
                    let why = "the same was begun earlier and has not ended";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                hanging.begun += 1;
                return Ok(hanging.begun);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn hanging() -> MutexGuard<'static, Hanging> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever waits for an operation; dropped before its end, it hangs.
struct Waiting<'a> {
    number: u64,
    effect: Effect,
    what: &'a str,
    /// Held by the thread as well until it has ended.
    running: Option<Arc<()>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut hanging = hanging();
        if self.running.take().is_some_and(|running| Arc::strong_count(&running) > 1) {
            hanging.operations.insert(self.number, (self.effect, self.what.to_owned()));
        }
    }
}

/// Lays down root's rights on this thread alone: the calls of libc would do it on all of them (nptl(7), "Handling of user and group ID
/// changes"), these are the kernel's own.
fn become_user(identity: &Identity) -> io::Result<()> {
    let (root, uid, gid) = (Uid::ROOT, Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(root, uid, root)?;
    // They go with the effective user already, but for a caller with SECBIT_NO_SETUID_FIXUP (capabilities(7)).
    let none = CapabilitySet::empty();
    let nothing = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, nothing)?;
    if rustix::process::geteuid() != uid || rustix::thread::capabilities(None)? != nothing {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    /// The lines of a thread's status (proc_pid_status(5)).
    fn status() -> io::Result<BTreeMap<String, String>> {
        let text = fs::read_to_string("/proc/thread-self/status")?;
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), words(value)))
            .collect())
    }

    fn said(program: &str, args: &[&str]) -> String {
        let output = Command::new(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The user of the tests' servers, where the caller is root; who is not becomes nobody else.
    async fn postgres() -> Option<Identity> {
        if !rustix::process::geteuid().is_root() {
            let root = Identity { uid: 0, gid: 0, groups: vec![0] };
            let refused = run(Effect::Reads, "become root", Some(root), || Ok(())).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            return None;
        }
        let id = |flag: &str| said("id", &[flag, "postgres"]);
        let groups = id("-G").split_whitespace().map(|group| group.parse().unwrap()).collect();
        Some(Identity { uid: id("-u").parse().unwrap(), gid: id("-g").parse().unwrap(), groups })
    }

    #[tokio::test]
    async fn only_the_thread_of_the_operation_lays_its_rights_down() {
        let Some(postgres) = postgres().await else { return };
        let before = status().unwrap();
        let during = run(Effect::Reads, "look", Some(postgres.clone()), status).await.unwrap();
        let Identity { uid, gid, .. } = postgres;
        assert_eq!(during["Uid"], format!("0 {uid} 0 {uid}"));
        assert_eq!(during["Gid"], format!("{gid} {gid} {gid} {gid}"));
        let mut groups: Vec<&str> = during["Groups"].split(' ').collect();
        groups.sort_unstable();
        let all = said("id", &["-G", "postgres"]);
        let mut all: Vec<&str> = all.split(' ').collect();
        all.sort_unstable();
        assert_eq!(groups, all);
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(during[set].trim_start_matches('0'), "", "{set}");
        }
        let (after, other) = (status().unwrap(), run(Effect::Reads, "look", None, status).await.unwrap());
        for key in ["Uid", "Gid", "Groups", "CapEff"] {
            assert_eq!((&after[key], &other[key]), (&before[key], &before[key]), "{key}");
        }
    }

    #[tokio::test]
    async fn the_os_user_can_neither_signal_the_thread_nor_look_into_it() {
        let Some(postgres) = postgres().await else { return };
        let (tell, told) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let operation = tokio::spawn(run(Effect::Reads, "wait", Some(postgres), move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            gone.recv().ok();
            Ok(())
        }));
        let thread = tokio::task::spawn_blocking(move || told.recv().unwrap()).await.unwrap().to_string();
        let as_postgres = |args: &[&str]| {
            Command::new("setpriv")
                .args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"])
                .args(args)
                .output()
                .unwrap()
        };
        let signalled = as_postgres(&["sh", "-c", "kill -0 \"$1\"", "sh", &thread]);
        assert!(String::from_utf8_lossy(&signalled.stderr).contains("not permitted"), "{signalled:?}");
        for file in ["environ", "mem", "maps"] {
            let path = format!("/proc/{thread}/{file}");
            let read = as_postgres(&["head", "-c", "1", &path]);
            assert!(String::from_utf8_lossy(&read.stderr).contains("Permission denied"), "{read:?}");
        }
        drop(go);
        operation.await.unwrap().unwrap();
    }

    /// What hangs counts for the whole process.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[tokio::test]
    async fn an_operation_that_hangs_holds_up_no_other_and_is_not_begun_again() {
        let _alone = ALONE.lock().await;
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = Arc::new(Mutex::new(gone));
        let hang = async |what: &str| {
            let gone = Arc::clone(&gone);
            let operation = move || {
                gone.lock().unwrap().recv().ok();
                Ok(())
            };
            tokio::time::timeout(Duration::from_millis(1), run(Effect::Reads, what, None, operation)).await
        };
        // Whoever waits gives up, one after the other, more often than there are turns.
        for number in 0..=AT_ONCE {
            assert!(hang(&format!("hang {number}")).await.is_err());
        }
        assert_eq!(run(Effect::Reads, "do something else", None, || Ok(7)).await.unwrap(), 7);
        let again = run(Effect::Reads, "hang 3", None, || Ok(())).await.unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::TimedOut);
        drop(go);
        let deadline = Instant::now() + Duration::from_secs(10);
        while run(Effect::Reads, "hang 3", None, || Ok(())).await.is_err() {
            assert!(Instant::now() < deadline, "what has ended can be begun again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn nothing_is_done_beside_a_change_that_nobody_waits_for() {
        let _alone = ALONE.lock().await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let late = file.clone();
        let change = run(Effect::Changes, "write", None, move || {
            gone.recv().ok();
            fs::write(late, "late")
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), change).await.is_err());
        let next = tokio::spawn(run(Effect::Changes, "remove", None, move || fs::remove_file(file)));
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        drop(go);
        next.await.unwrap().unwrap();
    }
}
