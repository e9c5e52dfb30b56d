//! What a stage program is: five verbs over one trait.
//!
//! A stage names its config, its ports and a `run`; this crate does the rest: it answers `describe`, `resolve`,
//! `estimate` and `doctor`, opens inputs and verifies them, writes shards with digests, keeps the books, commits
//! units, resumes the work of a process that was killed, and commits the manifest last.
//!
//! ```no_run
//! use smelt_stage::{Artifact, Context, Error, Stage, kinds::{Documents, Drops}};
//!
//! /// Keeps documents of a minimum length.
//! #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! #[serde(deny_unknown_fields, default)]
//! pub struct Config {
//!     /// Shorter documents are dropped, in code points.
//!     min_chars: usize,
//! }
//! impl Default for Config {
//!     fn default() -> Self {
//!         Self { min_chars: 10 }
//!     }
//! }
//!
//! smelt_stage::inputs! { pub struct Inputs { documents: Artifact<Documents> } }
//! smelt_stage::outputs! { pub struct Outputs { documents: Port<Documents>, drops: Port<Drops> } }
//!
//! pub struct Long;
//!
//! impl Stage for Long {
//!     const NAME: &'static str = "long";
//!     const VERSION: u32 = 1;
//!     const ABOUT: &'static str = "Keeps documents of a minimum length";
//!     type Config = Config;
//!     type Inputs = Inputs;
//!     type Outputs = Outputs;
//!
//!     fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
//!         cx.units("filter", inputs.documents.files().len(), |i, unit| {
//!             for document in inputs.documents.read(i)? {
//!                 let document = document?;
//!                 unit.count_read(1);
//!                 let chars = document.text.chars().count();
//!                 if chars < config.min_chars {
//!                     unit.drop_row(&out.drops, &document.id, "too_short", Some(chars as f64), None)?;
//!                 } else {
//!                     unit.keep(&out.documents, document)?;
//!                 }
//!             }
//!             Ok(())
//!         })?;
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     smelt_stage::main::<Long>()
//! }
//! ```

mod board;
pub mod checks;
mod config;
mod context;
mod ending;
mod error;
pub mod estimates;
pub mod files;
mod help;
mod input;
pub mod kinds;
mod lock;
mod machine;
mod mapped;
mod pages;
mod parallel;
mod port;
mod program;
mod rows;
mod saves;
mod shard;
pub mod shuffle;
pub mod sort;
mod unit;
mod work;

pub use context::{Context, Explain};
pub use error::Error;
pub use input::{Artifact, Connected, Connections, Inputs, Rows};
pub use machine::{peak_memory, total_memory};
pub use mapped::{Mapped, MappedFile};
pub use pages::{Ids, Pages};
pub use parallel::in_parallel;
pub use port::{Outputs, Port};
pub use program::{Stage, main, needs_of, run_invocation};
pub use saves::Saved;
pub use smelt_schemas::{
    Arity, Check, Cores, Device, Digest, Doctor, Estimate, ExitCode, Fault, FileRecord, InputPort, OutputPort, Source,
};
pub use smelt_store::{LocalFile, UnitRecord};
pub use unit::{PortFile, Unit};
pub use work::{Work, WorkFile, WorkPart};

/// Declares the input ports of a stage: `Artifact<K>`, `Option<Artifact<K>>` or `Vec<Artifact<K>>` each.
#[macro_export]
macro_rules! inputs {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug)]
        $vis struct $name { $($(#[$doc])* pub $field: $ty),* }
        impl $crate::Inputs for $name {
            fn specs() -> Vec<$crate::InputPort> {
                vec![$(<$ty as $crate::Connected>::spec(stringify!($field))),*]
            }
            #[allow(unused_variables, clippy::unnecessary_wraps)]
            fn connect(from: &$crate::Connections) -> Result<Self, $crate::Error> {
                Ok(Self { $($field: <$ty as $crate::Connected>::connect(stringify!($field), from)?),* })
            }
        }
    };
}

/// Declares the output ports of a stage, `Port<K>` each.
#[macro_export]
macro_rules! outputs {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident : Port<$kind:ty>),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug)]
        $vis struct $name { $($(#[$doc])* pub $field: $crate::Port<$kind>),* }
        impl $crate::Outputs for $name {
            fn specs() -> Vec<$crate::OutputPort> {
                vec![$($crate::Port::<$kind>::spec(stringify!($field))),*]
            }
            fn bind() -> Self {
                Self { $($field: $crate::Port::named(stringify!($field))),* }
            }
        }
    };
}
