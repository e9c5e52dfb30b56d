//! Copies to the host beside the operations of a GPU.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::*;
use std::process::Command;
use std::sync::Mutex;
use std::{env, thread};

/// One test at a time: the driver counts for all of them.
static ONE: Mutex<()> = Mutex::new(());

fn counted(what: &str) -> u64 {
    let (report, field) = (simulator::report(), format!("\"{what}\": "));
    let digits = report.split_once(&field).expect("the driver counts it").1.split([',', '\n']).next();
    digits.unwrap().parse().unwrap()
}

fn floats(downloads: &Downloads) -> Vec<f32> {
    let bytes = downloads.bytes().unwrap().concat();
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn what_is_held_back_changes_no_copy_and_nobody_waits() {
    let _one = ONE.lock();
    let gpu: &dyn Backend = &*simulator::gpu();
    let mut x = gpu.upload(&Tensor::new([1000], &[1.0f32; 1000]));
    gpu.scale(&mut x, 3.0, 1.0);
    let (waits, changed) = (counted("host_waits"), counted("changed_copies"));
    let downloads = gpu.download_beside(&[&x]);
    gpu.copy(&x); // whoever reads does not wait
    gpu.hold_back(&downloads.copied().expect("a GPU copies beside its operations"));
    gpu.fill(&mut x, 2.0);
    assert_eq!(counted("host_waits"), waits, "the host waits");
    assert_eq!(gpu.download(&x).read::<f32>(), [2.0; 1000]); // the write is done before anybody reads the copies
    let waits = counted("host_waits");
    assert_eq!(floats(&downloads), [3.0; 1000]);
    assert_eq!(counted("host_waits"), waits + 1, "whoever reads the copies waits for them once");
    assert_eq!(floats(&downloads), [3.0; 1000]);
    assert_eq!((counted("host_waits"), counted("changed_copies")), (waits + 1, changed));
}

#[test]
#[should_panic(expected = "tensor: written while a clone of it is alive")]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn nobody_writes_what_is_copied() {
    let gpu: &dyn Backend = &*simulator::gpu();
    let mut x = gpu.zeros([1000], DType::F32);
    let _downloads = gpu.download_beside(&[&x]);
    gpu.fill(&mut x, 2.0);
}

/// The copies outlive the device that made them, and the thread.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn copies_outlive_their_device() {
    let _one = ONE.lock();
    simulator::gpu();
    let gpu = Cuda::new(0).unwrap();
    let device: &dyn Backend = &gpu;
    let x = device.upload(&Tensor::new([500], &[4.0f32; 500]));
    let downloads = device.download_beside(&[&x]);
    drop((x, gpu));
    assert_eq!(thread::spawn(move || floats(&downloads)).join().unwrap(), [4.0; 500]);
}

/// Where the host has no page-locked memory left it waits for the copies.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn without_page_locked_memory_the_host_waits() {
    const CHILD: &str = "SMELT_SIM_LOCKED";
    if env::var_os(CHILD).is_none() {
        let test = ["--exact", "without_page_locked_memory_the_host_waits"];
        let output = Command::new(env::current_exe().unwrap()).args(test).env(CHILD, "9500000").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let gpu: &dyn Backend = &*simulator::gpu();
    let x = gpu.upload(&Tensor::new([100_000], &[5.0f32; 100_000]));
    let before = counted("host_waits");
    let downloads = gpu.download_beside(&[&x]);
    assert!(downloads.copied().is_none() && counted("host_waits") == before + 1);
    assert_eq!(floats(&downloads), [5.0; 100_000]);
}
