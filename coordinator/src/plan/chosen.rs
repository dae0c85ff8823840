//! A layout that the planner chooses, or weighs where the job has one.

use coxswain_core::hardware::Machines;
use coxswain_core::plan::search::{Choice, LayoutQuestion, NoChoice, choose};
use coxswain_core::spec::{OpenJob, OpenKeys};

use super::{PlanArgs, PlanFormat, write_file};
use crate::failure::Failure;
use crate::output;
use crate::refusal::JobRefusal;

/// A choice with what it was made for.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) choice: Choice,
    pub(crate) cluster: Machines,
    open: OpenKeys,
}

/// The best layout of a job on these machines, of so many workers at most.
pub(crate) fn chosen(job: &OpenJob, cluster: &Machines, workers: Option<u32>) -> Result<Chosen, Failure> {
    let workers = workers.unwrap_or_else(|| cluster.devices());
    let question = LayoutQuestion { spec: &job.spec, open: job.open, cluster, workers };
    let refuse = |error: NoChoice| JobRefusal::new(error.code(), error.to_string());
    let choice = choose(&question).map_err(refuse)?;
    Ok(Chosen { choice, cluster: cluster.clone(), open: job.open })
}

impl Chosen {
    /// The choice in one line, for a journal.
    pub(crate) fn reason(&self) -> String {
        self.choice.reason(&self.cluster, &self.open)
    }

    /// The values that make the choice, as `--set` takes them.
    pub(crate) fn sets(&self) -> Vec<String> {
        self.choice.sets(&self.open).into_iter().map(|(path, value)| format!("{path}={value}")).collect()
    }

    pub(super) fn print(&self, args: &PlanArgs) -> Result<(), Failure> {
        let Chosen { choice, cluster, open } = self;
        let refuse = |error| JobRefusal::from(error);
        if let Some(path) = &args.output {
            let saved = choice.saved(cluster, open).map_err(JobRefusal::from)?;
            let text = serde_json::to_string_pretty(&saved).map_err(anyhow::Error::from)?;
            write_file(path, &(text + "\n"))?;
        }
        if let Some(path) = &args.svg {
            write_file(path, &choice.picture().map_err(refuse)?)?;
        }
        output::write(&match args.format {
            PlanFormat::Text => choice.text(cluster, open),
            PlanFormat::Json => format!("{:#}\n", choice.facts(cluster, open)),
            PlanFormat::Svg => choice.picture().map_err(refuse)?,
            PlanFormat::Html => choice.page(cluster, open).map_err(refuse)?,
        })
    }
}
