//! The commands, and what each of them starts.

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use coxswain_console::logs::LogFormat;
use coxswain_console::say;

use crate::failure::{BAD_INPUT, DONE, FAILED, Failure};
use crate::preparation::child::Prepare;
use crate::tls::certs;
use crate::{
    client, compare, doctor, local, models, output, plan, preparation, serve, top, up, verify, worker_logs,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed or cancelled
  2  bad input; nothing was started
  141  the reader of stdout has closed it";

const EXAMPLES: &str = "\
Examples:
  coxswain plan job.yaml                                 show who would do what
  coxswain up job.yaml                                   run a job on this machine, to its end
  coxswain up job.yaml --set train.steps=50              the same with another value
  coxswain verify job.yaml --layouts pp2,dp2             is the layout without effect on the numbers?
  coxswain generate --checkpoint out/demo --prompt 'It was '
  coxswain classify --checkpoint out/reviews < lines.txt
  coxswain import ./a-hugging-face-folder --out DIR      bring in a model; jobs start from it
  coxswain serve --data-dir /var/lib/coxswain            a coordinator for workers and jobs to come
  coxswain submit job.yaml --directory /shared/run-1     hand it a job
  coxswain status                                        or `top`, or the page that `serve` and `up` name
  coxswain runs out                                      compare runs
  coxswain doctor                                        is this machine ready?
  coxswain certs init --dir tls --host 10.0.0.1          certificates, for calls from other machines

Exit codes:
  0  done
  1  failed or cancelled
  2  bad input; nothing was started";

/// Coordinates the training of transformers over many workers.
#[derive(Debug, Parser)]
#[command(name = "coxswain", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// How logs are written, to stderr. RUST_LOG chooses what is logged.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a coordinator that workers and users connect to.
    #[command(after_help = EXIT_CODES)]
    Serve(serve::Serve),
    /// Run a job on this machine or, by ssh, on others, with a coordinator and workers of its own, to its end.
    #[command(after_help = "\
Example:
  coxswain up job.yaml --set train.steps=100 --out runs/first
  coxswain up job.yaml --hosts gpu-1,gpu-2 --device cuda --out /shared/runs/first

Where DIR holds a checkpoint of the job, the run continues from it. DIR then holds checkpoints/,
metrics.jsonl, loss.svg, job.yaml (every value of the job) and logs/ (one file a worker).

Exit codes:
  0  done
  1  failed or cancelled
  2  bad input; nothing was started")]
    Up(up::Up),
    /// Hand a job to a coordinator; prints the job's id.
    #[command(after_help = EXIT_CODES)]
    Submit(client::Submit),
    /// List jobs and workers.
    #[command(after_help = EXIT_CODES)]
    Status(client::Status),
    /// Show the cluster in a terminal: jobs, ranks, who waits for whom; drain and cancel.
    #[command(after_help = "\
Example:
  coxswain top
  coxswain top demo-1

Keys: up and down choose a line, Tab goes from ranks to workers and events, n to the next job; x drains the
chosen worker and c cancels the job, after a question; q ends.

Exit codes:
  0  done
  1  failed
  2  bad input, such as an unknown job")]
    Top(top::Top),
    /// Compare the runs below a folder: losses, tokens, time, and in what their jobs differ.
    #[command(after_help = "\
Example:
  coxswain runs out
  coxswain runs out --sort validation --json

Exit codes:
  0  done
  1  failed
  2  bad input, such as a folder that is not there")]
    Runs(compare::Runs),
    /// Show what the workers of a run write that `up` started.
    #[command(after_help = "\
Example:
  coxswain logs out/demo
  coxswain logs -f out/demo --rank 1

Exit codes:
  0  done
  1  failed
  2  bad input, such as a rank that the run does not have
  141  the reader of stdout has closed it")]
    Logs(worker_logs::Logs),
    /// Follow a job to its end: on a terminal as `up` shows it, else a line of JSON for each step.
    #[command(after_help = "\
Example:
  coxswain watch demo-1
  coxswain watch demo-1 --format json | jq .loss

Exit codes:
  0  the job is done
  1  the job failed or was cancelled, or the coordinator cannot be reached
  2  bad input")]
    Watch(client::Watch),
    /// Cancel a job.
    #[command(after_help = EXIT_CODES)]
    Cancel(client::Cancel),
    /// Take a worker out: its run goes on without it after the step that it takes, and its process ends.
    #[command(after_help = "\
Example:
  coxswain drain gpu-7 --reason 'a new disk'

Exit codes:
  0  it will leave
  1  failed
  2  bad input, such as an unknown worker")]
    Drain(client::Drain),
    /// Tell the story of a job: why it is where it is, what each rank does, what interrupted it.
    #[command(after_help = EXIT_CODES)]
    Explain(client::Explain),
    /// Print what happened, a line of JSON for each event of the journal.
    #[command(after_help = "\
Example:
  coxswain events --job demo-1 --follow
  coxswain events --data-dir /var/lib/coxswain

Exit codes:
  0  done
  1  failed
  2  bad input")]
    Events(client::Events),
    /// Look at this machine: libtorch, devices, ports, clock, folder and limits; say how to mend what is wrong.
    #[command(after_help = "\
Example:
  coxswain doctor
  coxswain doctor --coordinator https://10.0.0.1:7070 --directory /shared/runs

Exit codes:
  0  nothing has to be mended
  1  something has
  2  bad input")]
    Doctor(doctor::Doctor),
    /// Make a job's data ready; a coordinator starts this.
    #[command(hide = true, after_help = EXIT_CODES)]
    Prepare(Prepare),
    /// Make and get certificates: who may call the coordinator.
    #[command(after_help = EXIT_CODES)]
    Certs(certs::Certs),
    /// Make or end a join token: who may get a certificate.
    #[command(after_help = EXIT_CODES)]
    Token(certs::Token),
    /// Show who would do what, on which layout, and what it would take; start nothing.
    #[command(after_help = "\
Example:
  coxswain plan --preset llama-3-8b --workers 16 --memory 24GiB
  coxswain plan job.yaml --workers 16 --device a100-80gb --format html > plan.html
  coxswain plan job.yaml --cluster cluster.yaml -o plan.json
  coxswain plan job.yaml --set layout.pipeline=4 --set layout.tensor=1
  coxswain plan job.yaml --schedule 1f1b,zb-h1 --svg schedules.svg
  coxswain plan --preset t5-small --format json

Exit codes:
  0  the plan is printed
  1  a file cannot be written
  2  bad input, such as a layout that needs another number of workers, or none that fits")]
    Plan(plan::PlanArgs),
    /// Print the JSON schema of job files, by which editors complete and check them.
    #[command(after_help = "\
Example:
  coxswain schema > job.schema.json

An editor with a YAML language server takes it from the first line of a job file:
  # yaml-language-server: $schema=job.schema.json

Exit codes:
  0  done
  1  failed")]
    Schema,
    /// Print what a shell completes commands by.
    #[command(after_help = "\
Example:
  coxswain completions bash > /etc/bash_completion.d/coxswain

Exit codes:
  0  done
  1  failed")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or that of a command.
    #[command(after_help = "\
Example:
  coxswain man | man -l -
  coxswain man plan > coxswain-plan.1

Exit codes:
  0  done
  1  failed
  2  bad input, such as an unknown command")]
    Man {
        /// Of this command.
        command: Option<String>,
    },
    /// Run a few steps in several layouts and certify that the numbers are the same.
    #[command(after_help = "\
Example:
  coxswain verify job.yaml --layouts pp2,dp2,tp2xpp2 --set train.tensor_shards=2

A layout is made of parts (ppN, tpN, dpN) joined by x, or `one` for one process, or `job` for the job's own;
then options: +zero +sp +1f1b +gpipe +zb-h1 +interleaved +none +full +attention +ffn.

Exit codes:
  0  every layout keeps to what it is held to; the certificate is printed
  1  one does not (the certificate is printed), or a run failed
  2  bad input; nothing was started")]
    Verify(verify::Verify),
    /// Generate text from a trained model.
    #[command(after_help = "\
Example:
  coxswain generate --checkpoint out/demo --prompt 'It was ' --tokens 100 --temperature 0.8 --seed 1
  cat start.txt | coxswain generate --checkpoint out/demo --prompt-file -

Exit codes are those of coxswain-worker:
  0  done
  1  failed
  2  bad input")]
    Generate(local::GenerateArgs),
    /// Classify each line of stdin, by a model with a pooled head.
    #[command(after_help = "\
Example:
  echo 'what a film' | coxswain classify --checkpoint out/reviews

A line is the likeliest class (its name in data.classes, or its number), its
probability and the text, with tabs between them; with --embeddings the pooled
output, a list of numbers in JSON.

Exit codes are those of coxswain-worker:
  0  done
  1  failed
  2  bad input")]
    Classify(local::ClassifyArgs),
    /// Bring in a model from a Hugging Face folder or a GGUF file; jobs start from it.
    #[command(after_help = "\
Example:
  coxswain import ./smollm2 --out smollm2
  coxswain generate --checkpoint smollm2 --prompt 'The capital of France is'

DIR then holds checkpoints/, data/tokenizer.json and job.yaml, a job whose train.start_from is DIR.

Exit codes:
  0  done
  1  failed
  2  bad input, such as a model of a kind that is not known; nothing was written")]
    Import(models::Import),
    /// Write a checkpoint as a Hugging Face folder.
    #[command(after_help = "\
Example:
  coxswain export --checkpoint out/demo --out demo-hf

Exit codes:
  0  done
  1  failed, such as a model that no known family can say
  2  bad input; nothing was written")]
    Export(models::Export),
}

