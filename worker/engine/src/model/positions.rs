//! Tables of positions, computed in double: a float's last place is a visible angle at position
//! 10,000.

use std::f64::consts::{PI, TAU};

use coxswain_types::model::{ModelSpec, Positions, RopeScaling};
use tch::{Device, Tensor};

use super::layer::on_device;
use crate::EngineError;

/// Rotary tables for consecutive positions, `[t, k/2]` (arXiv 2104.09864).
#[derive(Debug)]
pub struct Rotary {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Rotary {
    /// x `[b, t, h, k]` rotated, whose first token is at `first` of the tables; they may reach further, for
    /// the longer one of two stacks.
    pub(super) fn rotate(&self, first: i64, x_bthk: &Tensor) -> Result<Tensor, EngineError> {
        let tokens = x_bthk.size()[1];
        let [cos, sin] = [&self.cos, &self.sin].map(|table| table.f_narrow(0, first, tokens));
        Ok(coxswain_native::ops::rope(x_bthk, &cos?, &sin?)?)
    }

    /// x `[b, t, h, k]` rotated by these positions `[b, t]`.
    pub(super) fn rotate_by(&self, positions_bt: &Tensor, x_bthk: &Tensor) -> Result<Tensor, EngineError> {
        let rows_n = on_device(&positions_bt.f_flatten(0, -1)?, self.cos.device())?;
        let [cos, sin] = [&self.cos, &self.sin].map(|table| table.f_index_select(0, &rows_n));
        let shape = x_bthk.size();
        let flat = x_bthk.f_reshape([1, shape[0] * shape[1], shape[2], shape[3]])?;
        Ok(coxswain_native::ops::rope(&flat, &cos?, &sin?)?.f_view(shape.as_slice())?)
    }

    /// Tables for the positions `start..start + tokens`; `None` where the model does not rotate.
    pub fn new(
        model: &ModelSpec,
        start: i64,
        tokens: i64,
        device: Device,
    ) -> Result<Option<Rotary>, EngineError> {
        let Positions::Rope { theta, scaling } = model.positions else { return Ok(None) };
        let rotated = model.attention.rotated(model.head_dim);
        let (frequencies, factor) = frequencies(f64::from(rotated), theta, scaling);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (start..start + tokens)
                .flat_map(|at| frequencies.iter().map(move |frequency| at as f64 * frequency))
                .map(|angle| (f(angle) * factor) as f32)
                .collect();
            on_device(&Tensor::from_slice(&values).f_view([tokens, frequencies.len() as i64])?, device)
        };
        Ok(Some(Rotary { cos: table(f64::cos)?, sin: table(f64::sin)? }))
    }
}

