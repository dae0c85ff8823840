//! Where the ranks of a generation find each other, and one such place for ranks that are threads of one process.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Keys and values that the ranks of a generation see, and they alone.
pub trait Store: Send + Sync + 'static {
    /// Makes a value visible to all ranks.
    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), String>;
    /// Waits for a value. The error says what was waited for and why it ended.
    fn get(&self, key: &[u8]) -> Result<Vec<u8>, String>;
}

/// How long a key is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

type Values = HashMap<Vec<u8>, Vec<u8>>;

/// Keys and values in memory; clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<(Mutex<Values>, Condvar)>);

impl Store for MemoryStore {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let (values, changed) = &*self.0;
        values.lock().map_err(|error| error.to_string())?.insert(key.to_vec(), value.to_vec());
        changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Vec<u8>, String> {
        let (values, changed) = &*self.0;
        let values = values.lock().map_err(|error| error.to_string())?;
        let waited = changed.wait_timeout_while(values, PATIENCE, |values| !values.contains_key(key));
        let (values, _) = waited.map_err(|error| error.to_string())?;
        values.get(key).cloned().ok_or_else(|| "it was never set".to_owned())
    }
}
