//! The trainer: micro-batches in, one optimizer step out.

use crate::{Error, Hyper, Objective, Optimizer, Schedule};
use smelt_kernels::Backend;
use smelt_model::{Batch, Grads, Model, Params, Precision, Stats};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Settings {
    pub hyper: Hyper,
    pub schedule: Schedule,
    /// Weight of the sequence-wise balance loss; 0 leaves it out.
    pub balance_loss: f64,
    /// Step of the routers' correction biases; 0 leaves them.
    pub bias_speed: f64,
    /// Of the products of linear layers.
    pub precision: Precision,
}

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// From 1.
    pub step: u64,
    pub loss: f64,
    /// The objective's terms, and `balance` when there is that loss (unweighted).
    pub parts: BTreeMap<&'static str, f64>,
    /// Before clipping.
    pub gradient_norm: f64,
    pub lr: f64,
    /// Input tokens.
    pub tokens: usize,
    /// Rows each expert got, by layer.
    pub loads: BTreeMap<usize, Vec<u64>>,
    /// The largest over the layers of (most loaded expert − mean) / mean.
    pub max_violation: f64,
}

pub struct Trainer {
    pub(crate) model: Arc<Model>,
    pub(crate) params: Params,
    pub(crate) optimizer: Optimizer,
    grads: Option<Grads>,
    backend: Arc<dyn Backend>,
    settings: Settings,
}

impl Trainer {
    pub fn new(model: Arc<Model>, params: Params, backend: Arc<dyn Backend>, settings: Settings) -> Self {
        let optimizer = Optimizer::new(&params);
        Self { model, params, optimizer, grads: None, backend, settings }
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    pub fn params(&self) -> &Params {
        &self.params
    }

    pub fn into_params(self) -> Params {
        self.params
    }

    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Optimizer steps made.
    pub fn steps(&self) -> u64 {
        self.optimizer.step()
    }

    /// Forward and backward of every micro-batch in order, then one update. On an error nothing has changed.
    pub fn step(&mut self, micro_batches: &[(Batch, &dyn Objective)]) -> Result<Report, Error> {
        let step = self.optimizer.step() + 1;
        let mut sequences = 0;
        for (batch, _) in micro_batches {
            self.model.check(&batch.ids, batch.documents.longest())?;
            self.model.check(&batch.targets, 0)?;
            sequences += batch.documents.iter().filter(|rows| !rows.is_empty()).count();
        }
        if micro_batches.iter().all(|(batch, _)| batch.target_rows().is_empty()) {
            return Err(Error::Empty { step });
        }
        let mut grads = match self.grads.take() {
            Some(mut grads) => {
                self.params.handles().for_each(|p| grads.get_mut(p).write::<f32>().fill(0.0));
                grads
            }
            None => Grads::zeros(&self.params),
        };
        let balance = self.settings.balance_loss / sequences.max(1) as f64;
        let (stats, backend) = (RefCell::<Stats>::default(), self.backend.as_ref());
        let mut report = Report { step, lr: self.settings.schedule.lr(step), ..Default::default() };
        for (batch, objective) in micro_batches {
            let (head, saved) =
                self.model.forward_in(self.settings.precision, backend, &self.params, batch, balance, &stats);
            let loss = objective.loss(&head, batch);
            report.loss += loss.value;
            for (name, value) in loss.parts {
                *report.parts.entry(name).or_default() += value;
            }
            report.tokens += batch.ids.len();
            self.model.backward(backend, &self.params, batch, saved, loss.gradient, &mut grads);
        }
        let stats = stats.into_inner();
        if balance > 0.0 {
            report.loss += stats.balance;
            report.parts.insert("balance", stats.balance / self.settings.balance_loss);
        }
        report.gradient_norm = Optimizer::norm(backend, &self.params, &grads);
        for (what, value) in [("the loss", report.loss), ("the gradient's norm", report.gradient_norm)] {
            if !value.is_finite() {
                return Err(Error::NotFinite { step, what, value });
            }
        }
        if grads.take_saturated() || stats.has_saturated {
            return Err(Error::NotFinite { step, what: "a value that is quantised to fp8", value: f64::INFINITY });
        }
        let Settings { hyper, bias_speed, .. } = &self.settings;
        self.optimizer.update(backend, hyper, report.lr, report.gradient_norm, &mut self.params, &grads);
        if *bias_speed > 0.0 {
            self.model.balance(&mut self.params, &stats, *bias_speed);
        }
        let violation = |loads: &Vec<u64>| {
            let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
            loads.iter().max().map_or(0.0, |&most| (most as f64 - mean) / mean.max(1.0))
        };
        report.max_violation = stats.loads.values().map(violation).fold(0.0, f64::max);
        report.loads = stats.loads;
        self.grads = Some(grads);
        Ok(report)
    }
}
