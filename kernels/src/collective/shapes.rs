//! What operations of a group expect, checked the same way for every kind of group.

use super::Reduce;
use crate::dtype::DType;
use crate::tensor::{Shape, Tensor};

/// Panics unless values of this type can be reduced.
pub(super) fn expect_reducible(what: &str, dtype: DType, reduce: Reduce) {
    assert!(dtype != DType::E4m3, "{what}: E4m3 is only moved: without its scales it has no {reduce:?}");
    assert!(
        (dtype, reduce) != (DType::U32, Reduce::Mean),
        "{what}: expected F32, F64 or Bf16, found U32, which has no Mean"
    );
}

pub(super) fn expect_rank(what: &str, rank: usize, size: usize) {
    assert!(rank < size, "{what}: expected a rank below {size}, found {rank}");
}

/// `[N, …] → [W·N, …]`
pub(super) fn gathered(x: &Tensor, size: usize) -> Shape {
    let mut dims = x.shape().dims().to_vec();
    let rows = dims.first_mut().unwrap_or_else(|| panic!("all_gather: expected one dim or more, found none"));
    *rows *= size;
    dims.as_slice().into()
}

/// `[W·N, …] → [N, …]`
pub(super) fn scattered(x: &Tensor, size: usize) -> Shape {
    let mut dims = x.shape().dims().to_vec();
    match dims.first_mut() {
        Some(rows) if rows.is_multiple_of(size) => *rows /= size,
        _ => panic!("reduce_scatter: expected rows in {size} equal parts, found {:?}", x.shape()),
    }
    dims.as_slice().into()
}

/// `[R, D] → [R', D]`
pub(super) fn exchanged(rows: &Tensor, sent: &[usize], received: &[usize], [rank, size]: [usize; 2]) -> Shape {
    let [have, width] = rows.dims("all_to_all: rows");
    assert!(
        sent.len() == size && received.len() == size,
        "all_to_all: expected counts for {size} ranks, found {} to send and {} to receive",
        sent.len(),
        received.len()
    );
    let sum = sent.iter().sum::<usize>();
    assert!(sum == have, "all_to_all: expected {have} rows to be sent, found counts of {sum}");
    assert!(
        sent[rank] == received[rank],
        "all_to_all: rank {rank} sends itself {} rows and receives {}",
        sent[rank],
        received[rank]
    );
    [received.iter().sum(), width].into()
}
