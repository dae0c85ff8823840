//! Whether ranks, stages, neighbours, groups, micro-batches and parameter rows fit together.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::Assignment;
use coxswain_types::assignment::Stage;
use coxswain_types::params::{Parameter, Place, parameter_table};

use super::{CheckedList, Violation};

pub(super) fn check(assignments: &[Assignment]) -> Result<(), Violation> {
    for (rank, a) in assignments.iter().enumerate() {
        let rules = [
            (a.rank.index() == rank, "does not stand in its place"),
            (a.world as usize == assignments.len(), "has another number of ranks"),
            (a.tensor_group.get(a.tensor_index as usize) == Some(&a.rank.0), "is not in its tensor group"),
            (a.data_group.get(a.data_index as usize) == Some(&a.rank.0), "is not in its data group"),
            (a.optimizer_group.contains(&a.rank.0), "is not in its optimizer group"),
            (a.optimizer_group.iter().all(|r| a.data_group.contains(r)), "shards its optimizer elsewhere"),
            (a.owned_runs.end as usize <= a.runs.len(), "owns runs that do not exist"),
            (!a.stages.is_empty(), "has no stages"),
            (a.shards.end <= a.shard_count && !a.shards.is_empty(), "has shards that do not exist"),
        ];
        holds(rank, &rules)?;
        for stage in &a.stages {
            check_stage(assignments, a, stage)?;
        }
    }
    check_lines(assignments)?;
    check_owners(assignments)?;
    let Some(first) = assignments.first() else { return Ok(()) };
    let table = parameter_table(&first.spec.model);
    let mut expected = BTreeMap::new();
    for a in assignments {
        // Ranks of the same stages use the same parameters.
        let key = |stage: &Stage| (stage.index, stage.layers.start, stage.layers.end);
        let stages: Vec<_> = a.stages.iter().map(key).collect();
        let uses = expected.entry(stages).or_insert_with(|| uses_of(&table, a));
        check_rows(a, uses)?;
    }
    Ok(())
}

