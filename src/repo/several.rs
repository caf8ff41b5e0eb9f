//! Repositories that hold the same, read as one: what one of them has is there, and nothing is absent unless each of them says so.

use jiff::Timestamp;

use super::{
    BoxFuture, Key, Level, Listed, Put, Repo, RepoError, RepoErrorKind, Result, SharedRepo, Upload, Version,
    Versioned,
};
use crate::units::ByteCount;

/// Several repositories, of which some may be away.
#[derive(Debug)]
pub struct Several {
    members: Vec<Result<SharedRepo>>,
    url: String,
}

impl Several {
    /// Takes them in the order in which they are asked; what cannot be opened is told when it matters.
    pub fn new(members: Vec<Result<SharedRepo>>) -> Self {
        let url = |member: &Result<SharedRepo>| match member {
            Ok(repo) => repo.url().to_owned(),
            Err(error) => error.url.clone(),
        };
        let url = members.iter().map(url).collect::<Vec<_>>().join(" and ");
        Self { members, url }
    }

    /// Asks one after the other until one has it.
    async fn first<'a, T>(
        &'a self,
        ask: impl Fn(&'a SharedRepo) -> BoxFuture<'a, Result<Option<T>>>,
    ) -> Result<Option<T>> {
        let mut failed = None;
        for member in &self.members {
            let answer = match member {
                Ok(repo) => ask(repo).await,
                Err(error) => Err(error.clone()),
            };
            match answer {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Asks all of them.
    async fn all<'a, T>(
        &'a self,
        ask: impl Fn(&'a SharedRepo) -> BoxFuture<'a, Result<T>>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        for member in &self.members {
            match member {
                Ok(repo) => found.push(ask(repo).await?),
                Err(error) => return Err(error.clone()),
            }
        }
        Ok(found)
    }

    fn only_read<T: Send + 'static>(&self, doing: &str, key: &Key) -> BoxFuture<'static, Result<T>> {
        let error = RepoError {
            kind: RepoErrorKind::Other,
            url: self.url.clone(),
            doing: format!("{doing} {key}"),
            why: "several repositories at once are only read".to_owned(),
        };
        Box::pin(std::future::ready(Err(error)))
    }
}

fn sorted(mut listed: Vec<Listed>) -> Vec<Listed> {
    listed.sort_by(|a, b| a.key.cmp(&b.key));
    listed.dedup_by(|a, b| a.key == b.key);
    listed
}

impl Repo for Several {
    fn url(&self) -> &str {
        &self.url
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(self.first(move |repo| repo.read(key)))
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>> {
        Box::pin(self.first(move |repo| repo.read_versioned(key)))
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(self.first(move |repo| repo.read_range(key, offset, length)))
    }

    fn create<'a>(&'a self, key: &'a Key, _bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>> {
        self.only_read("create", key)
    }

    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        _bytes: &'a [u8],
        _version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>> {
        self.only_read("replace", key)
    }

    fn store<'a>(&'a self, key: &'a Key, _bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        self.only_read("store", key)
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>> {
        self.only_read("store", key)
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>> {
        Box::pin(async move {
            let mut whole = Level::default();
            for level in self.all(|repo| repo.list(folder)).await? {
                whole.objects.extend(level.objects);
                whole.folders.extend(level.folders);
            }
            whole.folders.sort();
            whole.folders.dedup();
            Ok(Level { objects: sorted(whole.objects), folders: whole.folders })
        })
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(async move {
            let listed = self.all(|repo| repo.list_all(folder)).await?;
            Ok(sorted(listed.into_iter().flatten().collect()))
        })
    }

    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        self.only_read("remove", key)
    }

    fn sweep<'a>(&'a self, _before: Timestamp) -> BoxFuture<'a, Result<u64>> {
        Box::pin(std::future::ready(Ok(0)))
    }

    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::repo::faulty::{Fault, Faulty};
    use crate::repo::{Location, create, wait};

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn what_one_has_is_there_and_nothing_is_absent_unless_each_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            create(&Location::plain(format!("file://{}", directory.path().join(name).display()))).unwrap()
        };
        let (one, two) = (make("one"), make("two"));
        wait(one.store(&key("a/both"), b"x")).unwrap();
        wait(two.store(&key("a/both"), b"x")).unwrap();
        wait(two.store(&key("a/second"), b"y")).unwrap();
        let away = |repo: &SharedRepo| -> SharedRepo {
            Arc::new(Faulty::new(repo.clone(), |_, _| Some(Fault::Before(RepoErrorKind::Passing))))
        };
        let several = |members: &[&SharedRepo]| {
            Several::new(members.iter().map(|member| Ok((*member).clone())).collect())
        };
        let both = several(&[&one, &two]);
        assert_eq!(wait(both.read(&key("a/second"))).unwrap().unwrap(), b"y");
        assert_eq!(wait(both.read(&key("a/none"))).unwrap(), None);
        let names: Vec<String> =
            wait(both.list_all(&key("a"))).unwrap().into_iter().map(|listed| listed.key.into()).collect();
        assert_eq!(names, ["a/both", "a/second"]);
        assert_eq!(wait(both.list(None)).unwrap().folders, ["a"]);

        for half in [several(&[&one, &away(&two)]), several(&[&away(&two), &one])] {
            assert_eq!(wait(half.read(&key("a/both"))).unwrap().unwrap(), b"x");
            assert_eq!(wait(half.read(&key("a/second"))).unwrap_err().kind, RepoErrorKind::Passing);
            assert_eq!(wait(half.list_all(&key("a"))).unwrap_err().kind, RepoErrorKind::Passing);
        }
        assert!(wait(both.store(&key("a/new"), b"z")).is_err());
    }
}
