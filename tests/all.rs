//! Every test of the whole, in one program: for each of several, everything would be linked again.

#![warn(unreachable_pub, missing_debug_implementations)]

mod architecture;
mod cli;
mod contract;
mod exit_codes;
mod import;
mod quickstart;
mod s3;
mod schemas;
mod smoke;
mod support;
