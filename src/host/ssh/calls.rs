//! Which of our calls run on a machine, so that what a lost one does there is waited for and not done beside it.
//!
//! Each call that changes something has a name that its processes bear in their command line there: of the station's boot, of the pgherd
//! that made it, and a number. A look at the machine lists those that run.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What every name begins with.
pub(super) const PREFIX: &str = "pgherd-call-";

/// Prints the names of the calls that run, a line each.
pub(super) const LIST: &str = r#"for f in $(grep -s -l -a -e 'pgherd-call-' /proc/[0-9]*/cmdline); do
    tr '\0' '\n' < "$f" 2>/dev/null | grep -a -x -e 'pgherd-call-[0-9a-f]*-[0-9]*-[0-9]*-[0-9]*' | sed 's/^/call /'
done"#;

/// The calls of this process through one connection.
#[derive(Debug, Default)]
pub(super) struct Calls {
    lost: Mutex<BTreeSet<String>>,
}

/// A call that is being made; lost unless something else is said, since whoever stops waiting knows nothing of its end.
#[derive(Debug)]
pub(super) struct Call<'a> {
    calls: &'a Calls,
    name: String,
    ended: bool,
}

impl Calls {
    pub(super) fn begin(&self) -> Call<'_> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Call { calls: self, name: format!("{PREFIX}{}-{number}", own()), ended: false }
    }

    pub(super) fn any_lost(&self) -> bool {
        !self.lost().is_empty()
    }

    /// Returns those of the calls that run on the machine whose caller knows nothing of them any more: ours that were lost, and those of
    /// a pgherd of this station that is gone. Those of other stations are theirs: their locks keep us away for longer than a call lives.
    pub(super) fn strays(&self, look: &str) -> Vec<String> {
        let running: BTreeSet<&str> = look.lines().filter_map(|line| line.strip_prefix("call ")).collect();
        let mut lost = self.lost();
        lost.retain(|name| running.contains(name.as_str()));
        running
            .into_iter()
            .filter(|name| lost.contains(*name) || is_of_the_dead(name))
            .map(str::to_owned)
            .collect()
    }

    fn lost(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call<'_> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn has_ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.calls.lost().insert(std::mem::take(&mut self.name));
        }
    }
}

/// Names this process among all of this station, since it booted: boot, process number, start time.
fn own() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| {
        let pid = std::process::id();
        format!("{}-{pid}-{}", boot(), started(pid).unwrap_or(0))
    })
}

fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    // Where two stations share a kernel, as containers do, their process numbers mean different processes.
    let namespace =
        std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    let namespace: String = namespace.chars().filter(char::is_ascii_digit).collect();
    format!("{digits}{namespace}")
}

/// Returns when a process started, in ticks since boot (proc_pid_stat(5), field 22).
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

fn is_of_the_dead(name: &str) -> bool {
    let mut parts = name.trim_start_matches(PREFIX).split('-');
    let (Some(of), Some(pid), Some(start)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let (Ok(pid), Ok(start)) = (pid.parse::<u32>(), start.parse::<u64>()) else { return false };
    of == boot() && started(pid) != Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_nobody_waits_for_are_strays() {
        let calls = Calls::default();
        let (waited, lost, ended) = (calls.begin(), calls.begin(), calls.begin());
        let lost_name = lost.name().to_owned();
        let dead = format!("{PREFIX}{}-{}-1-0", boot(), std::process::id());
        let other = format!("{PREFIX}0123456789abcdef4026531836-1-1-0");
        let look = format!(
            "login 0 root\ncall {}\ncall {lost_name}\ncall {}\ncall {dead}\ncall {other}\ncall nonsense\nend\n",
            waited.name(),
            ended.name()
        );
        drop(lost);
        ended.has_ended();
        let mut expected = vec![lost_name, dead];
        expected.sort();
        assert_eq!(calls.strays(&look), expected);
        assert!(calls.any_lost());
        // What does not run any more is settled.
        assert!(calls.strays("end\n").is_empty());
        assert!(!calls.any_lost());
        waited.has_ended();
    }

    #[test]
    fn the_calls_of_a_machine_are_listed() {
        let calls = Calls::default();
        let call = calls.begin();
        let mut waiter = std::process::Command::new("sh")
            .args(["-c", "read -r word; exit", call.name()])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let listed = std::process::Command::new("sh").args(["-c", LIST]).output().unwrap();
        waiter.kill().unwrap();
        waiter.wait().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.lines().any(|line| line == format!("call {}", call.name())), "{listed}");
        call.has_ended();
    }
}
