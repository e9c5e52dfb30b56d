//! What becomes of a job that a cluster has no more and that left no manifest: tried again, submitted again, or failed.

use crate::diagnostic::Result;
use crate::job::{Failure, Work};
use smelt_schemas::{ExitCode, Problem};

pub(super) enum Verdict {
    Fail(ExitCode, Problem),
    /// Another try, if any is left.
    Again(String),
    /// It is submitted again, and that counts as no try; says why, if that is news.
    GoOn(Option<String>),
}

impl Verdict {
    /// `hint`: what to do, or nothing.
    pub(super) fn fail(code: ExitCode, message: String, hint: &str) -> Self {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        Self::Fail(code, Problem { message, hint, ..Problem::default() })
    }
}

impl From<Failure> for Verdict {
    fn from(Failure { code, problem }: Failure) -> Self {
        match code {
            ExitCode::Again => Self::Again(problem.message),
            code => Self::Fail(code, problem),
        }
    }
}

/// How often a job was tried.
#[derive(Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// An error if the job has failed for good; else it is to be submitted again.
    pub(super) fn settle(&mut self, work: &Work, verdict: Verdict) -> Result<()> {
        let (name, stage) = (&work.job.name, &work.job.program.description.name);
        match verdict {
            Verdict::Fail(code, problem) => return Err(work.failed(code, "", problem, None)),
            Verdict::Again(message) if self.0 >= work.retries() => {
                let problem = Problem { message, ..Problem::default() };
                return Err(work.failed(ExitCode::Again, "", problem, None));
            }
            Verdict::Again(why) => {
                self.0 += 1;
                work.view.again(name, stage, &why, 0.0);
            }
            Verdict::GoOn(why) => why.iter().for_each(|why| work.view.queued(name, stage, why)),
        }
        Ok(())
    }
}
