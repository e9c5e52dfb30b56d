//! Each operation of the table as its equation: plain loops that one checks by eye, without threads, tiles or vectors.
//!
//! [`Reference`] is the specification: the tests hold every other device against it. It computes in the element type of
//! its arguments; with f64 its own rounding does not count beside that of a device in f32. It does not check shapes.

mod attention;
mod balance;
mod head;
mod optimizer;
mod products;
mod router;
mod rows;
mod sample;
mod table;

pub use table::Reference;
