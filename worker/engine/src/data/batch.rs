//! A micro-batch from its rows.

use std::sync::Arc;

use tch::Tensor;

use super::{Documents, MicroBatchData};
use crate::EngineError;

/// What padding is of; that of an encoder's and of a decoder's row do not see each other.
const PADDED_SOURCE: u32 = u32::MAX;
const PADDED_TARGETS: u32 = u32::MAX - 1;

/// What an objective makes of one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SampleRow {
    /// Inputs of the last stack.
    pub(super) ids: Vec<i64>,
    /// What is asked for; -1 where nothing is.
    pub(super) targets: Vec<i64>,
    /// What each target counts in the loss, in thousandths so that sums are exact; 1 where it is `None`.
    pub(super) weight: Option<u32>,
    /// What the encoder in front of a decoder reads.
    pub(super) source: Vec<i64>,
    /// How many tokens an encoder reads, where there is one.
    pub(super) read: Option<u32>,
    /// The document of each input of the last stack, where they are told apart.
    pub(super) own: Option<Vec<u32>>,
    /// The document of each token of the source, where they are told apart.
    pub(super) source_own: Option<Vec<u32>>,
}

impl SampleRow {
    /// A row of a model of one stack whose targets all count 1.
    pub(super) fn of(ids: Vec<i64>, targets: Vec<i64>) -> SampleRow {
        SampleRow { ids, targets, ..SampleRow::default() }
    }
}

/// How long the rows of a micro-batch are, each filled up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowLengths {
    /// Inputs of the last stack.
    pub(super) ids: usize,
    /// Targets.
    pub(super) targets: usize,
    /// What the encoder in front of a decoder reads; 0 without one.
    pub(super) source: usize,
}

/// The rows of a micro-batch so far, end to end.
#[derive(Debug)]
pub(super) struct MicroBatchRows {
    lengths: RowLengths,
    ids: Vec<i64>,
    targets: Vec<i64>,
    /// In thousandths, one for each target; empty where all count 1.
    weights: Vec<u32>,
    source: Vec<i64>,
    read: Vec<u32>,
    documents: Documents,
}

impl MicroBatchRows {
    /// Without rows.
    pub(super) fn new(lengths: RowLengths) -> MicroBatchRows {
        MicroBatchRows {
            lengths,
            ids: Vec::new(),
            targets: Vec::new(),
            weights: Vec::new(),
            source: Vec::new(),
            read: Vec::new(),
            documents: Documents::default(),
        }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: SampleRow) {
        let RowLengths { ids, targets, source } = self.lengths;
        pad(&mut self.ids, row.ids, ids, 0);
        pad(&mut self.targets, row.targets, targets, -1);
        pad(&mut self.source, row.source, source, 0);
        if let Some(weight) = row.weight {
            self.weights.resize(self.weights.len() + targets, weight);
        }
        self.read.extend(row.read);
        let padding = if source > 0 { PADDED_TARGETS } else { PADDED_SOURCE };
        self.documents.own.extend(row.own.map(|of| padded_of(of, ids, padding)));
        self.documents.source.extend(row.source_own.map(|of| padded_of(of, source, PADDED_SOURCE)));
    }

    /// The micro-batch; `separate` says whether a token sees its own document only.
    pub(super) fn finish(self, separate: bool) -> Result<MicroBatchData, EngineError> {
        let RowLengths { ids, source, .. } = self.lengths;
        let (weights, tokens) =
            (&self.weights, self.targets.iter().filter(|target| **target >= 0).count() as u64);
        let counted = self.targets.iter().zip(weights).filter(|(target, _)| **target >= 0);
        let thousandths: u64 = counted.map(|(_, weight)| u64::from(*weight)).sum();
        let each: Vec<f32> = weights.iter().map(|weight| (f64::from(*weight) / 1e3) as f32).collect();
        let whole = if source > 0 { source } else { ids };
        let padded = self.read.iter().any(|read| *read as usize != whole);
        let source_bs = || Tensor::from_slice(&self.source).f_view([-1, source as i64]);
        Ok(MicroBatchData {
            source_bs: (source > 0).then(source_bs).transpose()?,
            ids_bt: Tensor::from_slice(&self.ids).f_view([-1, ids as i64])?,
            targets_n: Tensor::from_slice(&self.targets),
            tokens,
            weights_n: (!each.is_empty()).then(|| Tensor::from_slice(&each)),
            weight: if each.is_empty() { tokens as f64 } else { thousandths as f64 / 1e3 },
            documents: separate.then_some(self.documents),
            padded: padded.then_some(self.read),
        })
    }
}

/// Adds a row of `len`, filled up with `with`.
fn pad(rows: &mut Vec<i64>, row: Vec<i64>, len: usize, with: i64) {
    let end = rows.len() + len;
    rows.extend(row);
    rows.resize(end, with);
}

/// A row of documents, filled up to `len`.
fn padded_of(mut of: Vec<u32>, len: usize, padding: u32) -> Arc<[u32]> {
    of.resize(len, padding);
    of.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(x: &Tensor) -> Vec<i64> {
        Vec::<i64>::try_from(x.flatten(0, -1)).unwrap()
    }

    #[test]
    fn rows_are_filled_up_and_only_targets_count() {
        let lengths = RowLengths { ids: 3, targets: 3, source: 2 };
        let mut rows = MicroBatchRows::new(lengths);
        rows.push(SampleRow {
            weight: Some(1_500),
            source: vec![4],
            read: Some(1),
            own: Some(vec![0, 1]),
            source_own: Some(vec![0]),
            ..SampleRow::of(vec![7, 8], vec![8, -1])
        });
        rows.push(SampleRow {
            weight: Some(500),
            source: vec![5, 6],
            read: Some(2),
            own: Some(vec![2; 3]),
            source_own: Some(vec![2; 2]),
            ..SampleRow::of(vec![1, 2, 3], vec![2, 3, 9])
        });
        let batch = rows.finish(true).unwrap();
        assert_eq!((ids(&batch.ids_bt), batch.ids_bt.size()), (vec![7, 8, 0, 1, 2, 3], vec![2, 3]));
        assert_eq!(ids(&batch.targets_n), [8, -1, -1, 2, 3, 9]);
        assert_eq!(ids(batch.source_bs.as_ref().unwrap()), [4, 0, 5, 6]);
        assert_eq!((batch.tokens, batch.weight, batch.padded), (4, 3.0, Some(vec![1, 2])));
        let weights = Vec::<f32>::try_from(batch.weights_n.unwrap()).unwrap();
        assert_eq!(weights, [1.5, 1.5, 1.5, 0.5, 0.5, 0.5]);
        let documents = batch.documents.unwrap();
        assert_eq!(*documents.own[0], [0, 1, PADDED_TARGETS]);
        assert_eq!(*documents.source[0], [0, PADDED_SOURCE]);
    }

    #[test]
    fn rows_without_weights_padding_or_documents_say_so() {
        let mut rows = MicroBatchRows::new(RowLengths { ids: 2, targets: 1, source: 0 });
        rows.push(SampleRow { read: Some(2), ..SampleRow::of(vec![7, 8], vec![3]) });
        rows.push(SampleRow { read: Some(2), ..SampleRow::of(vec![9, 8], vec![-1]) });
        let batch = rows.finish(false).unwrap();
        assert_eq!((batch.tokens, batch.weight), (1, 1.0));
        assert!(batch.weights_n.is_none() && batch.padded.is_none() && batch.documents.is_none());
        assert!(batch.source_bs.is_none());
    }
}
