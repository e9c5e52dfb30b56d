//! Standard input as a file that stages can hash, read in parts, and read again.

use crate::diagnostic::{Diagnostic, Result};
use crate::job::{self, STOP, Scratch};
use smelt_schemas::ExitCode;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::sync::atomic::Ordering;

/// Names the file for the stages.
const VARIABLE: &str = "SMELT_STDIN";

/// A copy of standard input in a folder of this process, deleted with this value.
pub(crate) struct Spool(#[expect(dead_code, reason = "it is deleted with this value")] Scratch);

impl Spool {
    /// Reads standard input to its end. Stages that this process starts from now on find the copy.
    pub(crate) fn of_stdin() -> Result<Self> {
        let mut input = io::stdin().lock();
        if input.is_terminal() {
            return Err(Diagnostic::pipeline("`--stdin` reads standard input, which is a terminal")
                .hint("send data to it: `zcat data.jsonl.gz | smelt run --stdin`"));
        }
        let scratch = Scratch::new("stdin", "stdin", 0)?;
        let path = scratch.0.join("stdin");
        let cannot = |e| {
            let what = format!("standard input cannot be copied to `{}`: {e}", path.display());
            Diagnostic::new(ExitCode::Machine, what).hint("set TMPDIR to a folder with space")
        };
        let mut file = File::create(&path).map_err(cannot)?;
        io::copy(&mut input, &mut file).map_err(cannot)?;
        if STOP.load(Ordering::SeqCst) {
            return Err(job::stopped()); // Ctrl-C ended the program that wrote, too: this may be half of its data
        }
        // SAFETY: no other thread runs yet: this is called while a command line is read, before a job is started.
        unsafe { std::env::set_var(VARIABLE, &path) };
        Ok(Self(scratch))
    }
}
