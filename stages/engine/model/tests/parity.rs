//! Against transformers 5.23 and an independent PyTorch model: logits, losses, routes and every gradient.
//!
//! The reference files are found through `SMELT_PARITY`, else beside the repository (`../shared/parity/engine`); without them these
//! tests say so and pass. Tolerances: logits 1e-4 absolute and gradients 1e-4 relative per tensor, thirty times what two honest f32
//! implementations differ by; routes exactly.

use safetensors::SafeTensors;
use smelt_kernels::{Backend, Cpu, Documents};
use smelt_model::{Balance, Batch, Grads, HeadOutput, Model, OutputGradient, Params, Stats, load};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

fn folder() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/parity/engine");
    let folder = std::env::var_os("SMELT_PARITY").map_or(beside, PathBuf::from);
    let is_there = folder.join("a_groups").is_dir();
    if !is_there {
        eprintln!("skipped: no reference files in {} (set SMELT_PARITY)", folder.display());
    }
    is_there.then_some(folder)
}

struct Case {
    model: Model,
    params: Params,
    expected: Vec<u8>,
}

fn open(case: &str) -> Option<Case> {
    let folder = folder()?.join(case);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let weights = read("hf/model.safetensors");
    let (model, params) = load(&read("hf/config.json"), [("model.safetensors", weights.as_slice())]).unwrap();
    Some(Case { model, params, expected: read("expected.safetensors") })
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn integers(file: &SafeTensors, name: &str) -> Vec<i64> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{what}: off by {worst}");
    eprintln!("{what}: off by at most {worst:.1e}");
}

/// Rows of tokens `[B, S]`, each a document.
fn batch(ids: &[i64], width: usize) -> Batch {
    let rows: Vec<Vec<u32>> = ids.chunks(width).map(|row| row.iter().map(|&id| id as u32).collect()).collect();
    Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn mean_loss(out: &HeadOutput, lambda: f64) -> (Vec<f64>, OutputGradient) {
    let mean = |logp: &[f64]| -logp.iter().sum::<f64>() / logp.len() as f64;
    let d = OutputGradient {
        dlogp: vec![-1.0 / out.logp.len() as f64; out.logp.len()],
        dlse: vec![0.0; out.logp.len()],
        mtp: out.mtp.iter().map(|logp| vec![-lambda / logp.len() as f64; logp.len()]).collect(),
        ..Default::default()
    };
    let losses = std::iter::once(mean(&out.logp)).chain(out.mtp.iter().map(|logp| mean(logp))).collect();
    (losses, d)
}

fn check_gradients(params: &Params, grads: &Grads, expected: &SafeTensors) {
    let (mut count, mut largest) = (0, 0.0f64);
    for (p, spec, _) in params.iter() {
        let mut start = 0;
        for part in &spec.parts {
            let len: usize = part.shape.iter().product();
            let found = &grads.get(p).read::<f32>()[start..start + len];
            start += len;
            let name = format!("grad.{}", part.name);
            if part.name.ends_with("e_score_correction_bias") {
                continue;
            }
            let expected = floats(expected, &name);
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let size = norm(&mut expected.iter().map(|&x| x.into()));
            let off = norm(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
            assert!(off <= 1e-4 * size + 1e-12, "{name}: off by {off} of {size}");
            largest = largest.max(off / (size + 1e-12));
            count += 1;
        }
    }
    eprintln!("{count} gradients, off by at most {largest:.1e} of their norm");
}

fn forward_and_backward(case: &str) {
    let Some(Case { model, params, expected }) = open(case) else { return };
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let ids = integers(&expected, "input_ids");
    let width = expected.tensor("input_ids").unwrap().shape()[1];
    let cpu = Cpu::new(2);

    // all positions, for the logits; the last of a row predicts nothing that is in the file
    let whole = Batch {
        ids: ids.iter().map(|&id| id as u32).collect(),
        targets: vec![0; ids.len()],
        documents: Documents::of_lengths(&vec![width; ids.len() / width]),
        ..Default::default()
    };
    let stats = RefCell::new(Stats { keeps_routes: true, ..Default::default() });
    let (_, saved) = model.forward(&cpu, &params, &whole, Balance::NONE, &stats);
    let logits = model.logits(&cpu, &params, saved.hidden());
    assert_close(logits.read(), &floats(&expected, "logits"), "logits");
    for (layer, ids) in &stats.borrow().routes {
        let k = model.config().num_experts_per_tok;
        let mut found: Vec<Vec<i64>> = ids.chunks(k).map(|row| row.iter().map(|&e| e.into()).collect()).collect();
        found.iter_mut().for_each(|row| row.sort_unstable());
        assert_eq!(found.concat(), integers(&expected, &format!("router.{layer}.topk_idx")), "layer {layer}");
    }

    let batch = batch(&ids, width);
    let (out, saved) = model.forward(&cpu, &params, &batch, Balance::NONE, &RefCell::default());
    let (losses, d) = mean_loss(&out, 0.0);
    assert!((losses[0] - f64::from(floats(&expected, "loss")[0])).abs() < 2e-5, "{losses:?}");
    let mut grads = Grads::zeros(&params);
    model.backward(&cpu, &params, &batch, saved, d, &mut grads);
    check_gradients(&params, &grads, &expected);
}

#[test]
fn groups_of_experts_and_compressed_queries_are_as_in_transformers() {
    forward_and_backward("a_groups");
}

#[test]
fn yarn_is_as_in_transformers() {
    forward_and_backward("c2_yarn_v3");
}

#[test]
fn further_tokens_are_predicted_as_by_the_reference() {
    let Some(Case { model, params, expected }) = open("f_mtp") else { return };
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let tokens = integers(&expected, "tokens");
    let batch = batch(&tokens, expected.tensor("tokens").unwrap().shape()[1]);
    let cpu = Cpu::new(2);
    let stats = RefCell::new(Stats { keeps_routes: true, ..Default::default() });
    let (out, saved) = model.forward(&cpu, &params, &batch, Balance::NONE, &stats);
    let (losses, d) = mean_loss(&out, 0.3);
    let wanted = floats(&expected, "embed_first.post_norm.losses");
    for (found, expected) in losses.iter().zip(&wanted) {
        assert!((found - f64::from(*expected)).abs() < 2e-5, "{losses:?} {wanted:?}");
    }
    assert_close(model.logits(&cpu, &params, saved.hidden()).read(), &floats(&expected, "main_logits"), "main logits");
    let further = model.logits(&cpu, &params, saved.mtp_hidden(1));
    assert_close(further.read(), &floats(&expected, "embed_first.post_norm.mtp_logits"), "further logits");
    let mut grads = Grads::zeros(&params);
    model.backward(&cpu, &params, &batch, saved, d, &mut grads);
    check_gradients(&params, &grads, &expected);
    assert!(cpu.square_sum(grads.get(params.handles().next().unwrap())) > 0.0);
}
