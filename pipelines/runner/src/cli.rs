//! The command line: verbs and their arguments.

use crate::artifacts;
use crate::estimate;
use crate::sharing;
use crate::table::Format;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use smelt_schemas::{QueryFormat, parse_bytes};
use std::ffi::OsString;
use std::path::PathBuf;

/// Turns a raw corpus into an aligned language model: runs pipelines of stages, keeps their artifacts, answers SQL.
#[derive(Parser)]
#[command(
    name = "smelt",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 2 fix the pipeline, 3 fix the data, 4 try again, 5 a bug of smelt, 6 fix the \
        machine."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Clone)]
pub(crate) struct StoreArg {
    /// A directory, or a bucket and a prefix in it, such as s3://bucket/prefix; overrides SMELT_STORE and the
    /// pipeline's own
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) store: Option<String>,
}

#[derive(Args, Clone)]
pub(crate) struct PipelineArgs {
    /// The pipeline's YAML file; may be left out where there is only one, and `status` and `report` take the one that
    /// ran last
    pub(crate) pipeline: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) store: StoreArg,
    /// Change a value of the file: `job.config.field=value`, `seed=3`, `vars.name=value`
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,
    /// Take variables of the pipeline from a YAML file of `name: value` lines; may be given more than once.
    /// SMELT_VAR_size gives the variable `size`, and counts less
    #[arg(long, value_name = "FILE")]
    pub(crate) vars: Vec<PathBuf>,
    /// Read standard input: what `paths: ["-"]` of an `ingest` job stands for
    #[arg(long)]
    pub(crate) stdin: bool,
}

#[derive(Args, Clone)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// How often a job is tried again after exit code 4; overrides the file
    #[arg(long)]
    pub(crate) retries: Option<u32>,
    /// Cores to use; all of the machine's if not said
    #[arg(long)]
    pub(crate) cores: Option<usize>,
    /// Accept a store that knows no create-only put: you start one run at a time
    #[arg(long)]
    pub(crate) single_writer: bool,
    /// Run only with the stage programs that the pipeline's lock names: see `smelt lock`
    #[arg(long)]
    pub(crate) locked: bool,
    /// Memory that jobs which say how much they need may take together, such as `64GiB`; all of the machine's if not
    /// said
    #[arg(long, value_parser = memory)]
    pub(crate) memory: Option<u64>,
    /// GPUs to use; all that the machine shows if not said
    #[arg(long)]
    pub(crate) gpus: Option<usize>,
    /// Print errors only
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// `json` prints the same facts, one object a line
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: Format,
}

