//! The training loop of every stage that trains: resume, steps, curves, progress, evaluation while training, saves.
//!
//! A stage says what one step is ([`Training::step`]) and what its metrics are; everything else is the same for
//! `pretrain`, `sft`, `reward` and `align`. The number of steps made is the trainer's alone, so a save holds one
//! integer, and what a stage remembers besides ([`Training::memory`]) lies in the same save.

mod ahead;
mod at_once;

pub use ahead::Ahead;
pub use at_once::{Step, TokensAtOnce};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smelt_checkpoint::fault;
use smelt_stage::{Context, Error};
use smelt_train::Trainer;

/// What one step did, for curves and for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Points of curves, by name.
    pub values: Vec<(String, f64)>,
    /// Beside the count of steps: `loss 2.913`.
    pub note: String,
}

impl Figures {
    pub fn new(values: &[(&str, f64)], note: String) -> Self {
        Self { values: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect(), note }
    }
}

/// A training as its stage sees it.
pub trait Training {
    /// Makes step `trainer.steps() + 1`, by exactly one call of [`Trainer::step`] or [`Trainer::skip`]. An error ends
    /// the job.
    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error>;

    /// Evaluation while training, on what is held out: points of curves; none where nothing is held out.
    fn evaluate(&self, _trainer: &Trainer) -> Result<Vec<(&'static str, f64)>, Error> {
        Ok(Vec::new())
    }

    /// Tokens that it computes at once, when this process chose them by the memory of its device: a save holds them, so
    /// that a process elsewhere cuts the steps as this one did.
    fn tokens_at_once(&mut self) -> Option<&mut usize> {
        None
    }

    /// What a save holds beside the trainer's state; null for nothing.
    fn memory(&self) -> Value {
        Value::Null
    }

    /// Takes up what an earlier process saved by [`memory`](Self::memory).
    fn remember(&mut self, _memory: Value) -> Result<(), Error> {
        Ok(())
    }
}

/// How long a training is, and how often it is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    pub steps: u64,
    /// Steps between two evaluations; 0 evaluates after the last step alone.
    pub evaluate_every: u64,
}

/// The memory of a training that chose its tokens at once.
#[derive(Serialize, Deserialize)]
struct Chosen {
    tokens_at_once: usize,
    memory: Value,
}

/// Trains to the end of the course, from where the newest save of an earlier process stands.
pub fn run(cx: &Context, course: Course, trainer: &mut Trainer, training: &mut impl Training) -> Result<(), Error> {
    let Course { steps, evaluate_every } = course;
    if let Some((_, memory, state)) = cx.saved_training()? {
        trainer.restore(&state).map_err(fault)?;
        match training.tokens_at_once() {
            None => training.remember(memory)?,
            Some(tokens) => {
                let saved: Chosen = serde_json::from_value(memory)
                    .map_err(|e| Error::bug(format!("what a save says of its training cannot be read: {e}")))?;
                *tokens = saved.tokens_at_once;
                training.remember(saved.memory)?;
            }
        }
    }
    while trainer.steps() < steps {
        let before = trainer.steps();
        let Figures { values, note } = training.step(trainer)?;
        let done = trainer.steps();
        if done != before + 1 {
            return Err(Error::bug(format!("step {} of the training made {} steps", before + 1, done - before)));
        }
        let values: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        cx.metrics(done, &values);
        cx.progress("train", done, Some(steps), "steps", &note);
        if done == steps || (evaluate_every > 0 && done.is_multiple_of(evaluate_every)) {
            let values = training.evaluate(trainer)?;
            if !values.is_empty() {
                cx.metrics(done, &values);
            }
        }
        // the end is committed, not saved
        if done < steps {
            let memory = training.memory();
            let memory = match training.tokens_at_once() {
                None => memory,
                Some(&mut tokens_at_once) => json!(Chosen { tokens_at_once, memory }),
            };
            cx.save_when_due(done, memory, || {
                let save = trainer.save_beside();
                move |out| save.write(out)
            })?;
        }
    }
    Ok(())
}
