//! A response that comes line by line: watches, progress, logs in records.

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use serde::de::DeserializeOwned;

use super::ClientError;
use crate::instance::Instance;

/// Lines of a response as they come.
pub(crate) struct LineStream {
    response: Response,
    instance: Instance,
    pending: BytesMut,
    scanned: usize,
    ended: bool,
}

impl LineStream {
    pub(super) fn new(response: Response, instance: Instance) -> Self {
        Self { response, instance, pending: BytesMut::new(), scanned: 0, ended: false }
    }

    /// The next line without its end; `None` at the end of the stream.
    pub(crate) async fn next_line(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(found) = self.pending[self.scanned..].iter().position(|byte| *byte == b'\n')
            {
                let mut line = self.pending.split_to(self.scanned + found + 1);
                line.truncate(line.len() - 1);
                self.scanned = 0;
                return Ok(Some(line.freeze()));
            }
            self.scanned = self.pending.len();
            if self.ended {
                self.scanned = 0;
                let rest = self.pending.split();
                return Ok((!rest.is_empty()).then(|| rest.freeze()));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.pending.extend_from_slice(&chunk),
                Ok(None) => self.ended = true,
                Err(error) => return Err(ClientError::broken(&self.instance, &error)),
            }
        }
    }

    /// The next line's JSON; empty lines are skipped.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        while let Some(line) = self.next_line().await? {
            if !line.is_empty() {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| ClientError::answer(&error));
            }
        }
        Ok(None)
    }
}