/// The angle of each pair of a head's dims from one position to the next, and what queries and keys
/// are multiplied by.
fn frequencies(dim: f64, theta: f64, scaling: RopeScaling) -> (Vec<f64>, f64) {
    let plain = |i: f64| theta.powf(-2.0 * i / dim);
    let each = |stretch: &dyn Fn(f64, f64) -> f64| {
        let pairs = (0..(dim / 2.0) as u32).map(f64::from);
        pairs.map(|i| stretch(i, plain(i))).collect()
    };
    match scaling {
        RopeScaling::None => (each(&|_, frequency| frequency), 1.0),
        RopeScaling::Linear { factor } => (each(&|_, frequency| frequency / factor), 1.0),
        RopeScaling::Llama3 { factor, low, high, original } => {
            let stretch = |_: f64, frequency: f64| {
                let turns = f64::from(original) * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            };
            (each(&stretch), 1.0)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original } => {
            // The pair that turns so many times over the original length.
            let pair =
                |turns: f64| dim * (f64::from(original) / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let (low, high) = (pair(beta_fast).floor().max(0.0), pair(beta_slow).ceil().min(dim - 1.0));
            let high = if high == low { high + 0.001 } else { high };
            let stretch = |i: f64, frequency: f64| {
                let stretched = ((i - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (1.0 - stretched + stretched / factor)
            };
            (each(&stretch), if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 })
        }
    }
}

/// Sines and cosines of positions `[b, t]`, one of each wavelength in turn: `[b, t, d]` (arXiv 1706.03762, 3.5).
pub(super) fn sinusoids(dim: i64, positions_bt: &Tensor) -> Result<Tensor, EngineError> {
    let rates: Vec<f64> = (0..dim).map(|i| 1e4_f64.powf(-((i - i % 2) as f64) / dim as f64)).collect();
    let value = |at: i64, i: usize| {
        let angle = at as f64 * rates[i];
        if i.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    let positions = Vec::<i64>::try_from(positions_bt.f_contiguous()?.f_flatten(0, -1)?)?;
    let values: Vec<f32> =
        positions.iter().flat_map(|at| (0..rates.len()).map(|i| value(*at, i) as f32)).collect();
    Ok(Tensor::from_slice(&values).f_view([positions_bt.size().as_slice(), &[dim]].concat().as_slice())?)
}

/// The slope of each head, of all of a layer's (arXiv 2108.12409): a geometric series where their number
/// is a power of two, else that of the power below and every second one of the power above.
pub(super) fn alibi_slopes(heads: u32) -> Vec<f64> {
    let series = |count: u32, i: u32| 2_f64.powf(-8.0 * f64::from(i + 1) / f64::from(count));
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let odd = (0..heads - below).map(|i| series(2 * below, 2 * i));
    (0..below).map(|i| series(below, i)).chain(odd).collect()
}

/// The bucket of a distance `key - query` (arXiv 1910.10683). Half of the buckets are for single
/// distances, the others grow by a constant ratio up to `max_distance`; bidirectional ones keep half
/// for either side. Borders are found in double, with exact powers on the upper side.
pub(super) fn relative_bucket(relative: i64, bidirectional: bool, buckets: u32, max_distance: u32) -> i64 {
    let (mut buckets, mut first, mut distance) = (i64::from(buckets), 0, -relative);
    if bidirectional {
        buckets /= 2;
        first = if relative > 0 { buckets } else { 0 };
        distance = distance.abs();
    }
    let (distance, exact) = (distance.max(0), buckets / 2);
    if distance < exact {
        return first + distance;
    }
    let ratio = (distance as f64 / exact as f64).ln() / (f64::from(max_distance) / exact as f64).ln();
    let steps = (ratio * (buckets - exact) as f64 + 1e-9).floor() as i64;
    first + (exact + steps).min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_paper() {
        let both =
            [(0, 0), (1, 17), (7, 23), (8, 24), (9, 24), (200, 31), (-1, 1), (-7, 7), (-8, 8), (-200, 15)];
        for (relative, bucket) in both {
            assert_eq!(relative_bucket(relative, true, 32, 128), bucket, "{relative}");
        }
        for (relative, bucket) in [(-1, 1), (-15, 15), (-16, 16), (-17, 16), (-200, 31), (5, 0)] {
            assert_eq!(relative_bucket(relative, false, 32, 128), bucket, "{relative}");
        }
        // At exact powers of the ratio a bucket begins.
        let begins: Vec<i64> = (8..128)
            .filter(|d| relative_bucket(-d, true, 32, 128) > relative_bucket(1 - d, true, 32, 128))
            .collect();
        assert_eq!(begins, [8, 12, 16, 23, 32, 46, 64, 91]);
    }

    #[test]
    fn sinusoids_are_those_of_the_paper() {
        let of =
            |at: i64| Vec::<f32>::try_from(&sinusoids(4, &Tensor::from(at).view([1, 1])).unwrap().view(-1));
        assert_eq!(of(0).unwrap(), [0.0, 1.0, 0.0, 1.0]);
        // Wavelengths 2 pi and 100 * 2 pi.
        let wanted = [3_f32.sin(), 3_f32.cos(), 0.03_f32.sin(), 0.03_f32.cos()];
        let found = of(3).unwrap();
        assert!(found.iter().zip(wanted).all(|(x, y)| (x - y).abs() < 1e-6), "{found:?} {wanted:?}");
    }

    #[test]
    fn slopes_are_those_of_the_paper() {
        let powers = |list: &[f64]| list.iter().map(|x| 2_f64.powf(-x)).collect::<Vec<_>>();
        let eight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(alibi_slopes(8), powers(&eight));
        assert_eq!(alibi_slopes(12), powers(&[&eight[..], &[0.5, 1.5, 2.5, 3.5]].concat()));
    }

    #[test]
    fn frequencies_are_the_published_ones() {
        let (plain, _) = frequencies(64.0, 1e4, RopeScaling::None);
        assert!((plain[1] - 0.749_894_2).abs() < 1e-7 && (plain[31] - 1.333_521e-4).abs() < 1e-9);
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        let (scaled, _) = frequencies(128.0, 5e5, llama3);
        let (plain, _) = frequencies(128.0, 5e5, RopeScaling::None);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
    }
}
