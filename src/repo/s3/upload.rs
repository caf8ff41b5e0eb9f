//! An object that goes up in parts, several at once. Without the last call it never appears; what a killed writer leaves is removed by the next expiry.

use std::collections::VecDeque;
use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::trouble::Trouble;
use super::{Bucket, Condition, S3Repo, UPLOAD};
use crate::repo::retry::patiently;
use crate::repo::{BoxFuture, Key, RepoErrorKind, Result, Upload};

/// The first parts are of this size; S3 takes nothing below 5 MiB but the last one.
const PART: usize = 8 << 20;
/// After so many parts they are larger, so that 10,000, the most that S3 takes, hold 440 GB.
const GROWS: usize = 1000;
/// Parts of one object that are on their way at once.
const AHEAD: usize = 4;

/// What an upload is known by.
struct Begun {
    id: String,
    /// What the object will say of who made it: the server forgets the ID when it is whole.
    mark: String,
}

/// An object in parts.
pub(super) struct Parts {
    bucket: Arc<Bucket>,
    key: Key,
    threads: Handle,
    begun: Option<Arc<Begun>>,
    part: Vec<u8>,
    size: u64,
    flying: VecDeque<JoinHandle<Result<CompletedPart>>>,
    sent: Vec<CompletedPart>,
}

impl Parts {
    /// Begins one, on the threads of whoever calls.
    pub fn begin(repo: &S3Repo, key: &Key) -> Self {
        Self {
            bucket: Arc::clone(&repo.0),
            key: key.clone(),
            threads: Handle::current(),
            begun: None,
            part: Vec::new(),
            size: 0,
            flying: VecDeque::new(),
            sent: Vec::new(),
        }
    }

    fn doing(&self) -> String {
        format!("store {}", self.key)
    }

    /// Returns the size of the part that is being filled.
    fn whole(&self) -> usize {
        PART * (1 + (self.sent.len() + self.flying.len()) / GROWS)
    }

    /// Runs a call on the threads that the repository has.
    async fn on_threads<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let ended = |error: tokio::task::JoinError| {
            self.bucket.error(RepoErrorKind::Other, self.doing(), format!("its thread ended: {error}"))
        };
        self.threads.spawn(call).await.map_err(ended)?
    }

    async fn begun(&mut self) -> Result<Arc<Begun>> {
        if let Some(begun) = &self.begun {
            return Ok(Arc::clone(begun));
        }
        let (bucket, key, mark) = (Arc::clone(&self.bucket), self.key.clone(), self.mark()?);
        let begin = async move {
            let id = patiently(bucket.waits.patience, || begin(&bucket, &key, &mark)).await?;
            Ok(Arc::new(Begun { id, mark }))
        };
        let begun = self.on_threads(begin).await?;
        self.begun = Some(Arc::clone(&begun));
        Ok(begun)
    }

    /// Returns what no other upload calls itself.
    fn mark(&self) -> Result<String> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| self.bucket.error(RepoErrorKind::Other, self.doing(), error.to_string()))?;
        Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
    }

    /// Sends what has been filled; waits for the oldest part where many are on their way.
    async fn send(&mut self) -> Result<()> {
        let begun = self.begun().await?;
        while self.flying.len() >= AHEAD {
            self.land().await?;
        }
        let number = i32::try_from(self.sent.len() + self.flying.len() + 1).unwrap_or(i32::MAX);
        let bytes: Arc<[u8]> = std::mem::take(&mut self.part).into();
        let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
        self.flying.push_back(self.threads.spawn(async move {
            let _one = bucket.flying.acquire().await;
            patiently(bucket.waits.patience, || part(&bucket, &key, &begun.id, number, &bytes)).await
        }));
        Ok(())
    }

    async fn land(&mut self) -> Result<()> {
        let Some(oldest) = self.flying.pop_front() else { return Ok(()) };
        self.sent.push(self.on_threads(async move { oldest.await.expect("a part does not panic") }).await?);
        Ok(())
    }

    async fn complete(mut self) -> Result<()> {
        if self.begun.is_none() {
            let (bucket, key, bytes) =
                (Arc::clone(&self.bucket), self.key.clone(), std::mem::take(&mut self.part));
            let doing = self.doing();
            let put = async move {
                patiently(bucket.waits.patience, || {
                    Box::pin(bucket.put(&doing, &key, &bytes, Condition::None))
                })
                .await
            };
            return self.on_threads(put).await.map(drop);
        }
        if !self.part.is_empty() {
            self.send().await?;
        }
        while !self.flying.is_empty() {
            self.land().await?;
        }
        let begun = self.begun().await?;
        let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
        let (sent, size) = (std::mem::take(&mut self.sent), self.size);
        self.on_threads(async move {
            patiently(bucket.waits.patience, || complete(&bucket, &key, &begun, &sent, size)).await
        })
        .await?;
        self.begun = None;
        Ok(())
    }
}

