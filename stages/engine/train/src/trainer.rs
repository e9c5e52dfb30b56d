//! The trainer: micro-batches in, one optimizer step out.

use crate::guard::Spikes;
use crate::objective::Loss;
use crate::record::Record;
use crate::{Error, Hyper, Objective, Optimizer, Schedule, SpikeGuard, StepTotals};
use smelt_kernels::{Backend, Copied, Tensor};
use smelt_model::{Balance, BalanceScope, Batch, Grads, Model, Param, Params, Prepared, Recomputed, Stats};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Settings {
    pub hyper: Hyper,
    pub schedule: Schedule,
    /// The balance loss; its weight applies to the mean over the step.
    pub balance: Balance,
    /// Step of the routers' correction biases; 0 leaves them.
    pub bias_speed: f64,
    pub guard: Option<SpikeGuard>,
    /// What backward computes again instead of keeping it.
    pub recompute: Recomputed,
    /// Parameters that the training leaves as they are.
    pub frozen: Vec<Param>,
}

impl Settings {
    /// Without balancing and guard; everything is trained.
    pub fn new(hyper: Hyper, schedule: Schedule) -> Self {
        let (balance, recompute) = (Balance::NONE, Recomputed::None);
        Self { hyper, schedule, balance, bias_speed: 0.0, guard: None, recompute, frozen: Vec::new() }
    }
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
    pub totals: StepTotals,
    /// The loss was a spike: nothing was updated.
    pub is_skipped: bool,
    /// After this step the training returned to the snapshot of this many updates.
    pub went_back_to: Option<u64>,
}

/// A batch on the device of a trainer.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    batch: Batch,
    prepared: Prepared,
}

/// Uploads to the device of a trainer, for a step to come. The host does not wait for the device.
#[derive(Clone)]
pub struct Uploader {
    model: Arc<Model>,
    backend: Arc<dyn Backend>,
}

impl fmt::Debug for Uploader {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Uploader").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Uploader {
    pub fn upload(&self, batch: Batch) -> MicroBatch {
        let prepared = self.model.prepare(self.backend.as_ref(), &batch);
        MicroBatch { batch, prepared }
    }
}

pub struct Trainer {
    pub(crate) model: Arc<Model>,
    pub(crate) params: Params,
    pub(crate) optimizer: Optimizer,
    pub(crate) steps: u64,
    pub(crate) spikes: Spikes,
    /// Of a save that may still be copied from the device.
    pub(crate) copied: Option<Copied>,
    grads: Option<Grads>,
    backend: Arc<dyn Backend>,
    settings: Settings,
}

impl fmt::Debug for Trainer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { steps, settings, .. } = self;
        f.debug_struct("Trainer").field("steps", steps).field("settings", settings).finish_non_exhaustive()
    }
}

