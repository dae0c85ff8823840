//! A training step over a network that misbehaves: ranks as threads of this process, on a transport of its own. What
//! arrives late or in another order changes no bit; a rank that is lost, leaves or falls silent ends every wait of the
//! others with an error that names a rank.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use coxswain_comm::Links;
use coxswain_tests::faulty::{Faults, Hub};
use coxswain_tests::threads::{Stepped, assignments_of, initial, on_threads, own_tokens, step_over};
use coxswain_types::Assignment;

/// Longer than any step here takes, on any machine: a wait that ends by it was not ended by what happened.
const LIMIT: Duration = Duration::from_secs(60);

const JOB: &str = "
name: links
model: {layers: 2, dim: 16, heads: 4, kv_heads: 2, ffn: 24, vocab: 48, tied_embeddings: true}
data: {synthetic: {tokens: 4096}}
train: {steps: 1, sequence: 8, micro_batch_size: 1, global_micro_batches: 4, threads: 1}
layout: {pipeline: 2, tensor: 2, data: 2}
";

/// Losses and sums of gradients, as bits.
type StepBits = (Vec<u64>, Vec<Vec<u32>>);

/// How the step of a rank ended.
#[derive(Debug)]
struct End {
    result: Result<StepBits>,
    broken: bool,
    unreachable: Option<u32>,
}

fn bits(stepped: &Stepped) -> Result<StepBits> {
    let losses = stepped.losses.iter().map(|loss| loss.loss.to_bits()).collect();
    let total = |at| -> Result<Vec<u32>> {
        let sums = Vec::<f32>::try_from(stepped.reduction.total(at)?)?;
        Ok(sums.into_iter().map(f32::to_bits).collect())
    };
    Ok((losses, (0..stepped.parameters.buckets().len()).map(total).collect::<Result<_>>()?))
}

/// A step, and the small exchange that closes it.
fn step(a: &Assignment, links: &Links) -> Result<StepBits> {
    tch::set_num_threads(1);
    let stepped = step_over(a, links, &|micro_batch| Ok(own_tokens(a, micro_batch)), &initial)?;
    let bits = bits(&stepped)?;
    links.close_sum(&[1.0])?;
    Ok(bits)
}

/// The step of all ranks over a hub; `prepare` is handed each rank's links before its step.
fn run(hub: &Hub, limit: Duration, prepare: &(dyn Fn(u32, &Links) + Sync)) -> Result<Vec<End>> {
    on_threads(&assignments_of(JOB, &[])?, |a, _| {
        let links = Links::over(hub.transport(a.rank.0), a.rank.0, a.world, limit);
        prepare(a.rank.0, &links);
        let result = step(a, &links);
        let end = End { broken: links.is_broken(), unreachable: links.unreachable(), result };
        if end.result.is_err() {
            // As a worker does, so that sends in flight end too.
            links.abort();
        }
        Ok(end)
    })
}

/// What each rank has after a step without faults, and how many messages it starts.
fn calm() -> Result<(Vec<StepBits>, Vec<u64>)> {
    let hub = Hub::new(Faults::default());
    let ends = run(&hub, LIMIT, &|_, _| ())?;
    let messages: Vec<u64> = (0..ends.len() as u32).map(|rank| hub.messages(rank)).collect();
    ensure!(messages.iter().all(|count| *count > 20), "a step has {messages:?} messages");
    Ok((ends.into_iter().map(|end| end.result).collect::<Result<_>>()?, messages))
}

/// Some messages of some ranks, from the first of a step to the last of each rank.
fn moments(messages: &[u64], step: usize) -> Vec<(u32, u64)> {
    let all = (0..).zip(messages).map(|(rank, count)| (rank, *count));
    all.flat_map(|(rank, count)| {
        let own = (u64::from(rank)..count).step_by(step * messages.len());
        own.chain([count - 1]).map(move |message| (rank, message))
    })
    .collect()
}

/// Ranks that did not fail have the right bits. Others say what happened and with whom. No wait ran into its limit.
fn expect_named(case: &str, hub: &Hub, ends: &[End], right: &[StepBits]) -> Result<()> {
    ensure!(hub.given_up() == 0, "{case}: {} waits ended by their limit", hub.given_up());
    ensure!(ends.iter().any(|end| end.result.is_err()), "{case}: no rank noticed");
    for (rank, (end, right)) in ends.iter().zip(right).enumerate() {
        match &end.result {
            Ok(found) => ensure!(found == right, "{case}: rank {rank} has other bits"),
            Err(error) => {
                let text = format!("{error:#}");
                let named = text.contains("rank ") && text.contains("has left");
                ensure!(named || text.contains("was aborted"), "{case}: rank {rank} says `{text}`");
                ensure!(
                    end.broken == named,
                    "{case}: rank {rank} is broken: {}, and says `{text}`",
                    end.broken
                );
            }
        }
    }
    Ok(())
}

#[test]
fn late_messages_and_those_that_overtake_others_change_no_bit() -> Result<()> {
    let (right, _) = calm()?;
    for seed in 1..=12 {
        let hub = Hub::new(Faults { seed, held_back: seed % 4 * 3, ..Faults::default() });
        for (rank, (end, right)) in run(&hub, LIMIT, &|_, _| ())?.into_iter().zip(&right).enumerate() {
            let found = end.result.map_err(|error| anyhow!("seed {seed}, rank {rank}: {error:#}"))?;
            ensure!(found == *right, "seed {seed}: rank {rank} has other bits");
            ensure!(!end.broken, "seed {seed}: rank {rank} says that its network is broken");
        }
    }
    Ok(())
}

#[test]
fn a_rank_that_is_lost_at_any_message_ends_all_waits_with_its_name() -> Result<()> {
    let (right, messages) = calm()?;
    for (rank, at) in moments(&messages, 4) {
        let faults = Faults { seed: at, held_back: 3, lost: Some((rank, at)), silent: None };
        let hub = Hub::new(faults);
        let ends = run(&hub, LIMIT, &|_, _| ())?;
        expect_named(&format!("rank {rank} lost at {at}"), &hub, &ends, &right)?;
    }
    Ok(())
}

#[test]
fn a_rank_that_aborts_at_any_message_ends_all_waits() -> Result<()> {
    let (right, messages) = calm()?;
    for (rank, at) in moments(&messages, 8) {
        let hub = Hub::new(Faults { seed: at, held_back: 2, ..Faults::default() });
        let ends = run(&hub, LIMIT, &|own, links| {
            let links = links.clone();
            if own == rank {
                hub.at(rank, at, move || links.abort());
            }
        })?;
        let case = format!("rank {rank} aborts at {at}");
        expect_named(&case, &hub, &ends, &right)?;
        ensure!(!ends[rank as usize].broken, "{case}: it takes its own abort for a failure of others");
    }
    Ok(())
}

#[test]
fn a_rank_that_falls_silent_is_named_once_the_limit_has_passed() -> Result<()> {
    let hub = Hub::new(Faults { silent: Some((1, 0)), ..Faults::default() });
    let ends = run(&hub, Duration::from_millis(700), &|_, _| ())?;
    ensure!(hub.given_up() > 0, "no wait ended by its limit");
    // The first that waits in vain may be rank 0 or one that waits for it.
    ensure!(ends.iter().all(|end| end.result.is_err()), "a rank ended a step that cannot end");
    ensure!(ends.iter().any(|end| end.unreachable.is_some()), "no rank is said to give no answer");
    Ok(())
}
