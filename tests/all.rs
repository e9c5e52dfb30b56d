//! All tests of the whole system, in one program: several programs would each link everything.

mod architecture;
mod border;
mod cases_models;
mod cli;
mod config_bounds;
mod contract;
mod exit_codes;
mod gpu;
mod import;
mod page;
mod queries;
mod quickstart;
mod s3;
mod schemas;
mod seeing;
#[path = "../kernels/sim/simulator.rs"]
mod simulator;
mod smoke;
mod support;
mod web;
