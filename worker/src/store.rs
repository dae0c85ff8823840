//! The rendezvous of a generation over the coordinator's gRPC.

use std::time::{Duration, Instant};

use coxswain_comm::Store;
use coxswain_proto::limits::MAX_STORE_WAIT_MS;
use coxswain_proto::wire::cluster_client::ClusterClient;
use coxswain_proto::wire::{StoreGetRequest, StoreSetRequest};
use coxswain_types::Generation;
use tokio::runtime::Handle;
use tonic::transport::Channel;

/// The keys of one generation. Called from the engine's thread, which is none of tokio's.
pub(crate) struct Rendezvous {
    pub(crate) runtime: Handle,
    pub(crate) client: ClusterClient<Channel>,
    pub(crate) job: String,
    pub(crate) generation: Generation,
    /// How long a key is waited for, in milliseconds.
    pub(crate) patience_ms: u64,
}

impl Store for Rendezvous {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let request = StoreSetRequest {
            job: self.job.clone(),
            generation: self.generation.0,
            key: key.to_vec(),
            value: value.to_vec(),
        };
        let mut client = self.client.clone();
        self.runtime
            .block_on(client.store_set(request))
            .map(drop)
            .map_err(|status| status.message().to_owned())
    }

    fn get(&self, key: &[u8]) -> Result<Vec<u8>, String> {
        let end = Instant::now() + Duration::from_millis(self.patience_ms);
        loop {
            let left_ms = end.saturating_duration_since(Instant::now()).as_millis() as u64;
            if left_ms == 0 {
                let key = String::from_utf8_lossy(key);
                return Err(format!("no rank has set {key} within {} ms", self.patience_ms));
            }
            let request = StoreGetRequest {
                job: self.job.clone(),
                generation: self.generation.0,
                key: key.to_vec(),
                wait_ms: left_ms.min(MAX_STORE_WAIT_MS),
            };
            let mut client = self.client.clone();
            let reply = self.runtime.block_on(client.store_get(request));
            let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
            if reply.found {
                return Ok(reply.value);
            }
        }
    }
}
