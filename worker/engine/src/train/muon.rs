//! Muon (K. Jordan, 2024; arXiv 2502.16982): momentum, made nearly orthogonal by Newton-Schulz
//! iterations, with an update scaled to the size that AdamW's has.
//!
//! The iterations need the whole matrix. Tensor ranks gather its slices and all compute the same
//! products of the same shape, so the bits do not depend on how the matrix is split.

use coxswain_comm::Group;
use coxswain_native::ops;
use coxswain_types::job::OptimizerSpec;
use tch::Tensor;

use super::optimizer::{Moments, StepNumbers};
use crate::EngineError;
use crate::model::{Bucket, Param};

/// Coefficients of the quintic iteration, and how often it runs: singular values end near one.
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: u32 = 5;
/// The root mean square of an AdamW update, which the scaled one matches (arXiv 2502.16982, 2.2).
const ADAMW_RMS: f64 = 0.2;

/// Updates the matrices of a bucket; the slices of one matrix stand next to each other.
pub(super) fn step(
    params: &[&Param],
    bucket: &Bucket,
    moments: &Moments,
    grads: &Tensor,
    numbers: &OptimizerSpec,
    step: &StepNumbers,
    tensor: &Group,
) -> Result<(), EngineError> {
    for slices in params.chunk_by(|a, b| a.row.name == b.row.name) {
        let mut updates = Vec::new();
        for param in slices {
            // Flat and up to the aligned end, so that no loop has a tail of its own.
            let range = param.range();
            let mut ahead =
                grads.f_narrow(0, range.start, range.end - range.start)?.f_div_scalar(step.divisor)?;
            let (_, mut momentum) = moments.segment(&moments.first, &range)?;
            drop(momentum.f_mul_scalar_(numbers.momentum)?);
            drop(momentum.f_add_(&ahead)?);
            drop(ahead.f_add_(&momentum.f_mul_scalar(numbers.momentum)?)?);
            let rows = ahead.f_narrow(0, 0, param.row.elements() as i64)?;
            updates.push(rows.f_view(param.row.local_shape().as_slice())?);
        }
        let mut whole = orthogonal(whole(slices, updates, tensor)?)?;
        let (rows, columns) = whole.size2()?;
        let scale = step.learning_rate * ADAMW_RMS * (rows.max(columns) as f64).sqrt();
        drop(whole.f_mul_scalar_(scale)?);
        for param in slices {
            let row = &param.row;
            let update = whole.f_narrow(i64::from(row.dim), row.offset as i64, row.len as i64)?;
            let mut weight = param.view_of(&bucket.weights)?;
            if row.decay {
                drop(weight.f_mul_scalar_(1.0 - step.learning_rate * numbers.weight_decay)?);
            }
            drop(weight.f_sub_(&update)?);
        }
    }
    Ok(())
}

/// The matrix whose slices this rank and the other tensor ranks hold.
fn whole(slices: &[&Param], mut updates: Vec<Tensor>, tensor: &Group) -> Result<Tensor, EngineError> {
    let Some(first) = slices.first() else {
        return Err(EngineError::Other("a matrix has no slices".to_owned()));
    };
    let dim = i64::from(first.row.dim);
    let own = if updates.len() == 1 { updates.remove(0) } else { Tensor::f_cat(&updates, dim)? };
    let wanted = first.row.shape[first.row.dim as usize] as i64;
    drop(updates);
    if own.size()[dim as usize] == wanted {
        return Ok(own);
    }
    let gathered = tensor.gather(&own.f_contiguous()?, dim)?;
    // Where ranks hold the same slice (key/value heads), every copy but one is left out.
    let copies = gathered.size()[dim as usize] / wanted;
    if copies <= 1 {
        return Ok(gathered);
    }
    let ranks = gathered.f_chunk(copies * wanted / own.size()[dim as usize], dim)?;
    Ok(Tensor::f_cat(&ranks.into_iter().step_by(copies as usize).collect::<Vec<_>>(), dim)?)
}

/// The nearest matrix with orthogonal rows or columns, roughly. Beside it there is one more of its size at a
/// time, and squares of its shorter side.
fn orthogonal(x: Tensor) -> Result<Tensor, EngineError> {
    let (rows, columns) = x.size2()?;
    let tall = rows > columns;
    let mut x = if tall { x.f_transpose(0, 1)?.f_contiguous()? } else { x.f_contiguous()? };
    let norm = ops::sum_squares(&x.f_flatten(0, 1)?)?.sqrt();
    drop(x.f_div_scalar_(norm + 1e-7)?);
    let (a, b, c) = QUINTIC;
    for _ in 0..ITERATIONS {
        let mut poly = x.f_mm(&x.f_transpose(0, 1)?)?;
        let mut square = poly.f_mm(&poly)?;
        drop(square.f_mul_scalar_(c)?);
        drop(poly.f_mul_scalar_(b)?);
        drop(poly.f_add_(&square)?);
        let product = poly.f_mm(&x)?;
        drop(x.f_mul_scalar_(a)?);
        drop(x.f_add_(&product)?);
    }
    Ok(if tall { x.f_transpose(0, 1)?.f_contiguous()? } else { x })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn singular_values_end_near_one_for_wide_and_tall_matrices() {
        for (rows, columns) in [(12, 40), (40, 12), (16, 16)] {
            let values: Vec<f32> = (0..rows * columns)
                .map(|i| (coxswain_files::hash::draw(7, i as u64) as f64 / u64::MAX as f64 - 0.5) as f32)
                .collect();
            let x = Tensor::from_slice(&values).view([rows, columns]).to_kind(Kind::Float);
            let (_, singular, _) = orthogonal(x).unwrap().to_device(Device::Cpu).svd(true, true);
            let (least, most) = (singular.min().double_value(&[]), singular.max().double_value(&[]));
            assert!(least > 0.3 && most < 1.4, "{rows} x {columns}: {least} to {most}");
        }
    }
}
