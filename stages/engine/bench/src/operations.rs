//! Every operation of the table on a GPU against the reference, over drawn shapes and values: ragged, empty segments,
//! outputs that hold NaN before they are written. The draws are those of the kernels' tests.

#[path = "../../../../kernels/tests/reference/checks.rs"]
mod checks;
#[path = "../../../../kernels/tests/reference/transfers.rs"]
mod transfers;
#[path = "../../../../kernels/tests/reference/trial.rs"]
#[allow(dead_code, reason = "tests compare in more ways")]
mod trial;

use crate::gpu::{Row, in_full_precision, is_small};
use serde_json::json;
use smelt_kernels::fp8::{Operand, Quantiser, Role, Scaled, Tile};
use smelt_kernels::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use trial::{ROUNDINGS, Trial, all_checks};

const DRAWS: u64 = 8;

/// The number of the first operation: a kernel that fails ends its process, and another one goes on behind it.
pub(crate) static FIRST: AtomicUsize = AtomicUsize::new(0);

type Check = (&'static str, fn(&mut Trial));

macro_rules! list {
    ($($name:ident: $types:expr;)*) => {
        const CHECKS: &[Check] = &[$((stringify!($name), checks::$name)),*, ("adamw in bf16", checks::adamw_in_bf16)];
    };
}
all_checks!(list);

pub(crate) fn right() -> Vec<Row> {
    // the precision in which a training in f32 computes: that of the reference
    let gpu = in_full_precision().poisoned();
    let first = FIRST.load(Ordering::Relaxed);
    let mut rows = Vec::new();
    for (at, (name, check)) in CHECKS.iter().enumerate().skip(first) {
        let compared = catch_unwind(AssertUnwindSafe(|| {
            for seed in 0..if is_small() { 1 } else { DRAWS } {
                let what = format!("{name}, draw {seed}");
                let found = Trial::run(&gpu, DType::F32, seed, *check);
                let expected = Trial::run(&Reference, DType::F32, seed, *check);
                found.expect_exact(&expected, &what);
                found.expect_near(&expected, 2f64.powi(-24), &what);
            }
        }));
        let Err(payload) = compared else {
            rows.push(Row::check(*name, 0.0, 0.0));
            continue;
        };
        let text = |said: &str| Row::wrong(*name, json!({ "why": said }));
        if let Some(error) = DeviceError::of_panic(payload.as_ref()) {
            rows.push(text(&error.to_string()));
            rows.extend(rest(at + 1));
            break;
        }
        let said = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        rows.push(text(said.unwrap_or("it panicked")));
    }
    rows
}

/// The operations from number `first` on, in another process.
fn rest(first: usize) -> Vec<Row> {
    if first == CHECKS.len() {
        return Vec::new();
    }
    let program = std::env::current_exe().expect("this program has a path");
    let from = first.to_string();
    let said = Command::new(program)
        .args(["--gpu-part", "operations_right", "--gpu-from", &from])
        .args(is_small().then_some("--small"))
        .output();
    let failed =
        |why: String| vec![Row::wrong(format!("{} and those behind it", CHECKS[first].0), json!({ "why": why }))];
    match said {
        Err(error) => failed(error.to_string()),
        Ok(said) => {
            let text = String::from_utf8_lossy(&said.stdout);
            serde_json::from_str(text.lines().last().unwrap_or_default())
                .unwrap_or_else(|_| failed(String::from_utf8_lossy(&said.stderr).trim().into()))
        }
    }
}
