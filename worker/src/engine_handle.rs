//! The way to the thread that owns libtorch: assignments go in, news comes out. What an engine held when it ended
//! early stays on the thread, for the generation that follows.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use coxswain_agent::EngineNews;
use coxswain_comm::Links;
use coxswain_engine::{Control, EngineEvent, State};
use coxswain_types::Step;
use coxswain_types::activity::Activity;
use coxswain_types::ids::Rank as RankId;
use coxswain_types::status::{Directive, Phase};
use tokio::sync::{mpsc, watch};

/// How long a worker without work keeps what its last engine held: a run that waits longer for workers
/// goes on from its checkpoint, and the memory is free for others.
const REMAINS_KEPT: Duration = Duration::from_secs(600);
/// News that is taken at once: steps of a small model come faster than statuses are wanted.
const NEWS_AT_ONCE: usize = 64;

/// Work for the thread, with what the last engine has left there. It ends in a phase.
type EngineJob = Box<dyn FnOnce(&mut Option<State>) -> Phase + Send>;

/// The way to the engine's thread. The thread ends with this.
pub(crate) struct EngineHandle {
    jobs: Sender<EngineJob>,
    begun: u64,
    /// How many jobs have ended.
    ended: watch::Receiver<u64>,
    /// What is asked of the ranks now.
    directive: watch::Sender<Directive>,
    /// Without a bound, for an engine does not wait for the network; it has one item for each step and checkpoint.
    news: mpsc::UnboundedReceiver<EngineNews>,
    to_news: mpsc::WeakUnboundedSender<EngineNews>,
    /// Of the job that was begun last.
    tap: Tap,
}

/// What can be seen and done of an engine from outside while it works.
#[derive(Clone, Default)]
struct Tap(Arc<Mutex<Tapped>>);

#[derive(Default)]
struct Tapped {
    /// The engine's network, once it stands.
    links: Option<Links>,
    /// Whether it was told to end.
    dismissed: bool,
    /// The newest step that it has applied.
    step: Step,
}

impl Tap {
    /// A panic elsewhere cannot leave it half-changed: every change is one assignment.
    fn lock(&self) -> MutexGuard<'_, Tapped> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An engine's view of what is wanted, and its way to tell.
pub(crate) struct EngineControl {
    directive: watch::Receiver<Directive>,
    news: mpsc::UnboundedSender<EngineNews>,
    tap: Tap,
}

impl EngineControl {
    /// The engine's network, once it stands.
    pub(crate) fn links(&self) -> Option<Links> {
        self.tap.lock().links.clone()
    }

    /// Whether the engine was told to end.
    pub(crate) fn dismissed(&self) -> bool {
        self.tap.lock().dismissed
    }

    /// The newest step that the engine has applied.
    pub(crate) fn step(&self) -> Step {
        self.tap.lock().step
    }
}

impl Control for EngineControl {
    fn directive(&self) -> Directive {
        *self.directive.borrow()
    }

    fn tell(&self, event: EngineEvent) {
        let news = match event {
            EngineEvent::Linked(links) => {
                let mut tapped = self.tap.lock();
                if tapped.dismissed {
                    links.abort();
                }
                tapped.links = Some(links);
                return;
            }
            EngineEvent::Ready(begun, reports) => {
                self.tap.lock().step = begun.step;
                EngineNews::Ready(begun, reports)
            }
            EngineEvent::Reported(report) => EngineNews::Reported(report),
            EngineEvent::Stepped(pace) => {
                self.tap.lock().step = pace.step;
                EngineNews::Stepped { pace, peak_tensor_bytes: coxswain_native::memory::peak_bytes() }
            }
            EngineEvent::Saved(saved) => EngineNews::Saved(saved),
        };
        self.news.send(news).ok();
    }
}

impl EngineHandle {
    /// Starts the thread.
    pub(crate) fn start() -> Result<EngineHandle> {
        let (jobs, queue) = channel();
        let (ends, ended) = watch::channel(0);
        let (to_news, news) = mpsc::unbounded_channel();
        let weak = to_news.downgrade();
        let thread = std::thread::Builder::new().name("engine".to_owned());
        thread.spawn(move || serve(&queue, &to_news, &ends)).context("starting the engine's thread")?;
        let directive = watch::Sender::new(Directive::NONE);
        Ok(EngineHandle { jobs, begun: 0, ended, directive, news, to_news: weak, tap: Tap::default() })
    }

