//! Evaluation while training.

use crate::{Error, Trainer};
use smelt_model::Batch;

/// Mean negative log-likelihood per target under what the training would hand on now. Backward is not prepared.
pub fn mean_loss(trainer: &Trainer, batches: impl IntoIterator<Item = Batch>) -> Result<f64, Error> {
    let (mut sum, mut targets) = (0.0, 0);
    for batch in batches {
        trainer.model().check(&batch.ids, batch.documents.longest())?;
        trainer.model().check(&batch.targets, 0)?;
        let backend = trainer.backend().as_ref();
        let logp = trainer.model().score(backend, trainer.result(), &batch).on_host(backend).logp;
        sum -= logp.iter().sum::<f64>();
        targets += logp.len();
    }
    Ok(sum / targets.max(1) as f64)
}
