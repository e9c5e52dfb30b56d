//! Checks of what moves between host and device.

use super::trial::Trial;
use smelt_kernels::*;

pub(crate) fn upload(d: &mut Trial) {
    let x = Tensor::new([3], &[1.0f32, -0.0, 1e30]);
    d.same_tensor("x", &d.device.upload(&x));
}

pub(crate) fn download(d: &mut Trial) {
    let x = d.tensor(&[50]);
    let values = d.device.download(&x).to_f64();
    d.same("x", values.into_iter().map(f64::to_bits));
}

pub(crate) fn download_beside(d: &mut Trial) {
    let (x, y, none) = (d.tensor(&[50]), d.tensor(&[3, 7]), d.tensor(&[0]));
    let downloads = d.device.download_beside(&[&x, &none, &y]);
    let bytes = downloads.bytes().unwrap();
    d.same("bytes", bytes.concat().into_iter().map(u64::from));
    d.same("of each", bytes.iter().map(|bytes| bytes.len() as u64));
}

/// What is written behind the copies is not in them.
pub(crate) fn hold_back(d: &mut Trial) {
    let mut x = d.tensor(&[50]);
    let downloads = d.device.download_beside(&[&x]);
    match downloads.copied() {
        Some(copied) => d.device.hold_back(&copied),
        None => {
            d.device.hold_back(&Copied::default());
            x = d.device.copy(&x);
        }
    }
    d.device.fill(&mut x, 2.0);
    let bytes = downloads.bytes().unwrap().concat();
    d.same("bytes", bytes.into_iter().map(u64::from));
    d.same_tensor("x", &x);
}

pub(crate) fn copy(d: &mut Trial) {
    let x = d.tensor(&[50]);
    let mut y = d.device.copy(&x);
    d.device.fill(&mut y, 2.0);
    d.same_tensor("x", &x);
}
