//! How a worker stands with its coordinator: whether it is in contact, and how long it looks for it.

use crate::AgentSettings;
use crate::messages::AgentNotice;

/// The contact with the coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Contact {
    state: Reach,
    /// Since when the process runs.
    started_ms: u64,
    /// Whether a coordinator has taken this worker in.
    known: bool,
    /// Whether it was said that no coordinator has taken the worker yet.
    told_untaken: bool,
    /// Since when the coordinator has been lost, and why.
    lost: Option<(u64, String)>,
}

/// Whether the coordinator can be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// It is looked for again at this time.
    Waits { until_ms: u64 },
    /// A try is under way.
    Tries,
    /// There is a stream; the next heartbeat is due at this time.
    Stands { beat_ms: u64 },
}

/// How a try or a stream ended.
#[derive(Clone, Debug)]
pub(crate) enum Missed {
    /// Not taken in, and may be soon.
    Busy(String),
    /// Not taken in.
    Refused(String),
    /// It broke off.
    Lost(String),
}

/// The worker looks for its coordinator no longer, for this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GivesUp {
    /// No coordinator has ever taken it in.
    NeverTaken(String),
    /// It has been alone for too long.
    Alone(String),
}

/// What a deadline of the contact asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContactDue {
    /// Look for the coordinator.
    Try,
    /// A heartbeat.
    Beat,
}

impl Contact {
    /// Looks for the coordinator at once.
    pub(crate) fn new(now_ms: u64) -> Contact {
        Contact {
            state: Reach::Waits { until_ms: now_ms },
            started_ms: now_ms,
            known: false,
            told_untaken: false,
            lost: None,
        }
    }

    /// Whether there is a stream.
    pub(crate) fn stands(&self) -> bool {
        matches!(self.state, Reach::Stands { .. })
    }

    /// When [`Contact::due`] has something next.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        match self.state {
            Reach::Waits { until_ms } => Some(until_ms),
            Reach::Tries => None,
            Reach::Stands { beat_ms } => Some(beat_ms),
        }
    }

    /// What is due now, once each time.
    pub(crate) fn due(&mut self, settings: &AgentSettings, now_ms: u64) -> Option<ContactDue> {
        match self.state {
            Reach::Waits { until_ms } if until_ms <= now_ms => {
                self.state = Reach::Tries;
                Some(ContactDue::Try)
            }
            Reach::Stands { beat_ms } if beat_ms <= now_ms => {
                self.state = Reach::Stands { beat_ms: now_ms + settings.heartbeat_ms };
                Some(ContactDue::Beat)
            }
            Reach::Waits { .. } | Reach::Tries | Reach::Stands { .. } => None,
        }
    }

    /// There is a stream.
    pub(crate) fn made(&mut self, settings: &AgentSettings, now_ms: u64) {
        self.state = Reach::Stands { beat_ms: now_ms + settings.heartbeat_ms };
        self.known = true;
        self.lost = None;
    }

    /// There is none: another try follows, unless the time for them is over.
    pub(crate) fn missed(
        &mut self,
        missed: Missed,
        settings: &AgentSettings,
        now_ms: u64,
    ) -> Result<Option<AgentNotice>, GivesUp> {
        self.state = Reach::Waits { until_ms: now_ms + settings.retry_ms };
        let why = match missed {
            Missed::Busy(why) if !self.known && now_ms < self.started_ms + settings.connect_timeout_ms => {
                let first = !std::mem::replace(&mut self.told_untaken, true);
                return Ok(first.then_some(AgentNotice::NotTakenYet(why)));
            }
            Missed::Busy(why) | Missed::Refused(why) if !self.known => return Err(GivesUp::NeverTaken(why)),
            Missed::Busy(why) | Missed::Refused(why) | Missed::Lost(why) => why,
        };
        let timeout_ms = settings.coordinator_timeout_ms;
        let notice = (self.lost.is_none() && timeout_ms > 0)
            .then(|| AgentNotice::LostCoordinator { why: why.clone(), timeout_s: timeout_ms / 1000 });
        let (since_ms, why) = self.lost.get_or_insert((now_ms, why));
        if now_ms - *since_ms >= timeout_ms {
            return Err(GivesUp::Alone(why.clone()));
        }
        Ok(notice)
    }
}
