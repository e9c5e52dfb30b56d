//! What only the whole can show. The tests lie beside this file, in one program (`all.rs`); the crate's programs are
//! small stages that the tests drive. Crates that only tests use stand under `[dependencies]`, so that a build and a
//! test of the workspace select the same features and share every compiled dependency.
