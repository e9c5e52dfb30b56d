//! Training: data order, packing, schedules, optimizer, objectives, and the trainer that puts them together.
//!
//! Everything random is a function of (seed, step), so a checkpoint stores one integer: 20 steps give the same bits as
//! 10 steps, a save, a load and 10 more. No store and no files here: bytes and tokens in, bytes and figures out.

mod batch;
mod best_fit;
mod error;
mod evaluate;
mod fim;
mod guard;
mod memory;
mod objective;
mod optimizer;
mod order;
mod packing;
mod recent;
mod record;
mod reward;
mod schedule;
mod state;
mod totals;
mod trainer;

pub use batch::{Example, masked_batch, micro_batches};
pub use error::Error;
pub use evaluate::mean_loss;
pub use fim::FillInMiddle;
pub use guard::SpikeGuard;
pub use memory::Memory;
pub use objective::{Grpo, Loss, Masked, NextToken, Objective, Value, group_advantages};
pub use optimizer::{Hyper, Moments, Optimizer};
pub use order::{Batches, Mixture, Ramp, sample};
pub use packing::{Packed, Packing, Ragged};
pub use recent::Recent;
pub use reward::{BradleyTerry, Scored, reward_scores, scored_batch};
pub use schedule::{Decay, Schedule, Tail};
pub use state::Save;
pub use totals::StepTotals;
pub use trainer::{MicroBatch, Report, Settings, Trainer, Uploader};
