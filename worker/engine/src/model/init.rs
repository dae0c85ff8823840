//! Initial values: a function of (seed, parameter name, element index), so that each rank makes
//! its own slice and all layouts start from the same bits.

use coxswain_files::hash::draw;
use coxswain_types::params::{Init, ParameterRow};

/// The values of the row's slice, in row-major order.
pub fn initial_values(row: &ParameterRow, seed: u64) -> Vec<f32> {
    let std = match row.init {
        Init::Ones => return vec![1.0; row.elements() as usize],
        Init::Zeros => return vec![0.0; row.elements() as usize],
        Init::Normal { std } => std,
    };
    let key = row.name.bytes().fold(draw(seed, 0), |key, byte| draw(key, u64::from(byte)));
    let dim = usize::from(row.dim);
    let inner: u64 = row.shape[dim + 1..].iter().product();
    let outer: u64 = row.shape[..dim].iter().product();
    let mut values = Vec::with_capacity(row.elements() as usize);
    for block in 0..outer {
        let start = (block * row.shape[dim] + row.offset) * inner;
        values.extend((start..start + row.len * inner).map(|index| (normal(draw(key, index)) * std) as f32));
    }
    values
}

/// A normal deviate from 64 random bits (Box and Muller).
fn normal(bits: u64) -> f64 {
    let unit = |half: u64| (half as f64 + 0.5) / (f64::from(u32::MAX) + 1.0);
    let (a, b) = (unit(bits >> 32), unit(bits & u64::from(u32::MAX)));
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_types::job::ModelSpec;
    use coxswain_types::params::{parameter_table, slice_of};

    fn row(name: &str, index: u32, tensor: u32) -> ParameterRow {
        let model = ModelSpec::llama(1, 32, 4, 2, 48, 301);
        let table = parameter_table(&model);
        let parameter = table.iter().find(|p| p.name.contains(name)).unwrap();
        parameter.row(&slice_of(parameter, index, tensor), index)
    }

    #[test]
    fn slices_along_either_dim_hold_the_values_of_the_whole() {
        let whole = initial_values(&row("down_proj", 0, 1), 3);
        let (left, right) =
            (initial_values(&row("down_proj", 0, 2), 3), initial_values(&row("down_proj", 1, 2), 3));
        let rows = whole.chunks(48).zip(left.chunks(24).zip(right.chunks(24)));
        assert!(rows.into_iter().all(|(w, (l, r))| w[..24] == *l && w[24..] == *r));

        let whole = initial_values(&row("embed", 0, 1), 3);
        let halves = [initial_values(&row("embed", 0, 2), 3), initial_values(&row("embed", 1, 2), 3)];
        assert_eq!(whole, halves.concat());
    }

    #[test]
    fn values_are_normal_and_differ_by_seed_and_name() {
        let values = initial_values(&row("embed", 0, 1), 3);
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let std = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 1e-3 && (std / 0.02 - 1.0).abs() < 0.03, "mean {mean}, std {std}");
        assert_ne!(values, initial_values(&row("embed", 0, 1), 4));
        assert_ne!(values, initial_values(&row("lm_head", 0, 1), 3));
    }
}
