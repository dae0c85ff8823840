//! A model as a folder that the `transformers` library loads.

use std::collections::BTreeMap;
use std::path::Path;

use coxswain_types::params::{Parameter, parameter_table};

use super::family::Family;
use super::names::{Other, TensorSource, other};
use super::store::{self, Planned};
use super::{HfError, Said, found, source_of, their_shape, transposed};
use crate::atomic::write_atomic;

/// Values of a slab: name, dim, offset, length.
pub type ReadSlab<'a> = dyn FnMut(&str, u8, u64, u64) -> Result<Vec<f32>, HfError> + 'a;

/// Writes a model into a folder that is there and has none: safetensors files of at most so many bytes, and what is
/// said beside them. `read` gives the numbers of slabs; one tensor is in memory at a time.
///
/// # Errors
/// [`HfError`] where no family can say the model, and where files cannot be written.
pub fn export(
    folder: &Path,
    said: &Said<'_>,
    max_file_bytes: u64,
    read: &mut ReadSlab<'_>,
) -> Result<(), HfError> {
    let (family, files) = said.files()?;
    weights(folder, family, said, max_file_bytes, read)?;
    // Last, so that a folder with a configuration is whole.
    for (name, bytes) in files.iter().rev() {
        let path = folder.join(name);
        write_atomic(&path, bytes).map_err(HfError::io(&path))?;
    }
    Ok(())
}

fn weights(
    folder: &Path,
    family: Family,
    &Said { model, kept, .. }: &Said<'_>,
    max_file_bytes: u64,
    read: &mut ReadSlab<'_>,
) -> Result<(), HfError> {
    let dtype = |name: &str| kept.and_then(|kept| kept.dtypes.get(name).cloned());
    let mut parts: BTreeMap<String, Vec<(Parameter, TensorSource)>> = BTreeMap::new();
    for parameter in parameter_table(model) {
        let mut source = source_of(family, model, &parameter)?;
        // What came in under another name leaves under it.
        source.tensor = found(family, &source.tensor, |name| dtype(name).is_some())?;
        parts.entry(source.tensor.clone()).or_default().push((parameter, source));
    }
    let mut planned: Vec<Planned> = Vec::new();
    for (name, of) in &mut parts {
        of.sort_by_key(|(_, source)| source.part.0);
        if let Some((parameter, source)) = of.first() {
            planned.push(Planned {
                name: name.clone(),
                shape: their_shape(parameter, source),
                dtype: dtype(name),
            });
        }
    }
    // Copies and zeros that were there come back.
    let others = kept.map(|kept| kept.dtypes.keys()).into_iter().flatten();
    for name in others.filter(|name| !parts.contains_key(*name)) {
        let shape = match other(family, model, name) {
            Some(Other::Copy(of)) => {
                parameter_table(model).iter().find(|row| row.name == of).map(|row| row.shape.clone())
            }
            Some(Other::Zeros) => Some(vec![1, u64::from(model.vocab)]),
            _ => None,
        };
        planned.extend(shape.map(|shape| Planned { name: name.clone(), shape, dtype: dtype(name) }));
    }
    planned.sort_by(|a, b| a.name.cmp(&b.name));
    let copied = |name: &str| match other(family, model, name) {
        Some(Other::Copy(of)) => Some(of),
        _ => None,
    };
    store::write(folder, &planned, max_file_bytes, |name| match (parts.get(name), copied(name)) {
        (Some(of), _) => assembled(of, read),
        (None, Some(of)) => {
            let rows = planned.iter().find(|tensor| tensor.name == name).map_or(0, |tensor| tensor.shape[0]);
            read(of, 0, 0, rows)
        }
        (None, None) => Ok(vec![0.0; model.vocab as usize]),
    })
}

/// The numbers of a tensor, from the parameters that lie in it.
fn assembled(of: &[(Parameter, TensorSource)], read: &mut ReadSlab<'_>) -> Result<Vec<f32>, HfError> {
    let (mut values, mut rows, mut cols) = (Vec::new(), 0, 1);
    for (parameter, _) in of {
        values.extend(read(&parameter.name, 0, 0, parameter.shape[0])?);
        rows += parameter.shape[0];
        cols = parameter.shape.get(1).copied().unwrap_or(1);
    }
    let transposes = of.first().is_some_and(|(_, source)| source.transposed);
    Ok(if transposes { transposed(&values, rows as usize, cols as usize) } else { values })
}
