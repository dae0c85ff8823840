//! How many streams a caller may hold open at once. A stream costs memory for as long as its caller likes: a message
//! that is never ended, or events that are never read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tonic::Status;

use super::Caller;
use crate::lock::lock;

/// Streams of one kind that the holder of one certificate may have. A worker has one; after its connection broke, those
/// before it are noticed within seconds, and it may try a few times meanwhile.
const MOST: u32 = 16;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StreamKind {
    /// A worker's conversation.
    Sync,
    /// Somebody who follows events or a job.
    Follow,
}

/// The open streams of callers with certificates. Whoever reaches a port without certificates may do everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams(Arc<Mutex<HashMap<(String, StreamKind), u32>>>);

impl Streams {
    /// A place for one more.
    ///
    /// # Errors
    /// The caller has as many as it may.
    pub(crate) fn enter(&self, caller: &Caller, kind: StreamKind) -> Result<StreamSlot, Status> {
        let Caller::Known(known) = caller else { return Ok(StreamSlot(None)) };
        let key = (known.identity.uri(), kind);
        let mut open = lock(&self.0);
        let count = open.entry(key.clone()).or_default();
        if *count >= MOST {
            let who = &known.identity;
            return Err(Status::resource_exhausted(format!(
                "{who} has {MOST} streams open already; end one first"
            )));
        }
        *count += 1;
        Ok(StreamSlot(Some((self.clone(), key))))
    }

    fn leave(&self, key: &(String, StreamKind)) {
        let mut open = lock(&self.0);
        if let Some(count) = open.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                open.remove(key);
            }
        }
    }
}

/// A stream's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct StreamSlot(Option<(Streams, (String, StreamKind))>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        if let Some((streams, key)) = &self.0 {
            streams.leave(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Known, shown_by};

    #[test]
    fn each_caller_has_so_many_of_each_kind_and_gets_them_back() {
        let caller = |name: &str| {
            Caller::Known(Arc::new(Known::new(shown_by(
                &format!("coxswain://worker/{name}/job/*"),
                u64::MAX,
            ))))
        };
        let streams = Streams::default();
        let mut places: Vec<_> =
            (0..MOST).map(|_| streams.enter(&caller("w1"), StreamKind::Sync).unwrap()).collect();
        let refused = streams.enter(&caller("w1"), StreamKind::Sync).unwrap_err();
        assert!(refused.message().starts_with("worker w1 has 16 streams open"), "{refused}");
        places.push(streams.enter(&caller("w1"), StreamKind::Follow).unwrap());
        places.push(streams.enter(&caller("w2"), StreamKind::Sync).unwrap());
        places.remove(0);
        places.push(streams.enter(&caller("w1"), StreamKind::Sync).unwrap());
        let trusted: Vec<_> =
            (0..100).map(|_| streams.enter(&Caller::Trusted, StreamKind::Sync).unwrap()).collect();
        drop((places, trusted));
        assert!(lock(&streams.0).is_empty());
    }
}
