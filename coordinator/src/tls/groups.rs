//! CAs of generations at work, by which the members of a generation know each other when they exchange
//! tensors. They are in memory only: after a restart of the coordinator its workers keep what they have,
//! and the next generation has another CA anyhow. Who was in an older one cannot finish a handshake.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;

use super::authority::{Authority, DAY};

/// How long the certificates of a generation live. They are looked at when connections are made, which is
/// when the generation is formed.
pub(crate) const GROUP_LIFE: std::time::Duration = DAY;

/// CAs by job, of its newest generation.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    of: BTreeMap<String, (u64, Arc<Authority>)>,
}

impl Groups {
    /// The CA of this generation, which is at work. Those of jobs that are not `at_work` are forgotten.
    pub(crate) fn authority(
        &mut self,
        job: &str,
        generation: u64,
        at_work: impl Fn(&str, u64) -> bool,
    ) -> Result<Arc<Authority>> {
        self.of.retain(|job, (generation, _)| at_work(job, *generation));
        if let Some((newest, authority)) = self.of.get(job)
            && *newest == generation
        {
            return Ok(authority.clone());
        }
        let authority = Arc::new(Authority::new(&format!("{job} generation {generation}"), GROUP_LIFE)?);
        self.of.insert(job.to_owned(), (generation, authority.clone()));
        Ok(authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_has_a_ca_of_its_own_and_old_ones_are_forgotten() {
        let mut groups = Groups::default();
        let first = groups.authority("a-1", 1, |_, _| true).unwrap();
        assert_eq!(groups.authority("a-1", 1, |_, _| true).unwrap().der(), first.der());
        let other = groups.authority("b-2", 1, |_, _| true).unwrap();
        let second = groups.authority("a-1", 2, |job, generation| job != "a-1" || generation == 2).unwrap();
        assert!(first.der() != second.der() && first.der() != other.der());
        groups.authority("c-3", 1, |job, _| job == "c-3").unwrap();
        assert_eq!(groups.of.len(), 1);
    }
}
