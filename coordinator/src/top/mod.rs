//! `coxswain top`: the cluster in a terminal, as the page shows it.
//!
//! [`TopState`] is what is shown; [`TopState::key`] says what a key changes and [`draw`] draws it, both without a
//! terminal. The rest asks the coordinator, reads keys, and gives the terminal back as it was.

mod draw;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use coxswain_proto::wire;
use coxswain_proto::wire::jobs_client::JobsClient;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

use crate::args::CoordinatorArgs;
use crate::client::{jobs, refused};
use crate::failure::Failure;
use crate::view::ClusterView;

/// How often the coordinator is asked.
const LOOK: Duration = Duration::from_millis(500);

/// How long a look for a key takes: after it the thread sees that the program ends.
const KEY: Duration = Duration::from_millis(100);

/// How many numbers a sparkline remembers: more than a terminal is wide.
const MAX_HISTORY: usize = 400;

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// The job to begin with [default: one at work].
    #[arg(value_name = "JOB", default_value = "", hide_default_value = true)]
    job: String,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
}

/// Which list the keys move in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TopPane {
    #[default]
    Ranks,
    Workers,
    Events,
}

/// What a key asks of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TopRequest {
    Quit,
    /// Look at another job.
    Show,
    Drain(String),
    Cancel(String),
}

/// What is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct TopState {
    pub(crate) view: Option<ClusterView>,
    /// The job that is asked for; empty for the one that is most worth it.
    pub(crate) job: String,
    pub(crate) pane: TopPane,
    /// The line of the pane that is chosen.
    pub(crate) line: usize,
    pub(crate) losses: VecDeque<f64>,
    pub(crate) speeds: VecDeque<f64>,
    /// The last step whose numbers are remembered.
    seen: (String, u64),
    /// A question that waits for `y`, and what it is about.
    pub(crate) question: Option<(String, TopRequest)>,
    /// What the coordinator answered last.
    pub(crate) message: String,
}

impl TopState {
    /// Takes in a view.
    pub(crate) fn take(&mut self, view: ClusterView) {
        let shown = view.detail.as_ref().map(|detail| detail.job.clone()).unwrap_or_default();
        if self.seen.0 != shown {
            self.losses.clear();
            self.speeds.clear();
            self.seen = (shown.clone(), 0);
        }
        if let Some(job) = view.jobs.iter().find(|job| job.job == shown)
            && job.step > self.seen.1
        {
            self.seen.1 = job.step;
            remember(&mut self.losses, job.loss);
            remember(&mut self.speeds, job.tokens_per_second);
        }
        self.view = Some(view);
        self.line = self.line.min(self.lines().saturating_sub(1));
    }

    /// How many lines the pane has.
    fn lines(&self) -> usize {
        let Some(view) = &self.view else { return 0 };
        let detail = view.detail.as_ref();
        match self.pane {
            TopPane::Ranks => {
                detail.and_then(|detail| detail.grid.as_ref()).map_or(0, |grid| grid.ranks.len())
            }
            TopPane::Workers => view.workers.len(),
            TopPane::Events => detail.map_or(0, |detail| detail.events.len()),
        }
    }

    /// The worker of the chosen line.
    fn worker(&self) -> Option<String> {
        let view = self.view.as_ref()?;
        match self.pane {
            TopPane::Ranks => {
                let grid = view.detail.as_ref()?.grid.as_ref()?;
                grid.ranks.get(self.line).map(|rank| rank.shown.worker.clone())
            }
            TopPane::Workers => view.workers.get(self.line).map(|worker| worker.worker.clone()),
            TopPane::Events => None,
        }
    }

    /// Takes in a key; says what it asks of the coordinator.
    pub(crate) fn key(&mut self, key: KeyCode) -> Option<TopRequest> {
        if let Some((_, request)) = self.question.take() {
            return (key == KeyCode::Char('y')).then_some(request);
        }
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Some(TopRequest::Quit),
            KeyCode::Down | KeyCode::Char('j') => {
                self.line = (self.line + 1).min(self.lines().saturating_sub(1));
            }
            KeyCode::Up | KeyCode::Char('k') => self.line = self.line.saturating_sub(1),
            KeyCode::Tab => {
                self.pane = match self.pane {
                    TopPane::Ranks => TopPane::Workers,
                    TopPane::Workers => TopPane::Events,
                    TopPane::Events => TopPane::Ranks,
                };
                self.line = 0;
            }
            KeyCode::Char('n') => return self.next_job(),
            KeyCode::Char('x') => {
                let worker = self.worker()?;
                let question =
                    format!("drain {worker}? It leaves after the step at hand, and its process ends");
                self.question = Some((question, TopRequest::Drain(worker)));
            }
            KeyCode::Char('c') => {
                let view = self.view.as_ref()?;
                let job = view.detail.as_ref()?.job.clone();
                if view.jobs.iter().any(|known| known.job == job && !known.over) {
                    let question = format!("cancel {job}? It ends after the step at hand, which is saved");
                    self.question = Some((question, TopRequest::Cancel(job)));
                }
            }
            _ => {}
        }
        None
    }

    /// The job after the one that is shown.
    fn next_job(&mut self) -> Option<TopRequest> {
        let view = self.view.as_ref()?;
        let shown = view.detail.as_ref()?.job.clone();
        let at = view.jobs.iter().position(|job| job.job == shown)?;
        self.job = view.jobs.get((at + 1) % view.jobs.len())?.job.clone();
        self.line = 0;
        Some(TopRequest::Show)
    }
}

