//! Dense products in bf16 by cuBLASLt are those of smelt's own kernels, but for the order of their sums.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::*;

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product::<usize>()).map(|i| random::normal(seed, 0, i as u64) as f32).collect();
    Tensor::new(shape, &values)
}

/// Of a linear layer `[out, inner]` over n rows: what it gives, its input's gradient, and its weight's, each added to
/// what was there when `write` says so.
fn products(device: &dyn Backend, [n, out, inner]: [usize; 3], write: Write) -> [Tensor; 3] {
    let [x, w, dy] =
        [(1, [n, inner]), (2, [out, inner]), (3, [n, out])].map(|(seed, shape)| device.upload(&noise(seed, &shape)));
    let mut flag = device.zeros([1], DType::U32);
    let [low_x, low_dy] = [&x, &dy].map(|x| device.lower(x, None, None, &mut flag));
    let mut results = [[n, out], [n, inner], [out, inner]].map(|shape| device.upload(&noise(4, &shape)));
    let [y, dx, dw] = &mut results;
    device.low_gemm(Layout::Nt, &low_x, &w, None, y, write);
    device.low_gemm(Layout::Nn, &low_dy, &w, None, dx, write);
    device.low_gradient(&low_dy, &low_x, None, dw, write);
    results.map(|x| device.download(&x))
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn products_are_those_of_our_own_kernels() {
    let (theirs, own) = (simulator::gpu_with_cublaslt(), simulator::gpu());
    for sizes in [[1, 64, 64], [70, 130, 72], [33, 9, 200], [128, 128, 128]] {
        for write in [Write::Set, Write::Add] {
            let (found, expected) = (products(&theirs, sizes, write), products(own.as_ref(), sizes, write));
            for ((found, expected), what) in found.iter().zip(&expected).zip(["y", "dx", "dw"]) {
                let (found, expected) = (found.read::<f32>(), expected.read::<f32>());
                let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    let apart = (found - expected).abs();
                    assert!(apart <= 1e-5 * largest, "{what} of {sizes:?}, {write:?}: {found}, expected {expected}");
                }
            }
        }
    }
}

/// Without rows there is nothing to multiply: a gradient is zero, or what it was.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_batch_without_rows_has_no_gradient() {
    let theirs = simulator::gpu_with_cublaslt();
    let [_, _, dw] = products(&theirs, [0, 64, 64], Write::Set);
    assert!(dw.read::<f32>().iter().all(|&x| x == 0.0));
    let [_, _, dw] = products(&theirs, [0, 64, 64], Write::Add);
    assert_eq!(dw.read::<f32>(), noise(4, &[64, 64]).read::<f32>());
}

/// The library's sums depend on the rows beside a row: what a config that asks for it gives up.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn its_sums_depend_on_the_company() {
    let theirs = simulator::gpu_with_cublaslt();
    let first_row = |device: &dyn Backend, n| {
        let [y, _, _] = products(device, [n, 64, 512], Write::Set);
        y.read::<f32>()[..64].to_vec()
    };
    assert!(first_row(&theirs, 1) != first_row(&theirs, 2));
    let own = simulator::gpu();
    assert_eq!(first_row(own.as_ref(), 1), first_row(own.as_ref(), 2));
}