    /// Starts a job, after those before it. Its last news is [`EngineNews::Ended`].
    pub(crate) fn begin(
        &mut self,
        job: impl FnOnce(&EngineControl, &mut Option<State>) -> Phase + Send + 'static,
    ) -> Result<()> {
        let gone = || anyhow!("the engine's thread has ended");
        self.tap = Tap::default();
        let control = EngineControl {
            directive: self.directive.subscribe(),
            news: self.to_news.upgrade().ok_or_else(gone)?,
            tap: self.tap.clone(),
        };
        let job: EngineJob = Box::new(move |remains| job(&control, remains));
        self.jobs.send(job).map_err(|_| gone())?;
        self.begun += 1;
        Ok(())
    }

    /// Has the engine know what is asked of the ranks.
    pub(crate) fn direct(&self, directive: Directive) {
        self.directive.send_if_modified(|known| std::mem::replace(known, directive) != directive);
    }

    /// Tells the engine to end: its waits do now, and its work at its next look at what is wanted.
    pub(crate) fn dismiss(&self) {
        let mut tapped = self.tap.lock();
        tapped.dismissed = true;
        if let Some(links) = &tapped.links {
            links.abort();
        }
    }

    /// What the engine has told, oldest first; ready once there is something.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) async fn news(&mut self) -> Result<Vec<EngineNews>> {
        let mut news = Vec::new();
        if self.news.recv_many(&mut news, NEWS_AT_ONCE).await == 0 {
            return Err(anyhow!("the engine's thread has ended"));
        }
        Ok(news)
    }

    /// Ready once no job is worked on.
    pub(crate) async fn ended(&self) {
        // An error says that the thread has ended, and all work with it.
        self.ended.clone().wait_for(|ended| *ended >= self.begun).await.ok();
    }

    /// What the engine does now, while it works and its network stands.
    pub(crate) fn activity(&self) -> Option<Activity> {
        self.links().map(|links| {
            let doing = links.doing();
            Activity {
                step: Step(doing.step),
                doing: doing.what,
                for_ms: milliseconds(doing.since.elapsed()),
                waits_for: links.waits_for().map(RankId),
                last: doing.last,
                still_ms: milliseconds(links.still_for()),
            }
        })
    }

    /// The longest that the engine has worked between two looks at what is wanted, up to now.
    pub(crate) fn longest_stretch_ms(&self) -> u64 {
        self.links().map_or(0, |links| milliseconds(links.longest_stretch()))
    }

    /// The network of the engine, while that works.
    fn links(&self) -> Option<Links> {
        let works = *self.ended.borrow() < self.begun && self.ended.has_changed().is_ok();
        self.tap.lock().links.clone().filter(|_| works)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn serve(jobs: &Receiver<EngineJob>, news: &mpsc::UnboundedSender<EngineNews>, ends: &watch::Sender<u64>) {
    let mut remains = None;
    loop {
        match jobs.recv_timeout(REMAINS_KEPT) {
            Ok(job) => {
                let phase = job(&mut remains);
                ends.send_modify(|ended| *ended += 1);
                news.send(EngineNews::Ended(phase)).ok();
            }
            Err(RecvTimeoutError::Timeout) => remains = None,
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::status::{Fault, Pace};

    use super::*;

    #[tokio::test]
    async fn an_engine_tells_in_order_hears_what_is_asked_and_ends_last() {
        let mut handle = EngineHandle::start().unwrap();
        let directive = Directive { revision: 3, run_to: Step(9), save_after: Step(0) };
        handle.direct(directive);
        let (go, wait) = channel::<()>();
        handle
            .begin(move |control, _| {
                wait.recv().unwrap();
                assert_eq!((control.directive(), control.dismissed()), (directive, true));
                control.tell(EngineEvent::Stepped(Pace { step: Step(4), busy_us: 1 }));
                assert_eq!(control.step(), Step(4));
                Phase::Done
            })
            .unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), handle.ended()).await.is_err());
        handle.dismiss();
        go.send(()).unwrap();
        handle.ended().await;
        let mut news = Vec::new();
        while news.len() < 2 {
            news.extend(handle.news().await.unwrap());
        }
        let [EngineNews::Stepped { pace, .. }, EngineNews::Ended(Phase::Done)] = &news[..] else {
            panic!("{news:?}")
        };
        assert_eq!(pace.step, Step(4));
        // The next one was not told to end.
        let phase = || Phase::Failed { message: "so".to_owned(), fault: Fault::Own };
        handle
            .begin(move |control, _| {
                assert!(!control.dismissed());
                phase()
            })
            .unwrap();
        let news = handle.news().await.unwrap();
        assert!(matches!(&news[..], [EngineNews::Ended(ended)] if *ended == phase()), "{news:?}");
    }

    #[tokio::test]
    async fn a_thread_that_has_died_is_an_error() {
        let mut handle = EngineHandle::start().unwrap();
        handle.begin(|_, _| panic!("as a test wants it")).unwrap();
        assert!(handle.news().await.is_err());
        handle.ended().await;
        assert!(handle.begin(|_, _| Phase::Done).is_err());
    }
}