fn memory(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("`{text}` is no amount of memory: write `512MiB` or `64GiB`"))
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check a pipeline: syntax, stages, inputs, configs; runs nothing
    Check(PipelineArgs),
    /// Say for every job whether it is cached, new (and what made it so), or after another; runs nothing
    Plan {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// Show how each config differs from that of what the job made last, as a unified diff
        #[arg(long)]
        diff: bool,
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// What its jobs cost on a GPU: memory, arithmetic, hours and price. Runs nothing
    Estimate {
        #[command(flatten)]
        pipeline: PipelineArgs,
        #[command(flatten)]
        args: estimate::Args,
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
        /// Run again although it is cached: the jobs of `--only`, those of `--from` with what needs them, or all
        #[arg(long)]
        force: bool,
    },
    /// Write down which stage programs a pipeline runs with now, in FILE.lock beside it: name, version, digest
    Lock(PipelineArgs),
    /// Run one job again though it is cached, then what its new bytes make stale
    Rerun {
        /// The job, or an instance such as `train[seed=1]`
        job: String,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Do one job of a recorded run here: what a node of a cluster starts
    Exec {
        /// The run, as `smelt status` names it
        run: String,
        /// The job, or an instance such as `train[seed=1]`
        job: String,
        #[command(flatten)]
        store: StoreArg,
        /// How often a cluster was given the job
        #[arg(long, hide = true)]
        number: Option<u32>,
        /// Print errors only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Cancel what a run has on a cluster; what is saved is kept
    Cancel {
        /// The run; the only one that has jobs on Slurm if not said
        run: Option<String>,
        #[command(flatten)]
        store: StoreArg,
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
        /// Go on as the job says more, until its run has ended
        #[arg(long, short)]
        follow: bool,
    },
    /// List the runs in a store, newest last
    Runs {
        #[command(flatten)]
        store: StoreArg,
        /// Only those of this pipeline, by file or name
        #[arg(long)]
        pipeline: Option<String>,
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// What differs between two runs: artifacts, configs, results
    Compare {
        /// A run as `smelt runs` names it, or the beginning of its name
        first: String,
        second: String,
        #[command(flatten)]
        store: StoreArg,
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
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
        format: SqlFormat,
        /// Where `--format parquet` goes
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// Let a Ballista cluster answer, whose scheduler this is; it has to see the store's folder or bucket
        #[arg(long, value_name = "HOST:PORT", env = "SMELT_BALLISTA")]
        ballista: Option<String>,
    },
    /// Print the pipeline's report again; with `--job` what is in a job's artifact: books, drops by rule with examples,
    /// languages, lengths
    Report {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// The job, or an instance such as `train[seed=1]`; may be given more than once
        #[arg(long, value_name = "JOB")]
        job: Vec<String>,
        /// Write one HTML file that needs nothing else: jobs, times, drops, curves, load of experts, scores, lineage
        #[arg(long, value_name = "FILE", conflicts_with = "job")]
        html: Option<PathBuf>,
        /// Write the curves as TensorBoard's event files, a folder per job: `tensorboard --logdir FOLDER`
        #[arg(long, value_name = "FOLDER", conflicts_with = "job")]
        tensorboard: Option<PathBuf>,
        /// Write the trace of the last run as OpenTelemetry's JSON; `smelt run` sends it by itself where
        /// OTEL_EXPORTER_OTLP_ENDPOINT names a collector
        #[arg(long, value_name = "FILE", conflicts_with = "job")]
        otlp: Option<PathBuf>,
    },
    /// Write a pipeline for your own text, with comments
    Init {
        /// Globs of text, JSON lines, CSV, Parquet, HTML or WARC files: `notes/**/*.md`
        #[arg(required = true)]
        paths: Vec<String>,
        #[arg(long, short, default_value = "pipeline.yaml")]
        output: PathBuf,
    },
    /// Print what makes a shell complete `smelt`: `source <(smelt completions bash)`
    Completions { shell: Shell },
    /// What a store holds
    Artifacts {
        #[command(subcommand)]
        command: artifacts::Command,
    },
    /// Copy artifacts into another store, with what they were made from: there, `smelt run` finds them
    Push(sharing::Copy),
    /// Copy artifacts from another store into this one, with what they were made from: then `smelt run` does nothing
    Pull(sharing::Copy),
    /// Write the files of an artifact, such as a checkpoint or a dataset, into a plain folder
    Export(sharing::Export),
    /// Print a schema: `pipeline`, `manifest`, `event`, …, a kind such as `documents`, or a stage's config
    Schema { name: Option<String> },
    /// Measure how fast training and generation are on this machine, and where the time goes
    #[command(disable_help_flag = true)]
    Bench {
        /// See `smelt bench --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check this machine, the stages, the store, and the clusters that are known here
    Doctor {
        #[command(flatten)]
        store: StoreArg,
        /// Of Kubernetes, as `run: { kubernetes: { namespace: … } }` says; the kubeconfig's own if not said
        #[arg(long)]
        namespace: Option<String>,
        /// Accept a store that knows no create-only put
        #[arg(long)]
        single_writer: bool,
    },
    #[command(hide = true)]
    Shim {
        program: PathBuf,
        verb: String,
        invocation: PathBuf,
        #[arg(long, default_value_t = 1)]
        ranks: u32,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum SqlFormat {
    Table,
    Json,
    Csv,
    Parquet,
}

impl From<SqlFormat> for QueryFormat {
    fn from(format: SqlFormat) -> Self {
        match format {
            SqlFormat::Table => QueryFormat::Table,
            SqlFormat::Json => QueryFormat::Json,
            SqlFormat::Csv => QueryFormat::Csv,
            SqlFormat::Parquet => QueryFormat::Parquet,
        }
    }
}
