//! All tests of the whole system, in one program: several programs would each link everything.

mod architecture;
mod cli;
mod contract;
mod exit_codes;
mod import;
mod queries;
mod quickstart;
mod s3;
mod schemas;
mod smoke;
mod support;
