//! The closing exchange of a step, as pure data: what each rank brings, and what all make of it.
//!
//! Every slot but the directive has one contributor, and the directive is a minimum, so merging is exact in any grouping; all
//! ranks then compute from the same list, in its order, and come to the same decision.

use coxswain_comm::Links;
use coxswain_types::Step;
use coxswain_types::status::Directive;

use crate::EngineError;
use crate::error::Doing;
use crate::parallel::MicroLoss;

/// What a rank brings: its vote that its gradients are reduced, and its parts of the sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vote {
    /// The newest directive that it has seen.
    pub directive: Directive,
    /// Squared norms of the slices that it contributes, by slot.
    pub norms: Vec<(u32, f64)>,
    /// Losses of the micro-batches whose loss it computed and contributes.
    pub losses: Vec<MicroLoss>,
}

/// What all ranks agree on.
#[derive(Clone, Debug, PartialEq)]
pub struct Closing {
    /// The directive with the least revision that any rank has seen, which rules from the next step on.
    pub directive: Directive,
    /// The norm of the summed gradient.
    pub norm: f64,
    /// Squared norms of all slices, by slot.
    pub squares: Vec<f64>,
    /// The summed loss.
    pub loss: f64,
    /// Tokens that counted.
    pub tokens: u64,
    /// The sum of their weights.
    pub weight: f64,
}

/// The first slots: a revision and what it asks for.
const DIRECTIVE: usize = 3;

/// Exchanges votes over all ranks, of which `norm_slots` and `micro_batches` are the same on all. With what
/// they agree on, the list that says so, to the bit the same everywhere.
pub(super) fn close(
    links: &Links,
    vote: &Vote,
    norm_slots: u32,
    micro_batches: u32,
) -> Result<(Closing, Vec<f64>), EngineError> {
    let own = vote.encode(norm_slots, micro_batches);
    let merged =
        links.close(&own, |lists| merge(&lists)).doing(|| "closing the step with all ranks".to_owned())?;
    Ok((Closing::decode(&merged, norm_slots, micro_batches), merged))
}

impl Vote {
    fn encode(&self, norm_slots: u32, micro_batches: u32) -> Vec<f64> {
        let (norms, losses) = (norm_slots as usize, micro_batches as usize);
        let mut list = vec![0.0; DIRECTIVE + norms + 3 * losses];
        // Revisions and steps stay below 2^53, where a double is exact.
        let Directive { revision, run_to, save_after } = self.directive;
        list[0] = revision as f64;
        list[1] = run_to.0 as f64;
        list[2] = save_after.0 as f64;
        for &(slot, value) in &self.norms {
            list[DIRECTIVE + slot as usize] = value;
        }
        for loss in &self.losses {
            let at = DIRECTIVE + norms + loss.micro_batch as usize;
            list[at] = loss.loss;
            list[at + losses] = loss.tokens as f64;
            list[at + 2 * losses] = loss.weight;
        }
        list
    }
}

/// The least revision with what it asks for; each other slot from its one contributor.
fn merge(lists: &[Vec<f64>]) -> Vec<f64> {
    let slots = lists.first().map_or(0, Vec::len);
    let directive = lists
        .iter()
        .map(|list| &list[..DIRECTIVE])
        .min_by(|a, b| a[0].total_cmp(&b[0]))
        .unwrap_or(&[0.0; DIRECTIVE]);
    let sums = (DIRECTIVE..slots).map(|at| lists.iter().map(|list| list[at]).sum());
    directive.iter().copied().chain(sums).collect()
}

impl Closing {
    pub(super) fn decode(list: &[f64], norm_slots: u32, micro_batches: u32) -> Closing {
        let (norms, rest) = list[DIRECTIVE..].split_at(norm_slots as usize);
        let (losses, rest) = rest.split_at(micro_batches as usize);
        let (tokens, weights) = rest.split_at(micro_batches as usize);
        Closing {
            directive: Directive {
                revision: list[0] as u64,
                run_to: Step(list[1] as u64),
                save_after: Step(list[2] as u64),
            },
            norm: norms.iter().sum::<f64>().sqrt(),
            squares: norms.to_vec(),
            loss: losses.iter().sum(),
            tokens: tokens.iter().sum::<f64>() as u64,
            weight: weights.iter().sum(),
        }
    }

    /// The norm of the mean gradient, of a loss that was multiplied by `multiplier`.
    pub fn mean_norm(&self, multiplier: f64) -> f64 {
        self.norm / self.weight / multiplier
    }

    /// Mean loss per token, each by its weight.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_decide_from_one_list_in_its_own_order() {
        let directive = |revision, run_to, save_after| Directive {
            revision,
            run_to: Step(run_to),
            save_after: Step(save_after),
        };
        let loss = |micro_batch, loss| MicroLoss { micro_batch, loss, tokens: 10, weight: 2.5, right: 0 };
        let votes = [
            Vote { directive: directive(5, 9, 8), norms: vec![(0, 9.0)], losses: vec![] },
            Vote {
                directive: directive(4, 70, 6),
                norms: vec![(2, 16.0)],
                losses: vec![loss(1, 2.5), loss(0, 1.5)],
            },
            Vote { directive: directive(6, 9, 8), norms: vec![], losses: vec![loss(2, 4.0)] },
        ];
        let lists: Vec<_> = votes.iter().map(|vote| vote.encode(3, 3)).collect();
        let closing = Closing::decode(&merge(&lists), 3, 3);
        let squares = vec![9.0, 0.0, 16.0];
        let directive = directive(4, 70, 6);
        assert_eq!(closing, Closing { directive, norm: 5.0, squares, loss: 8.0, tokens: 30, weight: 7.5 });
    }

    #[test]
    fn one_bad_gradient_or_loss_shows_everywhere() {
        for bad in [f64::NAN, f64::INFINITY] {
            let lists = [
                Vote { norms: vec![(0, bad)], ..Vote::default() }.encode(1, 1),
                Vote::default().encode(1, 1),
            ];
            assert!(!Closing::decode(&merge(&lists), 1, 1).norm.is_finite());
        }
    }
}
