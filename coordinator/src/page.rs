//! Lists that are longer than one message: what is there, page by page. A page begins after what the caller had last, so
//! that nothing comes twice or is left out where jobs and workers come and go meanwhile.

use coxswain_proto::{Message, wire};

/// The most bytes of a page, unless one entry has more: a quarter of what a message may have.
pub(crate) const PAGE_BYTES: usize = 4 << 20;

/// The page that the request asks for, of jobs in the order of their numbers and workers in that of their names.
pub(crate) fn page(
    jobs: impl Iterator<Item = wire::JobSummary>,
    workers: impl Iterator<Item = wire::WorkerSummary>,
    after: &wire::ListRequest,
    most_bytes: usize,
) -> wire::ListReply {
    let mut room = most_bytes;
    let mut reply = wire::ListReply::default();
    let jobs = jobs.filter(|job| after.after_job.is_empty() || number(&job.job) > number(&after.after_job));
    for job in jobs {
        if !fits(&mut room, most_bytes, &job) {
            reply.more = true;
            return reply;
        }
        reply.jobs.push(job);
    }
    for worker in workers.filter(|worker| name(worker) > after.after_worker.as_str()) {
        if !fits(&mut room, most_bytes, &worker) {
            reply.more = true;
            return reply;
        }
        reply.workers.push(worker);
    }
    reply
}

/// Whether an entry has room in the page, which the first one always has.
fn fits(room: &mut usize, most_bytes: usize, entry: &impl Message) -> bool {
    let fits = entry.encoded_len() <= *room || *room == most_bytes;
    *room = room.saturating_sub(entry.encoded_len());
    fits
}

/// The number of a job, which grows with each that is submitted.
fn number(job: &str) -> u64 {
    job.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

fn name(worker: &wire::WorkerSummary) -> &str {
    worker.info.as_ref().map_or("", |info| &info.id)
}

/// What to ask for next, after a page.
pub(crate) fn next(before: wire::ListRequest, page: &wire::ListReply) -> wire::ListRequest {
    wire::ListRequest {
        after_job: page.jobs.last().map_or(before.after_job, |job| job.job.clone()),
        after_worker: page.workers.last().map_or(before.after_worker, |worker| name(worker).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize) -> wire::JobSummary {
        let reason = "x".repeat(number * 7 % 90);
        wire::JobSummary { job: format!("{}-{number}", ["b", "a"][number % 2]), reason, ..Default::default() }
    }

    fn worker(number: usize) -> wire::WorkerSummary {
        let info = wire::WorkerInfo { id: format!("w{number:03}"), ..Default::default() };
        wire::WorkerSummary { info: Some(info), ..Default::default() }
    }

    #[test]
    fn pages_have_everything_once_whatever_their_size() {
        for most_bytes in [1, 50, 300, 1000, 100_000] {
            let (mut request, mut jobs, mut workers, mut pages) =
                (wire::ListRequest::default(), vec![], vec![], 0);
            loop {
                // Job 40 is forgotten once it was told, and one more comes.
                let there = (1..=90 + usize::from(pages > 0)).filter(|n| *n != 40 || jobs.len() < 40);
                let there: Vec<_> = there.map(job).collect();
                let reply = page(there.into_iter(), (0..30).map(worker), &request, most_bytes);
                let bytes = reply.encoded_len();
                assert!(bytes <= most_bytes + 200, "{bytes} of {most_bytes}");
                request = next(request, &reply);
                jobs.extend(reply.jobs.into_iter().map(|job| number(&job.job)));
                workers.extend(reply.workers.into_iter().map(|worker| name(&worker).to_owned()));
                pages += 1;
                if !reply.more {
                    break;
                }
            }
            let last = 90 + u64::from(pages > 1);
            assert_eq!(jobs, (1..=last).collect::<Vec<_>>(), "{most_bytes}");
            assert_eq!(
                workers,
                (0..30).map(|n| name(&worker(n)).to_owned()).collect::<Vec<_>>(),
                "{most_bytes}"
            );
        }
    }
}