fn begin<'a>(bucket: &'a Bucket, key: &'a Key, mark: &'a str) -> BoxFuture<'a, Result<String>> {
    Box::pin(async move {
        let doing = format!("store {key}");
        let (mode, until) = bucket.lock_of(key);
        let begun = bucket
            .client
            .create_multipart_upload()
            .bucket(&bucket.bucket)
            .key(bucket.name(key))
            .metadata(UPLOAD, mark)
            .set_storage_class(bucket.storage_class.clone())
            .set_server_side_encryption(bucket.encryption.clone())
            .set_ssekms_key_id(bucket.kms_key.clone())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .send();
        let begun = begun.await.map_err(|error| bucket.failed(&doing, Trouble::of(error)))?;
        begun
            .upload_id
            .ok_or_else(|| bucket.error(RepoErrorKind::Passing, doing, "the server gave the upload no ID"))
    })
}

fn part<'a>(
    bucket: &'a Bucket,
    key: &'a Key,
    id: &'a str,
    number: i32,
    bytes: &'a [u8],
) -> BoxFuture<'a, Result<CompletedPart>> {
    Box::pin(async move {
        let doing = || format!("store part {number} of {key}");
        let request = bucket.client.upload_part().bucket(&bucket.bucket).key(bucket.name(key)).upload_id(id);
        let request = request.part_number(number).body(ByteStream::from(bytes.to_vec())).customize();
        let sent = request.config_override(bucket.waits.to_send(bytes.len())).send().await;
        let sent = sent.map_err(|error| bucket.failed(doing(), Trouble::of(error)))?;
        let tag = sent.e_tag.ok_or_else(|| {
            bucket.error(RepoErrorKind::Passing, doing(), "the server did not confirm it with an ETag")
        })?;
        let part = CompletedPart::builder().part_number(number).e_tag(tag);
        // What the server was told of its bytes, so that the whole is made of nothing else.
        Ok(part
            .set_checksum_crc32(sent.checksum_crc32)
            .set_checksum_crc32_c(sent.checksum_crc32_c)
            .set_checksum_crc64_nvme(sent.checksum_crc64_nvme)
            .build())
    })
}

/// Makes the object of its parts, and sees that it is there, ours and of the right size: a server may answer well and have failed, and one that
/// knows no such upload may have made the object, or have dropped the parts beside an older one.
fn complete<'a>(
    bucket: &'a Bucket,
    key: &'a Key,
    begun: &'a Begun,
    parts: &'a [CompletedPart],
    size: u64,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let doing = format!("store {key}");
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec())).build();
        let request = bucket.client.complete_multipart_upload().bucket(&bucket.bucket).key(bucket.name(key));
        let trouble =
            request.upload_id(&begun.id).multipart_upload(parts).send().await.err().map(Trouble::of);
        let said = match trouble {
            // An earlier call may have done it, and its answer was lost.
            Some(trouble) if trouble.is("NoSuchUpload") => trouble.why,
            Some(trouble) => return Err(bucket.failed(doing, trouble)),
            None => "the server said that it is stored".to_owned(),
        };
        let failed = |why: String| bucket.error(RepoErrorKind::Other, &doing, why);
        match bucket.head(key).await? {
            Some(found) if found.upload.as_deref() != Some(begun.mark.as_str()) => {
                Err(failed(format!("{said}, and what is there is of another upload")))
            }
            Some(found) if found.size != size => {
                Err(failed(format!("it was put together of {size} bytes and has {}", found.size)))
            }
            Some(_) => Ok(()),
            None => Err(failed(format!("{said}, and it is not there"))),
        }
    })
}

impl Upload for Parts {
    fn write<'a>(&'a mut self, mut bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.size += bytes.len() as u64;
            while !bytes.is_empty() {
                let room = self.whole() - self.part.len();
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                self.part.extend_from_slice(now);
                bytes = later;
                if self.part.len() == self.whole() {
                    self.send().await?;
                }
            }
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(self.complete())
    }
}

/// Parts that nobody puts together cost money for as long as they are there.
impl Drop for Parts {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        for part in &self.flying {
            part.abort();
        }
        let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
        self.threads.spawn(async move {
            let request = bucket.client.abort_multipart_upload().bucket(&bucket.bucket).key(bucket.name(&key));
            if let Err(error) = request.upload_id(&begun.id).send().await {
                tracing::debug!(%key, why = %Trouble::of(error).why, "the parts of an upload are left behind");
            }
        });
    }
}
