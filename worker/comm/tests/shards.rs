//! Logical tensor shards over one, two and four ranks: the same bits, with and without sequence parallelism.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use coxswain_comm::{Axis, Links};
use coxswain_native::ops::{self, NormUse, Slot, WgradQueue};
use tch::{Device, Kind, Tensor};

use common::ranks;

const SHARDS: usize = 4;
const BATCH: i64 = 2;
const TOKENS: i64 = 8;
const DIM: i64 = 16;
/// Columns of one shard: of the feed-forward layer, and of the vocabulary.
const WIDTH: i64 = 24;

/// Numbers of about one, a pure function of the name: every rank makes the same.
fn numbers(name: u64, shape: &[i64], kind: Kind) -> Tensor {
    let mut state = name.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u32 << 23) as f32) - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| next()).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

fn bits(x: &Tensor) -> Vec<u64> {
    let values = Vec::<f64>::try_from(&x.to_kind(Kind::Double).flatten(0, -1)).unwrap();
    values.into_iter().map(f64::to_bits).collect()
}

/// What must not depend on the layout: whole tensors, and those of each shard.
#[derive(Debug, Default, PartialEq)]
struct Bits {
    whole: Vec<Vec<u64>>,
    shards: Vec<Vec<Vec<u64>>>,
}

fn slots(shapes: &[&[i64]]) -> Vec<(Slot, Tensor)> {
    let each = |shape: &&[i64]| {
        let (slot, grad) = (Slot::new(), Tensor::full(*shape, f64::NAN, (Kind::Float, Device::Cpu)));
        slot.set(&grad);
        (slot, grad)
    };
    shapes.iter().map(each).collect()
}

/// A feed-forward layer and a head with its loss, forward and backward, as one of `world` ranks.
fn step(links: &Links, world: usize, sequence_parallel: bool, kind: Kind) -> Bits {
    let all: Vec<u32> = (0..world as u32).collect();
    let group = links.group(&all, Axis::Tensor).unwrap();
    let (rank, count) = (links.rank() as usize, SHARDS / world);
    let own = rank * count..(rank + 1) * count;
    let tokens = if sequence_parallel { TOKENS / world as i64 } else { TOKENS };
    let first = if sequence_parallel { rank as i64 * tokens } else { 0 };
    let cut = |x: Tensor| x.narrow(1, first, tokens).contiguous();
    let gathered = |x: &Tensor| if sequence_parallel { group.gather(x, 1).unwrap() } else { x.detach() };

    let wgrad_queue = WgradQueue::new();
    let x = cut(numbers(1, &[BATCH, TOKENS, DIM], kind)).set_requires_grad(true);
    let weight = |name: u64, shard: usize, shape: &[i64]| numbers(10 * name + shard as u64, shape, kind);
    let grads = slots(&[&[WIDTH, DIM][..], &[DIM, WIDTH], &[WIDTH, DIM]].repeat(count));
    // A norm's weight has a gradient for each shard's tokens: all of them here, or those of this rank.
    let slices = if sequence_parallel { count } else { SHARDS };
    let norms = slots(&vec![&[DIM][..]; slices]);
    let slice = TOKENS / SHARDS as i64;
    let uses: Vec<_> = (0..slices as i64)
        .zip(&norms)
        .map(|(at, (slot, _))| NormUse { slot, first: at * slice, tokens: slice })
        .collect();
    let normed = ops::rms_norm(&x, &numbers(2, &[DIM], Kind::Float), 1e-5, &uses, &wgrad_queue).unwrap();

    let copies = ops::copy_to_shards(&normed, &group, &wgrad_queue, count, sequence_parallel).unwrap();
    let parts: Vec<_> = (0..count)
        .map(|i| {
            let up = ops::linear(
                &copies[i],
                &weight(3, own.start + i, &[WIDTH, DIM]),
                &grads[3 * i].0,
                &wgrad_queue,
            );
            ops::linear(
                &up.unwrap(),
                &weight(4, own.start + i, &[DIM, WIDTH]),
                &grads[3 * i + 1].0,
                &wgrad_queue,
            )
            .unwrap()
        })
        .collect();
    let y = &x + ops::reduce_from_shards(&parts, &group, sequence_parallel).unwrap();

    let copies = ops::copy_to_shards(&y, &group, &wgrad_queue, count, sequence_parallel).unwrap();
    let logits: Vec<_> = (0..count)
        .map(|i| {
            let logits = ops::linear(
                &copies[i],
                &weight(5, own.start + i, &[WIDTH, DIM]),
                &grads[3 * i + 2].0,
                &wgrad_queue,
            );
            logits.unwrap().view([BATCH * TOKENS, WIDTH])
        })
        .collect();
    let targets: Vec<i64> = (0..BATCH * TOKENS).map(|row| row * 7 % (SHARDS as i64 * WIDTH) - 1).collect();
    let starts: Vec<_> = own.clone().map(|shard| shard as u64 * WIDTH as u64).collect();
    let loss = ops::cross_entropy(logits, &Tensor::from_slice(&targets), None, &starts, &group).unwrap();
    let dx = ops::grad(&loss, &Tensor::ones([], (Kind::Double, Device::Cpu)), &x).unwrap();
    wgrad_queue.flush().unwrap();

    let norm = norms.iter().map(|(_, grad)| grad.copy()).collect::<Vec<_>>();
    let norm = Tensor::stack(&norm, 0);
    let norm = if sequence_parallel { group.gather(&norm, 0).unwrap() } else { norm };
    Bits {
        whole: [gathered(&y.detach()), gathered(&dx), loss.detach(), norm].iter().map(bits).collect(),
        shards: grads.chunks(3).map(|shard| shard.iter().map(|(_, grad)| bits(grad)).collect()).collect(),
    }
}

