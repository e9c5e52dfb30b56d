//! `smelt-query`: SQL over artifacts. `smelt sql`, `report:` and the shell start it with a request on standard input.
//!
//! The only program that links DataFusion, which is most of the build. Tables are the files that manifests name,
//! scanned in place with projection and predicates pushed down; a listing of a folder is never trusted.

mod answer;
mod ballista;
mod checked;
mod csv;
mod failure;
mod files;
mod inspect;
mod named;
mod ports;
mod session;
mod system;

use failure::Failure;
use smelt_schemas::{ExitCode, Fault, Problem, QueryRequest};
use std::io::Read;
use std::sync::{Mutex, PoisonError};

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
    let mut session = session::Session::open(&request)?;
    let gathered = session.gather()?;
    runtime.block_on(async {
        session.register(gathered).await?;
        answer::give(&session, &request).await
    })
}

/// Questions to a store at the same time.
const PARALLEL: usize = 16;

/// `ask` of each item, in order; several at a time, on threads of their own: a store waits for its answers, and may not
/// do that on the threads of a runtime.
fn at_once<T: Send, R: Send>(items: Vec<T>, ask: impl Fn(T) -> R + Sync) -> Vec<R> {
    let answers: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let (threads, items) = (PARALLEL.min(items.len()), Mutex::new(items.into_iter().enumerate()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((i, item)) = items.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
                    *answers[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(ask(item));
                }
            });
        }
    });
    answers.into_iter().filter_map(|answer| answer.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}
