//! Batches of launches that come again are graphs, and give what launches one by one give.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::*;
use std::sync::Mutex;

/// One test at a time: the driver counts for all of them.
static ONE: Mutex<()> = Mutex::new(());

fn count(what: &str) -> u64 {
    let report = simulator::report();
    let (_, rest) = report.split_once(&format!("\"{what}\": ")).expect("the driver counts it");
    rest.split([',', '\n']).next().and_then(|number| number.parse().ok()).expect("a number")
}

fn numbers(seed: u64, n: usize) -> Tensor {
    Tensor::new([n], &(0..n).map(|i| random::normal(seed, 0, i as u64) as f32).collect::<Vec<_>>())
}

/// Twelve launches: sums and products that are exact on any device, with uploads between them.
fn step(device: &dyn Backend, seed: u64, n: usize, factor: f64) -> Vec<f32> {
    let mut x = device.upload(&numbers(seed, n));
    for i in 0..6 {
        // uploaded beside, used, and given back at once: the next round's upload takes its memory
        let more = device.upload(&numbers(seed + 100 + i, n));
        device.add(&mut x, &more);
        device.scale(&mut x, factor, 1.0);
    }
    device.download(&x).read::<f32>().to_vec()
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_batch_that_comes_again_is_a_graph_with_its_own_arguments() {
    let _one = ONE.lock();
    let (gpu, cpu) = (simulator::gpu(), Cpu::new(1));
    let before = count("graph_launches");
    // the first batch is launched one by one; then other values, other sizes (and grids), another factor
    for (at, (seed, n, factor)) in
        [(1, 1000, 0.5), (2, 1000, 0.5), (3, 1000, 0.25), (4, 70_000, 2.0), (5, 3, 0.5)].into_iter().enumerate()
    {
        let launches = count("launches");
        assert_eq!(step(gpu.as_ref(), seed, n, factor), step(&cpu, seed, n, factor), "{seed}, {n}, {factor}");
        assert_eq!(count("graph_launches") - before, at as u64);
        assert_eq!(count("launches") - launches, 12);
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_short_batch_and_one_of_other_kernels_are_no_graph() {
    let _one = ONE.lock();
    let (gpu, before) = (simulator::gpu(), count("graph_launches"));
    for round in 0..3 {
        let mut x = gpu.upload(&numbers(1, 100));
        for _ in 0..7 {
            gpu.scale(&mut x, 1.5, 1.0);
        }
        gpu.wait();
        for at in 0..20 {
            match at == round {
                true => gpu.fill(&mut x, 1.0),
                false => gpu.scale(&mut x, 1.5, 1.0),
            }
        }
        gpu.wait();
    }
    assert_eq!(count("graph_launches"), before);
}

/// The device begins before the host has asked for everything.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_batch_is_handed_to_the_driver_when_it_is_long() {
    let _one = ONE.lock();
    let (gpu, before) = (simulator::gpu(), count("launches"));
    let mut x = gpu.upload(&numbers(1, 100));
    for _ in 0..300 {
        gpu.scale(&mut x, -1.0, 1.0);
    }
    assert_eq!(count("launches") - before, 256);
    assert_eq!(gpu.download(&x).read::<f32>(), numbers(1, 100).read::<f32>());
    assert_eq!(count("launches") - before, 300);
}

/// What an upload lies in is written again while the device still computes: behind what used it last, which the driver
/// checks.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn memory_of_an_upload_is_taken_again_without_a_wait() {
    let _one = ONE.lock();
    let (gpu, cpu) = (simulator::gpu(), Cpu::new(1));
    let run = |device: &dyn Backend| {
        let mut x = device.upload(&numbers(1, 600));
        for i in 0..600 {
            device.add(&mut x, &device.upload(&numbers(2 + i, 600)));
        }
        device.download(&x).read::<f32>().to_vec()
    };
    gpu.take_peak();
    let waits = count("host_waits");
    let found = run(gpu.as_ref());
    assert_eq!(count("host_waits") - waits, 1);
    // of 256 uploads between two times that launches are handed over, and a few
    let peak = gpu.take_peak();
    assert!(peak < 300 * 2560, "{peak} bytes at once");
    assert_eq!(found, run(&cpu));
}
