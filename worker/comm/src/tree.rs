//! The tree in which all ranks exchange something: who reports to whom.

/// How many ranks report to one in the exchanges of all ranks. Up to nine ranks are a star around the lead, with
/// the fewest hops; among more, no rank takes in more lists than these.
const FAN_IN: u32 = 8;

/// The rank that `rank` reports to in the closing exchange; the lead rank reports to none.
pub(crate) fn parent(rank: u32) -> Option<u32> {
    rank.checked_sub(1).map(|before| before / FAN_IN)
}

/// The ranks that report to `rank` in the closing exchange.
pub(crate) fn children(rank: u32, world: u32) -> std::ops::Range<u32> {
    let first = |rank: u32| rank.saturating_mul(FAN_IN).saturating_add(1).min(world);
    first(rank)..first(rank.saturating_add(1))
}

/// `rank` and all that report to it, over others too, each before those below it.
pub(crate) fn below(rank: u32, world: u32) -> Vec<u32> {
    let mut ranks = vec![rank];
    children(rank, world).for_each(|child| ranks.extend(below(child, world)));
    ranks
}

#[cfg(test)]
mod tests {
    use super::{FAN_IN, below, children, parent};

    #[test]
    fn every_rank_but_the_lead_reports_to_one_that_expects_it() {
        for world in [1, 2, 9, 10, 74, 4096] {
            let mut expected = 0;
            for rank in 0..world {
                let children = children(rank, world);
                assert!(children.len() <= FAN_IN as usize, "{rank} of {world}: {children:?}");
                assert!(children.clone().all(|child| parent(child) == Some(rank)), "{rank} of {world}");
                expected += children.len();
            }
            assert_eq!(expected + 1, world as usize);
            let mut all = below(0, world);
            assert_eq!(all[0], 0);
            all.sort_unstable();
            assert!(all.into_iter().eq(0..world), "each rank once");
            assert_eq!(parent(0), None);
        }
    }
}
