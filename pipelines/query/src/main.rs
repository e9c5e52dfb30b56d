//! `smelt-query`: SQL over artifacts. `smelt sql`, `report:` and the shell start it with a request on standard input.
//!
//! The only program that links DataFusion, which is most of the build. Tables are the files that manifests name,
//! scanned in place with projection and predicates pushed down; a listing of a folder is never trusted.

mod answer;
mod inspect;
mod tables;

use smelt_schemas::{ExitCode, QueryRequest};
use std::io::Read;

fn main() -> std::process::ExitCode {
    // SAFETY: restores the default action of a signal before any thread starts: a closed pipe ends the program.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", e.message);
            if let Some(hint) = e.hint {
                eprintln!("hint: {hint}");
            }
            e.code.into()
        }
    }
}

/// What is wrong with a query, and the one thing to do.
#[derive(Debug)]
pub struct Failure {
    pub code: ExitCode,
    pub message: String,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
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
        let mut failure = Failure::new(ExitCode::Pipeline, format!("this is no request: {e}"));
        failure.hint = Some("people type `smelt sql \"select …\"`".into());
        failure
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(ExitCode::Machine, format!("no threads: {e}")))?;
    runtime.block_on(async {
        let context = tables::register(&request).await?;
        answer::give(&context, &request).await
    })
}
