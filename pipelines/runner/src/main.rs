//! `smelt`: the command people type. It knows stages through their five verbs and their manifests, never through Rust.

mod artifacts;
mod commands;
mod diagnostic;
mod job;
mod load;
mod plan;
mod programs;
mod query;
mod run;
mod shim;
mod table;
mod view;
mod yaml;

use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use table::Format;

/// Turns a raw corpus into an aligned language model: runs pipelines of stages, keeps their artifacts, answers SQL.
#[derive(Parser)]
#[command(
    name = "smelt",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 2 fix the pipeline, 3 fix the data, 4 try again, 5 a bug of smelt, 6 fix the machine."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
struct StoreArg {
    /// A directory or s3://bucket/prefix; overrides SMELT_STORE and the pipeline's own
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
}

#[derive(Args, Clone)]
struct PipelineArgs {
    /// The pipeline's YAML file; may be left out where there is only one, and `status` and `report` take the one that ran last
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArg,
    /// Change a value of the file: `job.config.field=value`, `seed=3`, `vars.name=value`
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

#[derive(Args, Clone)]
struct RunArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// How often a job is tried again after exit code 4; overrides the file
    #[arg(long)]
    retries: Option<u32>,
    /// Cores to use; all of the machine's if not said
    #[arg(long)]
    cores: Option<usize>,
    /// Print errors only
    #[arg(long, short)]
    quiet: bool,
    /// `json` prints the same facts, one object a line
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Subcommand)]
enum Command {
    /// Check a pipeline: syntax, stages, inputs, configs; runs nothing
    Check(PipelineArgs),
    /// Say for every job whether it is cached, new (and what made it so), or after another; runs nothing
    Plan {
        #[command(flatten)]
        pipeline: PipelineArgs,
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Run what is not there yet; a second call continues where the first one stopped
    Run {
        #[command(flatten)]
        run: RunArgs,
        /// Run this job and what it needs; may be given more than once
        #[arg(long, value_name = "JOB")]
        only: Vec<String>,
        /// Run this job, what it needs and what needs it; may be given more than once
        #[arg(long, value_name = "JOB")]
        from: Vec<String>,
    },
    /// Run one job again though it is cached, then what its new bytes make stale
    Rerun {
        /// The job, or an instance such as `train[seed=1]`
        job: String,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Jobs of a pipeline, what they made and when; and the last run
    Status {
        #[command(flatten)]
        pipeline: PipelineArgs,
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Print what a job said in its last run
    Logs {
        job: String,
        #[command(flatten)]
        store: StoreArg,
        /// The pipeline, by file or name; any that has this job if not said
        #[arg(long)]
        pipeline: Option<String>,
        /// The run, as `smelt status` names it; the newest that has this job if not said
        #[arg(long)]
        run: Option<String>,
        /// Print the events too: progress and metrics as JSON lines
        #[arg(long)]
        events: bool,
    },
    /// Query jobs' ports as tables: `clean`, `clean.drops`, `smelt.jobs`; without a query, a shell
    Sql {
        query: Option<String>,
        #[command(flatten)]
        store: StoreArg,
        /// The pipeline, by file or name; the one that ran last if not said
        #[arg(long)]
        pipeline: Option<String>,
        #[arg(long, value_enum, default_value = "table")]
        format: commands::SqlFormat,
        /// Where `--format parquet` goes
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Print the pipeline's report again
    Report(PipelineArgs),
    /// What a store holds
    Artifacts {
        #[command(subcommand)]
        command: artifacts::Command,
    },
    /// Print a schema: `pipeline`, `manifest`, `event`, …, a kind such as `documents`, or a stage's config
    Schema { name: Option<String> },
    /// Measure how fast training and generation are on this machine, and where the time goes
    #[command(disable_help_flag = true)]
    Bench {
        /// See `smelt bench --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check this machine, the stages and the store
    Doctor {
        #[command(flatten)]
        store: StoreArg,
    },
    #[command(hide = true)]
    Shim { program: PathBuf, verb: String, invocation: PathBuf },
}

fn main() -> ExitCode {
    // A closed pipe (`smelt status | head`) ends the program, quietly.
    // SAFETY: restores the default action of a signal before any thread starts.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let done = match Cli::parse().command {
        Command::Check(p) => commands::check(&p.into()),
        Command::Plan { pipeline, format } => commands::plan(&pipeline.into(), format),
        Command::Run { run, only, from } => commands::run(run, &only, &from, None),
        Command::Rerun { job, run } => commands::run(run, &[], &[], Some(job)),
        Command::Status { pipeline, format } => commands::status(pipeline.into(), format),
        Command::Logs { job, store, pipeline, run, events } => {
            commands::logs(store.store.as_deref(), pipeline.as_deref(), &job, run.as_deref(), events)
        }
        Command::Sql { query, store, pipeline, format, output } => {
            commands::sql(store.store.as_deref(), pipeline.as_deref(), query.as_deref(), format, output)
        }
        Command::Report(p) => commands::report(p.into()),
        Command::Artifacts { command } => artifacts::run(command),
        Command::Schema { name } => commands::schema(name.as_deref()),
        Command::Doctor { store } => commands::doctor(store.store.as_deref()),
        Command::Bench { args } => commands::bench(&args),
        Command::Shim { program, verb: _, invocation } => shim::run(&program, &invocation),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.message.is_empty() {
                e.print();
            }
            e.code.into()
        }
    }
}