impl Trainer {
    pub fn new(model: Arc<Model>, params: Params, backend: Arc<dyn Backend>, settings: Settings) -> Self {
        let params = params.on(backend.as_ref());
        let optimizer = Optimizer::new(backend.as_ref(), &params, &settings.hyper, &settings.frozen);
        let spikes = Spikes::default();
        Self { model, params, optimizer, steps: 0, spikes, copied: None, grads: None, backend, settings }
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What a finished training hands on: the moving average if one is kept, else the weights themselves.
    pub fn result(&self) -> &Params {
        self.optimizer.average.as_ref().unwrap_or(&self.params)
    }

    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Steps made, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Counts a step that has nothing to learn from, such as a rollout whose groups have no spread: the schedule goes
    /// on, and nothing is updated.
    pub fn skip(&mut self) {
        self.steps += 1;
    }

    pub fn uploader(&self) -> Uploader {
        Uploader { model: self.model.clone(), backend: self.backend.clone() }
    }

    /// [`step_beside`](Self::step_beside) over batches that are uploaded now, with nothing beside it.
    pub fn step(&mut self, batches: &[(Batch, &dyn Objective)]) -> Result<Report, Error> {
        let uploader = self.uploader();
        let uploaded: Vec<_> = batches.iter().map(|(batch, _)| uploader.upload(batch.clone())).collect();
        let pairs: Vec<_> = uploaded.iter().zip(batches).map(|(batch, (_, objective))| (batch, *objective)).collect();
        self.step_beside(&pairs, |_| ())
    }

    /// Forward and backward of every micro-batch in order, then one update. On an error nothing has changed. The host
    /// waits for the device once, before the update, for the [`Record`] by which it decides about it; an objective may
    /// wait once more per micro-batch. Before that wait, while the device computes, the host does what `beside` says:
    /// it makes and uploads the micro-batches of the step to come.
    pub fn step_beside(
        &mut self,
        micro_batches: &[(&MicroBatch, &dyn Objective)],
        beside: impl FnOnce(&Uploader),
    ) -> Result<Report, Error> {
        let step = self.steps + 1;
        for (MicroBatch { batch, .. }, _) in micro_batches {
            self.model.check(&batch.ids, batch.documents.longest())?;
            self.model.check(&batch.targets, 0)?;
        }
        let modules = self.model.config().num_nextn_predict_layers();
        let mut totals = StepTotals::count(micro_batches.iter().map(|(micro, _)| &micro.batch), modules);
        if totals.targets == 0 {
            return Err(Error::Empty { step });
        }
        let mut grads = match self.grads.take() {
            Some(mut grads) => {
                grads.clear();
                grads
            }
            None => Grads::zeros(self.backend.as_ref(), &self.params),
        };
        let (stats, backend) = (RefCell::<Stats>::default(), self.backend.as_ref());
        let balance_of = |batch: &Batch| {
            let share = match self.settings.balance.scope {
                BalanceScope::Sequence => 1.0 / totals.sequences.max(1) as f64,
                BalanceScope::Batch => batch.ids.len() as f64 / totals.tokens.max(1) as f64,
            };
            Balance { weight: self.settings.balance.weight * share, ..self.settings.balance }
        };
        let mut report = Report { step, lr: self.settings.schedule.lr(step), ..Default::default() };
        let mut sums = Vec::with_capacity(micro_batches.len());
        for (MicroBatch { batch, prepared }, objective) in micro_batches {
            let (balance, recompute, prepared) = (balance_of(batch), self.settings.recompute, prepared.clone());
            let (head, saved) = self.model.forward_in(recompute, backend, &self.params, prepared, balance, &stats);
            let Loss { sums: of_batch, gradient } = objective.loss(backend, &head, batch, &totals);
            sums.push(of_batch);
            self.model.backward(backend, &self.params, saved, gradient, &mut grads, &stats);
        }
        grads.settle(backend);
        let mut stats = stats.into_inner();
        let square_sum = self.optimizer.square_sum(backend, &self.params, &grads);
        beside(&self.uploader());
        let record = Record::read(backend, &sums, &square_sum, &mut stats);
        for ((_, objective), sums) in micro_batches.iter().zip(&record.sums) {
            let value = objective.value(sums, &totals);
            report.loss += value.loss;
            for (name, value) in value.parts {
                *report.parts.entry(name).or_default() += value;
            }
        }
        let weight = self.settings.balance.weight;
        if weight > 0.0 {
            report.loss += record.balance;
            report.parts.insert("balance", record.balance / weight);
        }
        (totals.loads, totals.square_sum) = (record.loads, record.square_sum);
        report.gradient_norm = totals.gradient_norm();
        let is_finite = report.loss.is_finite() && report.gradient_norm.is_finite() && !record.has_saturated;
        match &self.settings.guard {
            Some(guard) if !is_finite || guard.is_spike(&self.spikes, report.loss) => {
                report.is_skipped = true;
                report.went_back_to = self.skip_spike(guard.patience, &report)?;
            }
            _ if !is_finite => return Err(not_finite(&report)),
            _ => self.update(&grads, &report, &square_sum, &stats.loads),
        }
        self.steps = step;
        report.totals = totals;
        self.grads = Some(grads);
        Ok(report)
    }

    fn update(&mut self, grads: &Grads, report: &Report, square_sum: &Tensor, loads: &BTreeMap<usize, Tensor>) {
        let (backend, Settings { hyper, bias_speed, guard, frozen, .. }) = (self.backend.as_ref(), &self.settings);
        if let Some(copied) = self.copied.take() {
            backend.hold_back(&copied);
        }
        self.optimizer.update(backend, hyper, report.lr, square_sum, &mut self.params, grads);
        if *bias_speed > 0.0 {
            self.model.balance(backend, &mut self.params, loads, *bias_speed, frozen);
        }
        self.optimizer.follow(backend, hyper, &self.params);
        if let Some(guard) = guard {
            guard.accept(&mut self.spikes, report.loss);
            if self.optimizer.updates.is_multiple_of(guard.window.max(2) as u64) {
                self.spikes.kept = Some((self.params.copy_on(backend), self.optimizer.copy_on(backend)));
            }
        }
    }

    /// Counts a skipped step. After `patience` of them in a row, restores the last snapshot and returns its number of
    /// updates; an error when there is no snapshot.
    fn skip_spike(&mut self, patience: u64, report: &Report) -> Result<Option<u64>, Error> {
        if self.spikes.skipped + 1 < patience {
            self.spikes.skipped += 1;
            return Ok(None);
        }
        // a snapshot is used once: a training that spikes again before the next snapshot does not recover by itself
        let Some((params, optimizer)) = self.spikes.kept.take() else {
            return Err(if report.loss.is_finite() {
                Error::Spikes { step: report.step, loss: report.loss, skipped: patience }
            } else {
                not_finite(report)
            });
        };
        self.spikes.skipped = 0;
        (self.params, self.optimizer) = (params, optimizer);
        Ok(Some(self.optimizer.updates))
    }
}

fn not_finite(report: &Report) -> Error {
    let (what, value) = match (report.loss.is_finite(), report.gradient_norm.is_finite()) {
        (false, _) => ("the loss", report.loss),
        (true, false) => ("the gradient's norm", report.gradient_norm),
        (true, true) => ("a value that is quantised to fp8", f64::INFINITY),
    };
    Error::NotFinite { step: report.step, what, value }
}