#[test]
fn the_number_of_ranks_changes_no_bit() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        let alone = step(&Links::alone(), 1, false, kind);
        assert_eq!(alone.shards.len(), SHARDS);
        let finite = alone.whole.iter().chain(alone.shards.iter().flatten()).flatten();
        assert!(finite.copied().all(|bits| f64::from_bits(bits).is_finite()), "{kind:?}");
        for world in [1, 2, 4] {
            for sequence_parallel in [false, true] {
                let mut shards = Vec::new();
                for (rank, part) in
                    ranks(world, |links| step(&links, world as usize, sequence_parallel, kind))
                        .into_iter()
                        .enumerate()
                {
                    assert_eq!(
                        part.whole, alone.whole,
                        "{kind:?}, rank {rank} of {world}, sequence_parallel: {sequence_parallel}"
                    );
                    shards.extend(part.shards);
                }
                assert_eq!(
                    shards, alone.shards,
                    "{kind:?}, {world} ranks, sequence_parallel: {sequence_parallel}"
                );
            }
        }
    }
}

#[test]
fn gathering_puts_ranks_side_by_side_and_uneven_sequences_are_refused() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
        let part = |rank: u32| {
            Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 4]).to_kind(kind) + f64::from(rank)
        };
        for dim in [0, 1] {
            let whole = Tensor::cat(&[part(0), part(1)], dim);
            let want = bits(&whole);
            let got = ranks(2, |links| {
                let group = links.group(&[0, 1], Axis::Tensor).unwrap();
                bits(&group.gather(&part(links.rank()), dim).unwrap())
            });
            assert_eq!(got, [want.clone(), want], "{kind:?} along {dim}");
        }
    }
    let errors = ranks(2, |links| {
        let group = links.group(&[0, 1], Axis::Tensor).unwrap();
        let odd = Tensor::zeros([1, 3, 2], (Kind::Float, Device::Cpu));
        ops::reduce_from_shards(&[odd], &group, true).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| error.contains("does not divide among 2 ranks")), "{errors:?}");
}