fn holds(rank: usize, rules: &[(bool, &'static str)]) -> Result<(), Violation> {
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(Violation::Mesh { rank, what }),
        None => Ok(()),
    }
}

/// A stage and the two beside it.
fn check_stage(assignments: &[Assignment], a: &Assignment, stage: &Stage) -> Result<(), Violation> {
    let on = |rank: Option<u32>, index: Option<u32>| {
        let other = assignments.get(rank? as usize)?;
        let beside = (other.data_index, other.tensor_index) == (a.data_index, a.tensor_index);
        other.stages.iter().find(|s| beside && Some(s.index) == index)
    };
    let before = on(stage.previous, stage.index.checked_sub(1));
    let after = on(stage.next, stage.index.checked_add(1));
    let agrees = |other: Option<u32>| other == Some(a.rank.0);
    let layers = a.spec.model.all_layers();
    let rules = [
        (stage.embedding == (stage.index == 0), "holds the embedding exactly if it has the first stage"),
        (stage.previous.is_none() == stage.embedding, "has a previous stage exactly if it is not the first"),
        (stage.next.is_none() == stage.head, "has a next stage exactly if it has no head"),
        (stage.embedding || before.is_some_and(|s| agrees(s.next)), "is not the next of its previous"),
        (stage.head || after.is_some_and(|s| agrees(s.previous)), "is not the previous of its next"),
        (before.map_or(0, |s| s.layers.end) == stage.layers.start, "leaves out layers before it"),
        (!stage.head || stage.layers.end == layers, "leaves out the last layers"),
        (!stage.layers.is_empty(), "has a stage without layers"),
        (stage.recompute.len() == stage.layers.len(), "has another number of layers than recompute modes"),
    ];
    holds(a.rank.index(), &rules)
}

/// Every stage is on one rank of each pipeline, stage s on its rank s mod p.
fn check_lines(assignments: &[Assignment]) -> Result<(), Violation> {
    let mut lines: BTreeMap<(u32, u32), BTreeSet<u32>> = BTreeMap::new();
    for a in assignments {
        let pipeline = a.spec.layout.pipeline.max(1);
        let line = lines.entry((a.data_index, a.tensor_index)).or_default();
        let mut ascending = a.stages.windows(2).all(|pair| pair[0].index < pair[1].index);
        for stage in &a.stages {
            ascending &= stage.index % pipeline == a.pipeline_index && line.insert(stage.index);
        }
        holds(a.rank.index(), &[(ascending, "has stages of another rank, or in another order")])?;
    }
    let stages =
        |a: &Assignment| u64::from(a.spec.layout.pipeline) * u64::from(a.spec.layout.schedule.chunks());
    for a in assignments {
        let line = &lines[&(a.data_index, a.tensor_index)];
        let all = line.len() as u64 == stages(a) && line.last().map(|s| u64::from(*s) + 1) == Some(stages(a));
        holds(a.rank.index(), &[(all, "is in a pipeline that lacks a stage")])?;
    }
    Ok(())
}

/// The micro-batches that a rank works on.
pub(super) fn owned(assignment: &Assignment) -> BTreeSet<u32> {
    let runs = assignment.runs.get(assignment.owned_runs.start as usize..assignment.owned_runs.end as usize);
    runs.unwrap_or_default().iter().flat_map(|run| run.clone()).collect()
}

fn check_owners(assignments: &[Assignment]) -> Result<(), Violation> {
    let mut seen = BTreeSet::new();
    for a in assignments.iter().filter(|a| seen.insert(&a.data_group)) {
        let line = a.data_group.iter().filter_map(|rank| assignments.get(*rank as usize)).map(owned);
        let mut owners = BTreeMap::new();
        for micro_batch in line.flatten() {
            *owners.entry(micro_batch).or_insert(0) += 1;
        }
        for micro_batch in 0..a.spec.train.global_micro_batches {
            let owners = owners.get(&micro_batch).copied().unwrap_or(0);
            if owners != 1 {
                return Err(Violation::Owners { micro_batch, owners });
            }
        }
    }
    Ok(())
}

/// The uses of parameters on a rank's stages.
fn uses_of<'a>(table: &'a [Parameter], a: &Assignment) -> BTreeSet<(&'a str, Place)> {
    let here = |place: Place| {
        a.stages.iter().any(|stage| match place {
            Place::Embedding => stage.embedding,
            Place::Layer(layer) => stage.layers.contains(&layer),
            Place::Bridge => stage.layers.contains(&a.spec.model.encoder_layers),
            Place::Head => stage.head,
        })
    };
    let uses = table.iter().flat_map(|p| p.places.iter().map(|place| (p.name.as_str(), *place)));
    uses.filter(|(_, place)| here(*place)).collect()
}

/// A rank has a row for each use of a parameter on its stages, and no others.
fn check_rows(a: &Assignment, uses: &BTreeSet<(&str, Place)>) -> Result<(), Violation> {
    let wrong = |what, name: &str| Violation::Rows { rank: a.rank.index(), what, name: name.to_owned() };
    let rows: BTreeSet<_> = a.parameters.iter().map(|row| (row.name.as_str(), row.place)).collect();
    if let Some((name, _)) = uses.difference(&rows).next() {
        return Err(wrong("lacks a row of", name));
    }
    if let Some((name, _)) = rows.difference(uses).next() {
        return Err(wrong("has a row that no stage uses, of", name));
    }
    let all = a.parameters.iter();
    for row in all.filter(|row| !row.uses.is_empty()) {
        if row.uses.get(row.use_index as usize) != Some(&a.rank.0) {
            return Err(wrong("is not the user named by its row of", &row.name));
        }
    }
    Ok(())
}

/// Ranks of a tensor group meet inside every layer, so they do the same in the same order.
pub(super) fn check_tensor_groups(pass: CheckedList, assignments: &[Assignment]) -> Result<(), Violation> {
    for a in assignments {
        let first = a.tensor_group.first().and_then(|rank| assignments.get(*rank as usize)).unwrap_or(a);
        let inside = |a: &Assignment| -> Vec<_> {
            a.stages.iter().map(|s| (s.index, s.layers.clone(), s.recompute.clone())).collect()
        };
        let rules = [
            (pass.actions(first) == pass.actions(a), "has other actions than its tensor group"),
            (inside(first) == inside(a), "has other layers or recompute modes than its tensor group"),
        ];
        holds(a.rank.index(), &rules)?;
    }
    Ok(())
}
