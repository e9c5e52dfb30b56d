//! What a request to the cluster failed with, in words, and whether it may work later.

use smelt_schemas::ExitCode;

pub(crate) struct Failed {
    pub code: ExitCode,
    pub words: String,
}

impl Failed {
    pub(crate) fn pipeline(words: String) -> Self {
        Self { code: ExitCode::Pipeline, words }
    }

    pub(crate) fn machine(words: String) -> Self {
        Self { code: ExitCode::Machine, words }
    }
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let code = match status.code {
                    408 | 429 | 500.. => ExitCode::Again,
                    401 | 403 => ExitCode::Machine,
                    _ => ExitCode::Pipeline,
                };
                let words = if status.message.is_empty() { status.reason } else { status.message };
                Self { code, words: format!("{words} ({})", status.code) }
            }
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
                Self { code: ExitCode::Again, words: chain(&error) }
            }
            other => Self::machine(chain(&other)),
        }
    }
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !words.contains(&said) {
            words = format!("{words}: {said}");
        }
        cause = next.source();
    }
    words
}
