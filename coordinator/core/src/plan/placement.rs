//! Which worker takes which rank. Tensor ranks talk several times a layer, so they should share a
//! machine; stages and data ranks talk less.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::WorkerId;
use coxswain_types::job::Layout;
use coxswain_types::status::WorkerInfo;

use super::PlanError;

/// The workers by rank, and the names of those that are left over.
///
/// Workers go by host and name. Each host gives whole tensor groups first; what is left over of
/// each host then makes up the groups that no single host could.
pub(super) fn place<'a>(
    workers: &'a [WorkerInfo],
    layout: &Layout,
) -> Result<(Vec<&'a WorkerInfo>, Vec<WorkerId>), PlanError> {
    let mut names = BTreeSet::new();
    if let Some(twice) = workers.iter().find(|worker| !names.insert(&worker.id)) {
        return Err(PlanError::WorkerTwice(twice.id.clone()));
    }
    let Layout { pipeline, tensor, data, .. } = *layout;
    let (needed, found) = (layout.world(), workers.len());
    if found < needed as usize {
        return Err(PlanError::TooFewWorkers { needed, pipeline, tensor, data, found });
    }
    let (mut whole, mut rest) = (Vec::new(), Vec::new());
    for (_, mut on_host) in by_host(workers) {
        on_host.sort_by_key(|worker| &worker.id);
        let in_groups = on_host.len() - on_host.len() % tensor as usize;
        rest.extend(on_host.split_off(in_groups));
        whole.extend(on_host);
    }
    whole.append(&mut rest);
    let spares = whole.split_off(needed as usize);
    Ok((whole, spares.into_iter().map(|worker| worker.id.clone()).collect()))
}

/// The same workers, where those that had a rank `before` have it again, and the others fill the gaps in
/// their order.
pub(super) fn keep<'a>(seated: Vec<&'a WorkerInfo>, before: &[WorkerId]) -> Vec<&'a WorkerInfo> {
    let place = |worker: &WorkerInfo| before.iter().take(seated.len()).position(|id| *id == worker.id);
    let (stay, mut fill): (Vec<_>, Vec<_>) =
        seated.iter().copied().partition(|worker| place(worker).is_some());
    let mut places = vec![None; seated.len()];
    for worker in stay {
        match place(worker) {
            Some(rank) if places[rank].is_none() => places[rank] = Some(worker),
            _ => fill.push(worker),
        }
    }
    let mut fill = fill.into_iter();
    places.into_iter().filter_map(|place| place.or_else(|| fill.next())).collect()
}

/// Threads for each worker where the job names none: the cores of a host over the workers on it,
/// and of all hosts the least.
///
/// The number is one for all, because the bits of some sums depend on it. It never exceeds a
/// worker's share, because more runnable threads than cores make every one of them several times
/// slower.
pub fn threads_for(workers: &[WorkerInfo]) -> u32 {
    let share = |on_host: &[&WorkerInfo]| {
        let cores = on_host.iter().map(|worker| worker.cores).min().unwrap_or(1);
        cores / u32::try_from(on_host.len()).unwrap_or(u32::MAX).max(1)
    };
    by_host(workers).values().map(|on_host| share(on_host)).min().unwrap_or(1).max(1)
}

fn by_host(workers: &[WorkerInfo]) -> BTreeMap<&str, Vec<&WorkerInfo>> {
    let mut hosts: BTreeMap<&str, Vec<&WorkerInfo>> = BTreeMap::new();
    for worker in workers {
        hosts.entry(&worker.host).or_default().push(worker);
    }
    hosts
}

#[cfg(test)]
mod tests {
    use coxswain_types::job::Schedule;

    use super::*;

    fn layout(pipeline: u32, tensor: u32) -> Layout {
        let schedule = Schedule::OneFOneB;
        Layout { pipeline, tensor, data: 1, schedule, sequence_parallel: false, zero: false }
    }

    fn workers(list: &[(&str, &str, u32)]) -> Vec<WorkerInfo> {
        let worker = |(id, host, cores): &(&str, &str, u32)| WorkerInfo {
            id: WorkerId((*id).to_owned()),
            incarnation: 1,
            host: (*host).to_owned(),
            pid: 1,
            cores: *cores,
            device: "cpu".to_owned(),
            runtime: "r".to_owned(),
            serves: None,
        };
        list.iter().map(worker).collect()
    }

    #[test]
    fn tensor_groups_stay_on_one_host_where_they_can() {
        let list = workers(&[
            ("e", "b", 4),
            ("d", "b", 4),
            ("c", "a", 4),
            ("b", "a", 4),
            ("a", "a", 4),
            ("f", "c", 4),
        ]);
        let names = |pipeline, tensor| {
            let (seated, spares) = place(&list, &layout(pipeline, tensor)).unwrap();
            let seated: Vec<_> = seated.iter().map(|worker| worker.id.0.as_str()).collect();
            let spares: Vec<_> = spares.iter().map(|id| id.0.as_str()).collect();
            format!("{} | {}", seated.join(" "), spares.join(" "))
        };
        assert_eq!(names(2, 2), "a b d e | c f");
        assert_eq!(names(3, 2), "a b d e c f | ");
        assert_eq!(names(2, 3), "a b c d e f | ");
        assert_eq!(names(3, 1), "a b c | d e f");
    }

    #[test]
    fn who_had_a_rank_has_it_again() {
        let list = workers(&[("a", "h", 1), ("c", "h", 1), ("d", "h", 1), ("e", "h", 1)]);
        let kept = |before: &[&str]| {
            let before: Vec<_> = before.iter().map(|id| WorkerId((*id).to_owned())).collect();
            let kept = keep(list.iter().collect(), &before);
            kept.iter().map(|worker| worker.id.0.as_str()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kept(&[]), "a c d e");
        // b is lost, and e was a spare.
        assert_eq!(kept(&["a", "b", "c", "d"]), "a e c d");
        // There were more ranks; f and d are lost.
        assert_eq!(kept(&["f", "a", "x", "c", "e", "y"]), "d a e c");
        assert_eq!(kept(&["a", "a", "a", "a", "a"]), "a c d e");
    }

    #[test]
    fn what_cannot_be_placed_is_told() {
        let layout = layout(2, 2);
        let told = |list: &[(&str, &str, u32)]| place(&workers(list), &layout).unwrap_err().to_string();
        assert_eq!(
            told(&[("a", "h", 1), ("b", "h", 1), ("c", "h", 1)]),
            "needs 4 workers (pipeline 2 x tensor 2 x data 1), 3 are here; start more, or make layout smaller"
        );
        assert!(told(&[("a", "h", 1), ("a", "i", 1)]).starts_with("worker a is listed twice"));
    }

    #[test]
    fn threads_are_the_least_share_of_a_host() {
        for (list, threads) in [
            (vec![], 1),
            (vec![("a", "h", 8)], 8),
            (vec![("a", "h", 8), ("b", "h", 8), ("c", "h", 8)], 2),
            (vec![("a", "h", 8), ("b", "i", 4)], 4),
            (vec![("a", "h", 2), ("b", "h", 2), ("c", "h", 2), ("d", "h", 2)], 1),
        ] {
            assert_eq!(threads_for(&workers(&list)), threads, "{list:?}");
        }
    }
}
