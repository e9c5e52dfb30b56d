//! Every operation of the CPU against the reference, over drawn shapes and values.
//!
//! A draw runs three times: on the CPU in f32, on the CPU in f64 and on the reference. What must be exact (routing,
//! gather, embedding, quantisation, and f32 products, whose order of summation is promised) is compared to the bit with
//! the reference in the same element type. Everything else is compared with the reference in f64: the norm of the
//! difference may be [`ROUNDINGS`] units of rounding of the norm of the result. A chain of K operations errs by about
//! √K such units (Higham 2002, §3.1) and sums here have up to 700 terms.

mod checks;
#[path = "../../sim/simulator.rs"]
mod simulator;
mod transfers;
mod trial;

use smelt_kernels::fp8::{Operand, Quantiser, Role, Scaled, Tile};
use smelt_kernels::*;
use std::env;
use std::process::Command;
use std::sync::Arc;
use trial::{ROUNDINGS, Trial, all_checks};

const DRAWS: u64 = 12;

/// In which element types an operation exists on the CPU.
#[derive(PartialEq)]
enum In {
    F32,
    F32AndF64,
}

fn run(operation: &str, types: In, check: fn(&mut Trial)) {
    for seed in 0..DRAWS {
        let cpu = Trace::new(Arc::new(Cpu::new(1 + seed as usize % 3)));
        let what = format!("{operation}, draw {seed}");
        let found = Trial::run(&cpu, DType::F32, seed, check);
        let expected = Trial::run(&Reference, DType::F32, seed, check);
        assert!(found.exact.len() + found.near.len() > 0, "{what}: nothing is compared");
        found.expect_exact(&expected, &what);
        let unit = 2f64.powi(-24);
        if types == In::F32 {
            found.expect_near(&expected, unit, &what);
        } else {
            let expected = Trial::run(&Reference, DType::F64, seed, check);
            found.expect_near(&expected, unit, &what);
            let found = Trial::run(&cpu, DType::F64, seed, check);
            found.expect_exact(&expected, &format!("{what}, f64"));
            found.expect_near(&expected, 2f64.powi(-53), &format!("{what}, f64"));
        }
        assert!(cpu.take().iter().any(|(name, _)| *name == operation), "{what}: it was not called");
    }
}

/// Draws on the simulated GPU.
fn run_on_gpu(operation: &str, check: fn(&mut Trial)) {
    simulator::gpu();
    let gpu = Arc::new(Cuda::new(0).expect("the simulated GPU opens").poisoned());
    for seed in 0..DRAWS {
        let trace = Trace::new(gpu.clone());
        let what = format!("{operation} on {}, draw {seed}", gpu.found());
        let found = Trial::run(&trace, DType::F32, seed, check);
        let expected = Trial::run(&Reference, DType::F32, seed, check);
        found.expect_exact(&expected, &what);
        found.expect_near(&expected, 2f64.powi(-24), &what);
        assert!(trace.take().iter().any(|(name, _)| *name == operation), "{what}: it was not called");
    }
}

/// Other GPUs than Hopper use kernels without its tensor cores.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn operations_on_an_older_gpu() {
    let output = Command::new(env::current_exe().unwrap())
        .args(["gpu::", "--test-threads=1"])
        .env("SMELT_SIM_CAPABILITY", "80")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A test for each operation, and one that every operation of the table has its test.
macro_rules! checks {
    ($($name:ident: $types:expr;)*) => {
        $(#[test] fn $name() { run(stringify!($name), $types, checks::$name) })*

        /// The same on a GPU.
        mod gpu {
            use super::*;
            $(
                #[test]
                #[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
                fn $name() {
                    run_on_gpu(stringify!($name), checks::$name)
                }
            )*

            #[test]
            fn adamw_with_moments_in_bf16() {
                run_on_gpu("adamw", checks::adamw_in_bf16);
            }
        }

        #[test]
        fn every_operation_of_the_table_is_checked() {
            let (mut checked, mut table) = (vec![$(stringify!($name)),*], OPERATIONS.to_vec());
            checked.sort_unstable();
            table.sort_unstable();
            assert_eq!(checked, table);
        }
    };
}

all_checks!(checks);

#[test]
fn adamw_with_moments_in_bf16() {
    run("adamw", In::F32, checks::adamw_in_bf16);
}
