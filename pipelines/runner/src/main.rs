//! `smelt`: the command people type. It knows stages through their five verbs and their manifests, never through Rust.

mod artifacts;
mod asked;
mod cancel;
mod child;
mod cli;
mod commands;
mod diagnostic;
mod diff;
mod digests;
mod doctor;
mod estimate;
mod exec;
mod executor;
mod html;
mod init;
mod job;
mod live;
mod load;
mod lock;
mod plan;
mod programs;
mod query;
mod report;
mod resources;
mod run;
mod runs;
mod schedule;
mod sharing;
mod shim;
mod stdin;
mod table;
mod team;
mod tensorboard;
mod traces;
mod view;
mod yaml;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let begun = Instant::now();
    // A closed pipe (`smelt status | head`) ends the program, quietly.
    // SAFETY: restores the default action of a signal before any thread starts.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let done = match Cli::parse().command {
        Command::Check(p) => commands::check(&p.into()),
        Command::Plan { pipeline, diff, format } => commands::plan(&pipeline.into(), format, diff),
        Command::Estimate { pipeline, args } => estimate::run(&pipeline.into(), &args),
        Command::Run { run, only, from, force } => {
            commands::run(run, &commands::Chosen { only, from, force, rerun: None }, begun)
        }
        Command::Rerun { job, run } => {
            commands::run(run, &commands::Chosen { rerun: Some(job), ..Default::default() }, begun)
        }
        Command::Lock(pipeline) => commands::lock(&pipeline.into()),
        Command::Exec { run, job, store, number, quiet } => {
            exec::exec(&exec::Options { store: store.store, run, job, number, quiet })
        }
        Command::Cancel { run, store } => cancel::cancel(run.as_deref(), store.store.as_deref()),
        Command::Status { pipeline, format } => commands::status(pipeline.into(), format),
        Command::Logs { job, store, pipeline, run, events, follow } => {
            let what = commands::Said { job: &job, run: run.as_deref(), events, follow };
            commands::logs(store.store.as_deref(), pipeline.as_deref(), &what)
        }
        Command::Runs { store, pipeline, format } => {
            commands::runs(store.store.as_deref(), pipeline.as_deref(), format)
        }
        Command::Compare { first, second, store, format } => {
            commands::compare(store.store.as_deref(), [&first, &second], format)
        }
        Command::Sql { query, store, pipeline, format, output, ballista } => {
            let answer = query::Answer { format: format.into(), output, ballista };
            commands::sql(store.store.as_deref(), pipeline.as_deref(), query.as_deref(), answer)
        }
        Command::Report { pipeline, job, html, tensorboard, otlp } => {
            let files = commands::Files { html, tensorboard, otlp };
            commands::report(pipeline.into(), &job, &files)
        }
        Command::Init { paths, output } => init::run(&paths, &output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "smelt", &mut std::io::stdout());
            Ok(())
        }
        Command::Artifacts { command } => artifacts::run(command),
        Command::Push(args) => sharing::copy(&args, sharing::Way::Push),
        Command::Pull(args) => sharing::copy(&args, sharing::Way::Pull),
        Command::Export(args) => sharing::export(&args),
        Command::Schema { name } => commands::schema(name.as_deref()),
        Command::Doctor { store, namespace, single_writer } => {
            commands::doctor(store.store.as_deref(), namespace, single_writer)
        }
        Command::Bench { args } => commands::bench(&args),
        Command::Shim { program, verb: _, invocation, ranks } => shim::run(&program, &invocation, ranks),
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