/// Does a command; returns the exit code.
pub(crate) async fn run(command: Command) -> u8 {
    let result = match command {
        Command::Serve(args) => serve::serve(args).await,
        Command::Up(args) => up::up(args).await,
        Command::Submit(args) => client::submit(args).await,
        Command::Status(args) => client::status(args).await,
        Command::Top(args) => top::top(args).await,
        Command::Runs(args) => compare::runs(&args),
        Command::Logs(args) => worker_logs::logs(&args),
        Command::Watch(args) => client::watch(args).await,
        Command::Cancel(args) => client::cancel(args).await,
        Command::Drain(args) => client::drain(args).await,
        Command::Explain(args) => client::explain(args).await,
        Command::Events(args) => client::events(args).await,
        Command::Doctor(args) => doctor::doctor(args).await,
        Command::Prepare(args) => preparation::child::main(args).map_err(Failure::from),
        Command::Certs(args) => certs::certs(args).await,
        Command::Token(args) => certs::token(args).await,
        Command::Plan(args) => plan::plan(&args),
        Command::Schema => local::schema(),
        Command::Completions { shell } => completions(shell),
        Command::Man { command } => man(command.as_deref()),
        Command::Verify(args) => verify::verify(args).await,
        Command::Generate(args) => local::generate(args).await,
        Command::Classify(args) => local::classify(args).await,
        Command::Import(args) => models::import(&args),
        Command::Export(args) => models::export(&args),
    };
    match result {
        Ok(()) => DONE,
        Err(Failure::Said(code)) => code,
        Err(Failure::Input(message)) => {
            say(&format!("error: {message}"));
            BAD_INPUT
        }
        Err(Failure::Refused(refusal)) => {
            say(&format!("error: {refusal}"));
            BAD_INPUT
        }
        Err(Failure::Failed(error)) => {
            say(&format!("error: {error:#}"));
            FAILED
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "coxswain", &mut script);
    output::write(&String::from_utf8_lossy(&script))
}

fn man(command: Option<&str>) -> Result<(), Failure> {
    let mut page = Cli::command();
    page.build();
    if let Some(name) = command {
        let found = page.find_subcommand(name).cloned();
        let unknown =
            || Failure::Input(format!("there is no command `{name}`; `coxswain --help` lists them"));
        page = found.ok_or_else(unknown)?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).context("the manual page")?;
    output::write(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
#[path = "../../tests/src/commands.rs"]
#[allow(unreachable_pub, reason = "tests of other crates use it too")]
mod commands;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::commands::refused_commands;
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_in_the_documents_is_one_that_this_program_takes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let refused = refused_commands::<Cli>(root, "coxswain", 51);
        assert!(refused.is_empty(), "{}", refused.join("\n"));
    }

    #[test]
    fn every_help_documents_its_exit_codes() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Exit codes"), "{}", command.get_name());
        }
    }
}
