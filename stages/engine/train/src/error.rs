//! What can stop a training.

use smelt_schemas::{ExitCode, Fault};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] smelt_model::Error),
    /// The step was not applied: parameters and optimizer are as before it.
    #[error("step {step}: {what} is {value}")]
    NotFinite { step: u64, what: &'static str, value: f64 },
    /// The guard has no snapshot to return to.
    #[error("step {step}: the loss is {loss:.3}, a spike, the {skipped} steps in a row that the guard allows")]
    Spikes { step: u64, loss: f64, skipped: u64 },
    #[error("step {step} has nothing to learn: no row of its batches has a target")]
    Empty { step: u64 },
    #[error("the training state cannot be read: {what}")]
    State { what: String },
}

impl Fault for Error {
    /// A training that diverges asks for another config; a batch without targets and an unreadable state are data.
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Model(error) => error.exit_code(),
            Self::NotFinite { .. } | Self::Spikes { .. } => ExitCode::Pipeline,
            Self::Empty { .. } | Self::State { .. } => ExitCode::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Model(error) => return error.hint(),
            Self::NotFinite { .. } => {
                "lower the learning rate or the clipping norm, and look at the batches of this step; the model is \
                 as it was before it"
            }
            Self::Spikes { .. } => {
                "lower the learning rate, or look at the batches before this step; the model is as it was before it"
            }
            Self::Empty { .. } => "check masks and lengths of the data",
            Self::State { .. } => "it belongs to another model or was cut short; start without it",
        };
        Some(hint.into())
    }

    fn place(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.place(),
            Self::NotFinite { step, .. } | Self::Spikes { step, .. } | Self::Empty { step } => {
                Some(format!("step {step}"))
            }
            Self::State { .. } => None,
        }
    }
}
