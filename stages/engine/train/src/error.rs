//! What can stop a training.

use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] smelt_model::Error),
    /// The step was not applied: parameters and optimizer are as before it.
    #[error(
        "step {step}: {what} is {value}\nhint: lower the learning rate or the clipping norm, and look at the batches of this step; \
         the model is as it was before it"
    )]
    NotFinite { step: u64, what: &'static str, value: f64 },
    /// The guard has nothing left to go back to.
    #[error(
        "step {step}: the loss is {loss:.3}, a spike, the {skipped} steps in a row that the guard allows\nhint: lower the learning rate, or look at \
         the batches before this step; the model is as it was before it"
    )]
    Spikes { step: u64, loss: f64, skipped: u64 },
    #[error(
        "step {step} has nothing to learn: no row of its batches has a target\nhint: check masks and lengths of the data"
    )]
    Empty { step: u64 },
    #[error(
        "the training state cannot be read: {what}\nhint: it belongs to another model or was cut short; start without it"
    )]
    State { what: String },
}
