//! `smelt-query`: SQL over artifacts. `smelt sql`, `report:` and the shell start it with a request on standard input.
//!
//! The only program that links DataFusion, which is most of the build. Tables are the files that manifests name,
//! scanned in place with projection and predicates pushed down; a listing of a folder is never trusted.

mod answer;
mod checked;
mod csv;
mod failure;
mod files;
mod inspect;
mod tables;

use failure::Failure;
use smelt_schemas::{ExitCode, Fault, Problem, QueryRequest};
use std::io::Read;

fn main() -> std::process::ExitCode {
    // SAFETY: restores the default action of a signal before any thread starts: a closed pipe ends the program.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", serde_json::to_string(&Problem::of(&e)).expect("a problem is plain data"));
            e.exit_code().into()
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut text);
    read.map_err(|e| Failure::new(ExitCode::Machine, format!("the request cannot be read: {e}")))?;
    if std::env::args().nth(1).as_deref() == Some("inspect") {
        return inspect::answer(&text);
    }
    let request: QueryRequest = serde_json::from_slice(&text).map_err(|e| {
        Failure::new(ExitCode::Pipeline, format!("this is no request: {e}"))
            .hint("people type `smelt sql \"select …\"`")
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(ExitCode::Machine, format!("no threads: {e}")))?;
    runtime.block_on(async {
        let session = tables::register(&request).await?;
        answer::give(&session, &request).await
    })
}
