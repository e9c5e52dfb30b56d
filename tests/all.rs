//! All tests of the whole system, in one program: several programs would each link everything.

mod architecture;
mod ballista;
mod border;
mod cases_models;
mod cli;
mod config_bounds;
mod contract;
mod exit_codes;
mod faults;
mod gpu;
mod import;
mod includes;
mod kills;
mod kube_server;
mod kubernetes;
mod locks;
mod page;
mod plans;
mod queries;
mod quickstart;
mod repeat;
mod s3;
mod s3_files;
mod s3_server;
mod scheduling;
mod schemas;
mod seeing;
mod sharing;
#[path = "../kernels/sim/simulator.rs"]
mod simulator;
mod slurm;
mod smoke;
mod support;
mod web;
