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

use smelt_kernels::fp8::{Operand, Quantiser, Role, Scaled, Tile};
use smelt_kernels::*;
use std::env;
use std::process::Command;
use std::sync::Arc;

const ROUNDINGS: f64 = 64.0;
const DRAWS: u64 = 12;

/// Where the values of one draw come from, and what an operation made of them.
struct Trial<'a> {
    device: &'a dyn Backend,
    dtype: DType,
    seed: u64,
    drawn: u64,
    exact: Vec<(String, Vec<u64>)>,
    near: Vec<(String, Vec<f64>, f64)>,
}

impl<'a> Trial<'a> {
    fn run(device: &'a dyn Backend, dtype: DType, seed: u64, check: fn(&mut Trial)) -> Self {
        let mut draw = Trial { device, dtype, seed, drawn: 0, exact: Vec::new(), near: Vec::new() };
        check(&mut draw);
        draw
    }

    fn next(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    /// One of 1..=n.
    fn up_to(&mut self, n: usize) -> usize {
        let index = self.next();
        1 + random::below(self.seed, 0, index, n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.up_to(from.len()) - 1]
    }

    /// Standard normal; the same values in every element type.
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let stream = self.next();
        let values: Vec<f32> =
            (0..shape.iter().product::<usize>()).map(|i| random::normal(self.seed, stream, i as u64) as f32).collect();
        self.device.upload(&Tensor::new(shape, &values).cast(self.dtype))
    }

    /// In F32, whatever the element type of the trial.
    fn tensor_f32(&mut self, shape: &[usize]) -> Tensor {
        let x = self.tensor(shape);
        self.device.cast(&x, DType::F32)
    }

    /// The same on the host, changed, and back on the device.
    fn changed<T: Element>(&self, x: Tensor, change: impl Fn(&mut [T])) -> Tensor {
        let mut x = self.device.download(&x).copy();
        change(x.write());
        self.device.upload(&x)
    }

    fn values(&self, x: &Tensor) -> Vec<f64> {
        self.device.download(x).to_f64()
    }

    fn ids(&mut self, count: usize, below: usize) -> Tensor {
        let ids: Vec<u32> = (0..count).map(|_| self.up_to(below) as u32 - 1).collect();
        self.device.ids(&ids)
    }

    /// F64, whatever the element type of the trial.
    fn numbers(&mut self, count: usize) -> Tensor {
        {
            let x = self.tensor(&[count]);
            self.device.cast(&x, DType::F64)
        }
    }

    /// A value that an operation may set.
    fn flag(&self) -> Tensor {
        self.device.zeros([1], DType::U32)
    }

    /// Up to four documents; now and then one so long that attention does not keep its exponentials.
    fn documents(&mut self) -> Documents {
        let longest = self.pick(&[60, 60, 60, 700]);
        let count = if longest == 700 { 1 } else { self.up_to(4) };
        let lengths: Vec<usize> = (0..count).map(|_| self.up_to(longest)).collect();
        Documents::new(self.device, DocumentBounds::of_lengths(&lengths))
    }

    /// Up to five segments, some of them empty, on the host.
    fn segments(&mut self, longest: usize) -> Segments {
        let counts: Vec<usize> = (0..self.up_to(5)).map(|_| self.up_to(longest) - 1).collect();
        Segments::of_counts(&counts)
    }

    fn same(&mut self, what: &str, values: impl IntoIterator<Item = u64>) {
        self.exact.push((what.into(), values.into_iter().collect()));
    }

    fn same_tensor(&mut self, what: &str, x: &Tensor) {
        let values = self.values(x);
        self.same(what, values.into_iter().map(f64::to_bits));
    }

    fn near(&mut self, what: &str, x: &Tensor) {
        self.near_to(what, x, ROUNDINGS);
    }

    fn near_to(&mut self, what: &str, x: &Tensor, roundings: f64) {
        self.near.push((what.into(), self.values(x), roundings));
    }

    /// f32 products have one order of summation; those of f64, for gradient checks, have not.
    fn product(&mut self, what: &str, x: &Tensor) {
        if self.dtype == DType::F32 {
            self.same_tensor(what, x);
        }
        self.near(what, x);
    }

    fn expect_exact(&self, expected: &Trial, what: &str) {
        for ((name, found), (_, expected)) in self.exact.iter().zip(&expected.exact) {
            assert_eq!(found.len(), expected.len(), "{what}: {name}");
            let differing = found.iter().zip(expected).position(|(a, b)| a != b);
            assert!(differing.is_none(), "{what}: {name} differs first at {}", differing.unwrap_or(0));
        }
    }

    fn expect_near(&self, expected: &Trial, unit: f64, what: &str) {
        for ((name, found, roundings), (_, expected, _)) in self.near.iter().zip(&expected.near) {
            assert_eq!(found.len(), expected.len(), "{what}: {name}");
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let size = norm(&mut expected.iter().copied());
            let allowed = roundings * unit * size;
            assert!(off <= allowed, "{what}: {name} is off by {:.1} roundings of its norm", off / (unit * size));
        }
    }
}

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
    let gpu = simulator::gpu();
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

checks! {
    empty: In::F32AndF64;
    upload: In::F32AndF64;
    download: In::F32AndF64;
    copy: In::F32AndF64;
    cast: In::F32AndF64;
    collect: In::F32AndF64;
    gemm: In::F32AndF64;
    grouped_gemm: In::F32AndF64;
    grouped_gradient: In::F32AndF64;
    prepare: In::F32AndF64;
    lower: In::F32;
    lower_both: In::F32;
    low_gemm: In::F32;
    low_gradient: In::F32;
    rms_norm: In::F32AndF64;
    rms_norm_backward: In::F32AndF64;
    add_rms_norm: In::F32AndF64;
    rms_norm_backward_add: In::F32AndF64;
    swiglu: In::F32AndF64;
    swiglu_backward: In::F32AndF64;
    swiglu_lower: In::F32;
    swiglu_backward_lower: In::F32;
    rope: In::F32AndF64;
    bias: In::F32AndF64;
    bias_backward: In::F32AndF64;
    scale: In::F32AndF64;
    fill: In::F32AndF64;
    add: In::F32AndF64;
    split: In::F32AndF64;
    join: In::F32AndF64;
    attention: In::F32AndF64;
    attention_backward: In::F32AndF64;
    append: In::F32;
    latent_attention: In::F32;
    grouped_attention: In::F32AndF64;
    grouped_attention_backward: In::F32AndF64;
    cached_attention: In::F32;
    embedding: In::F32AndF64;
    embedding_backward: In::F32AndF64;
    head: In::F32AndF64;
    head_backward: In::F32AndF64;
    draw: In::F32;
    route: In::F32AndF64;
    route_backward: In::F32AndF64;
    balance: In::F32AndF64;
    count: In::F32AndF64;
    balance_bias: In::F32AndF64;
    gather: In::F32AndF64;
    gather_backward: In::F32AndF64;
    combine: In::F32AndF64;
    combine_backward: In::F32AndF64;
    square_sum: In::F32AndF64;
    total: In::F32AndF64;
    clip: In::F32AndF64;
    average: In::F32AndF64;
    adamw: In::F32AndF64;
}

#[test]
fn adamw_with_moments_in_bf16() {
    run("adamw", In::F32, checks::adamw_in_bf16);
}