fn remember(numbers: &mut VecDeque<f64>, number: Option<f64>) {
    numbers.extend(number);
    if numbers.len() > MAX_HISTORY {
        numbers.pop_front();
    }
}

pub(crate) async fn top(args: Top) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let hint = "`coxswain status --format json` prints the same for programs";
        return Err(Failure::Input(format!("top needs a terminal; {hint}")));
    }
    let mut client = jobs(&args.coordinator).await?;
    let mut state = TopState { job: args.job, ..TopState::default() };
    // The first look is before the terminal is taken, so that a refusal is a line as of any other command.
    look(&mut client, &mut state, &args.coordinator).await?;
    let terminal = ratatui::try_init().context("the terminal cannot be used");
    let ended = match terminal {
        Ok(terminal) => run(client, state, terminal, &args.coordinator).await,
        Err(error) => Err(error.into()),
    };
    ratatui::restore();
    ended
}

async fn look(
    client: &mut JobsClient<Channel>,
    state: &mut TopState,
    args: &CoordinatorArgs,
) -> Result<(), Failure> {
    let reply = client.view(wire::ViewRequest { job: state.job.clone() }).await;
    let json = reply.map_err(|status| refused(args, status))?.into_inner().json;
    state.take(serde_json::from_str(&json).context("the coordinator's view")?);
    Ok(())
}

/// Shows the cluster until the user has seen enough.
async fn run(
    mut client: JobsClient<Channel>,
    mut state: TopState,
    mut terminal: ratatui::DefaultTerminal,
    args: &CoordinatorArgs,
) -> Result<(), Failure> {
    let mut keys = keys();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| draw::draw(frame, &state)).context("the terminal")?;
        let event = tokio::select! {
            event = keys.recv() => Some(event.ok_or_else(|| anyhow!("the terminal's keys cannot be read"))?),
            _ = looks.tick() => None,
        };
        let request = match event {
            None => {
                if let Err(error) = look(&mut client, &mut state, args).await {
                    state.message = told(&error);
                }
                continue;
            }
            Some(Event::Key(key)) if key.kind != KeyEventKind::Release => pressed(&mut state, key),
            Some(_) => None,
        };
        match request {
            Some(TopRequest::Quit) => return Ok(()),
            Some(TopRequest::Show) => {
                if let Err(error) = look(&mut client, &mut state, args).await {
                    state.message = told(&error);
                }
            }
            Some(request) => state.message = asked(&mut client, request).await,
            None => {}
        }
    }
}

fn pressed(state: &mut TopState, key: KeyEvent) -> Option<TopRequest> {
    let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    if ctrl_c { Some(TopRequest::Quit) } else { state.key(key.code) }
}

/// Does what was asked for; says how it went.
async fn asked(client: &mut JobsClient<Channel>, request: TopRequest) -> String {
    let reason = "a user asked for it in top".to_owned();
    let answer = match request {
        TopRequest::Drain(worker) => {
            let drained = client.drain(wire::DrainRequest { worker: worker.clone(), reason }).await;
            drained.map(|_| format!("{worker} ends as soon as its place is empty"))
        }
        TopRequest::Cancel(job) => {
            let cancelled = client.cancel(wire::CancelRequest { job, reason, now: false }).await;
            cancelled.map(|reply| reply.into_inner().reason)
        }
        TopRequest::Quit | TopRequest::Show => Ok(String::new()),
    };
    answer.unwrap_or_else(|status| status.message().to_owned())
}

fn told(failure: &Failure) -> String {
    match failure {
        Failure::Input(text) => text.clone(),
        Failure::Refused(refusal) => refusal.to_string(),
        Failure::Failed(error) => format!("{error:#}"),
        Failure::Said(_) => String::new(),
    }
}

/// The terminal's events, read by a thread of their own.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    receiver
}
