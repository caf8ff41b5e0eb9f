//! Repositories that hold the same, read as one: what one of them has is there, and nothing is absent unless each of them says so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::{Key, Level, Location, RepoError, Result, SharedRepo, wait};

/// An error that comes sooner costs nobody anything.
const A_MOMENT: Duration = Duration::from_secs(1);

/// A repository that is opened when it is needed: one that is away keeps only those waiting who ask it.
#[derive(Debug)]
pub struct Member {
    location: Location,
    opened: OnceLock<SharedRepo>,
    kept_waiting: AtomicBool,
}

impl Member {
    pub fn new(location: Location) -> Self {
        Self { location, opened: OnceLock::new(), kept_waiting: AtomicBool::new(false) }
    }

    /// Takes one that is open.
    #[cfg(test)]
    pub fn opened(location: Location, repo: SharedRepo) -> Self {
        Self { opened: OnceLock::from(repo), ..Self::new(location) }
    }

    /// Opens it, unless it is open.
    ///
    /// # Errors
    /// As [`super::open`]. The next call tries again.
    pub fn open(&self) -> Result<&SharedRepo> {
        if let Some(repo) = self.opened.get() {
            return Ok(repo);
        }
        let repo = super::open(&self.location)?;
        // Where two open it at a time, one of them is used.
        Ok(self.opened.get_or_init(|| repo))
    }

    /// Tells whether who asked it last among several waited, and in vain.
    pub fn kept_waiting(&self) -> bool {
        self.kept_waiting.load(Ordering::Relaxed)
    }
}

/// Several repositories, of which some may be away.
#[derive(Debug)]
pub struct Several {
    members: Vec<Arc<Member>>,
    url: String,
}

impl Several {
    /// Takes them in the order in which they are asked; what cannot be opened is told when it matters.
    pub fn new(members: Vec<Arc<Member>>) -> Self {
        let url = members.iter().map(|member| member.location.url.as_str()).collect::<Vec<_>>().join(" and ");
        Self { members, url }
    }

    /// Asks one after the other until one has it, on this thread.
    ///
    /// # Errors
    /// When none has it: the first one's that did not answer.
    pub fn first<T, E: From<RepoError>>(
        &self,
        ask: impl Fn(&SharedRepo) -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let mut failed = None;
        for member in &self.members {
            let asked = Instant::now();
            let answer = member.open().map_err(E::from).and_then(&ask);
            member.kept_waiting.store(answer.is_err() && asked.elapsed() > A_MOMENT, Ordering::Relaxed);
            match answer {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Lists one level below `folder` in all of them.
    ///
    /// # Errors
    /// When one of them does not answer: it may be the one that has what the others lack.
    pub fn list(&self, folder: &Key) -> Result<Level> {
        let mut whole = Level::default();
        for member in &self.members {
            let level = wait(member.open()?.list(Some(folder)))?;
            whole.objects.extend(level.objects);
            whole.folders.extend(level.folders);
        }
        whole.objects.sort_by(|a, b| a.key.cmp(&b.key));
        whole.objects.dedup_by(|a, b| a.key == b.key);
        whole.folders.sort();
        whole.folders.dedup();
        Ok(whole)
    }

    /// Returns the URLs, for people.
    pub fn url(&self) -> &str {
        &self.url
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::faulty::{Fault, Faulty};
    use crate::repo::{RepoErrorKind, create};

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn what_one_has_is_there_and_nothing_is_absent_unless_each_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let location = Location::plain(format!("file://{}", directory.path().join(name).display()));
            let repo = create(&location).unwrap();
            (location, repo)
        };
        let (one, two) = (make("one"), make("two"));
        wait(one.1.store(&key("a/both"), b"x")).unwrap();
        wait(two.1.store(&key("a/both"), b"x")).unwrap();
        wait(two.1.store(&key("a/second"), b"y")).unwrap();
        let there = |(location, repo): &(Location, SharedRepo)| {
            Arc::new(Member::opened(location.clone(), repo.clone()))
        };
        let away = |(location, repo): &(Location, SharedRepo)| {
            let fails = |_, _: &str| Some(Fault::Before(RepoErrorKind::Passing));
            let faulty = Arc::new(Faulty::new(repo.clone(), fails));
            Arc::new(Member::opened(location.clone(), faulty))
        };
        let read = |several: &Several, name: &str| several.first(|repo| wait(repo.read(&key(name))));
        let both = Several::new(vec![there(&one), there(&two)]);
        assert_eq!(read(&both, "a/second").unwrap().unwrap(), b"y");
        assert_eq!(read(&both, "a/none").unwrap(), None);
        let level = both.list(&key("a")).unwrap();
        let names: Vec<&str> = level.objects.iter().map(|listed| listed.key.as_str()).collect();
        assert_eq!(names, ["a/both", "a/second"]);

        for half in [Several::new(vec![there(&one), away(&two)]), Several::new(vec![away(&two), there(&one)])]
        {
            assert_eq!(read(&half, "a/both").unwrap().unwrap(), b"x");
            assert_eq!(read(&half, "a/third").unwrap_err().kind, RepoErrorKind::Passing);
            assert_eq!(half.list(&key("a")).unwrap_err().kind, RepoErrorKind::Passing);
            assert!(!half.members.iter().any(|member| member.kept_waiting()));
        }
    }

    #[test]
    fn one_that_could_not_be_opened_is_tried_anew_and_none_is_opened_that_nobody_asks() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| Location::plain(format!("file://{}", directory.path().join(name).display()));
        let (first, late) = (at("first"), at("late"));
        wait(create(&first).unwrap().store(&key("a/b"), b"x")).unwrap();
        let members = [&first, &late].map(|location| Arc::new(Member::new(location.clone())));
        let both = Several::new(members.to_vec());
        let read = |name: &str| both.first(|repo| wait(repo.read(&key(name))));
        assert_eq!(read("a/b").unwrap().unwrap(), b"x");
        assert!(members[1].opened.get().is_none());
        assert_eq!(read("a/c").unwrap_err().kind, RepoErrorKind::Missing);
        create(&late).unwrap();
        assert_eq!(read("a/c").unwrap(), None);
    }
}
