//! Uploads that nobody finishes: their parts are shown to nobody and paid for until somebody gives them up.

use aws_sdk_s3::operation::list_multipart_uploads::ListMultipartUploadsOutput;
use aws_sdk_s3::primitives::DateTime;
use jiff::Timestamp;

use super::Bucket;
use super::trouble::Trouble;
use crate::repo::{Key, Result};

const DOING: &str = "remove what is left of uploads";

/// An upload as the server lists it.
struct Begun {
    key: Key,
    id: String,
    at: Option<Timestamp>,
}

impl Bucket {
    /// Gives up the uploads of this repository that nobody has added to since `before`; returns how many.
    pub(super) async fn abort_uploads(&self, before: Timestamp) -> Result<u64> {
        let mut aborted = 0;
        for upload in self.uploads().await? {
            if self.is_left_behind(&upload, before).await? && self.abort(&upload).await? {
                tracing::info!(key = %upload.key, "gave up an upload that nobody finished");
                aborted += 1;
            }
        }
        Ok(aborted)
    }

    async fn uploads(&self) -> Result<Vec<Begun>> {
        let mut uploads = Vec::new();
        let mut after = (None, None);
        loop {
            let page = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(&self.prefix);
            let (key, id) = after.clone();
            let page = page.set_key_marker(key).set_upload_id_marker(id).send().await;
            let page = page.map_err(|error| self.failed(DOING, Trouble::of(error)))?;
            uploads.extend(self.ours(&page));
            if !page.is_truncated().unwrap_or_default() {
                return Ok(uploads);
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if next.0.is_none() || next == after {
                return Err(self.odd(DOING, "says that the listing goes on, and not where"));
            }
            after = next;
        }
    }

    fn ours(&self, page: &ListMultipartUploadsOutput) -> Vec<Begun> {
        let ours = page.uploads().iter().filter_map(|upload| {
            let key = self.key(upload.key()?)?;
            Some(Begun { key, id: upload.upload_id()?.to_owned(), at: timestamp(upload.initiated()) })
        });
        ours.collect()
    }

    /// An upload may take days: its newest part tells whether somebody is still at it. Of one without any age nothing is known.
    async fn is_left_behind(&self, upload: &Begun, before: Timestamp) -> Result<bool> {
        if upload.at.is_some_and(|at| at >= before) {
            return Ok(false);
        }
        let parts = self.client.list_parts().bucket(&self.bucket).key(self.name(&upload.key));
        let mut parts = parts.upload_id(&upload.id).into_paginator().items().send();
        let mut newest = upload.at;
        while let Some(part) = parts.next().await {
            match part.map_err(Trouble::of) {
                Ok(part) => newest = newest.max(timestamp(part.last_modified())),
                // It was finished or given up just now.
                Err(trouble) if trouble.is("NoSuchUpload") => return Ok(false),
                Err(trouble) => return Err(self.failed(DOING, trouble)),
            }
        }
        Ok(newest.is_some_and(|newest| newest < before))
    }

    async fn abort(&self, upload: &Begun) -> Result<bool> {
        let sent = self.client.abort_multipart_upload().bucket(&self.bucket).key(self.name(&upload.key));
        match sent.upload_id(&upload.id).send().await.map_err(Trouble::of) {
            Ok(_) => Ok(true),
            Err(trouble) if trouble.is("NoSuchUpload") => Ok(false),
            Err(trouble) => Err(self.failed(DOING, trouble)),
        }
    }
}

fn timestamp(at: Option<&DateTime>) -> Option<Timestamp> {
    Timestamp::from_second(at?.secs()).ok()
}
