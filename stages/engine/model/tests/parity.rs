//! Against transformers 5.23 and an independent PyTorch model: logits, losses, routes, every gradient, and generation.
//!
//! A case is a folder with `hf/` and `expected.safetensors`. Those of `tests/parity/engine` are always read, and every
//! one in or below the folder that `SMELT_PARITY` names, else `../shared/parity/engine` beside the repository; where
//! that is not there, these tests say so. Tolerances: logits 1e-4 absolute and gradients 1e-4 relative per tensor,
//! thirty times what two honest f32 implementations differ by; loss 2e-5; routes exactly.

#[path = "../../../../tests/parity/say.rs"]
mod say;

use safetensors::SafeTensors;
use say::say;
use smelt_kernels::{Backend, Cpu, DType, DocumentBounds, Tensor};
use smelt_model::{Balance, Batch, CacheRows, Grads, HeadOutput, Model, OutputGradient, Params, Stats, load};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The cases in and below `folder`.
fn collect(folder: &Path, cases: &mut Vec<PathBuf>) {
    if folder.join("hf/config.json").is_file() && folder.join("expected.safetensors").is_file() {
        return cases.push(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut below: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    below.sort();
    below.iter().for_each(|folder| collect(folder, cases));
}

fn cases() -> Vec<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let (mut cases, beside) = (Vec::new(), repository.join("../shared/parity/engine"));
    collect(&repository.join("tests/parity/engine"), &mut cases);
    assert!(!cases.is_empty(), "the repository has cases of its own");
    match std::env::var_os("SMELT_PARITY").map(PathBuf::from) {
        Some(folder) => collect(&folder, &mut cases), // it must be there
        None if beside.is_dir() => collect(&beside, &mut cases),
        None => say(&format!("only the repository's own cases: no {} (set SMELT_PARITY)", beside.display())),
    }
    cases
}

struct Case {
    name: String,
    model: Model,
    params: Params,
    expected: Vec<u8>,
}

/// The cases whose expected values include `key`.
fn cases_with(key: &str) -> impl Iterator<Item = Case> {
    cases().into_iter().filter_map(move |folder| {
        let expected = std::fs::read(folder.join("expected.safetensors")).unwrap();
        SafeTensors::deserialize(&expected).unwrap().tensor(key).ok()?;
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let files = std::fs::read_dir(folder.join("hf")).unwrap().map(|file| file.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
        let files: Vec<Vec<u8>> = files.map(|path| std::fs::read(path).unwrap()).collect();
        let config = std::fs::read(folder.join("hf/config.json")).unwrap();
        let files = files.iter().map(|bytes| ("model.safetensors", bytes.as_slice()));
        let (model, params) = load(&config, files).unwrap_or_else(|e| panic!("{name}: {e}"));
        Some(Case { name, model, params, expected })
    })
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn integers(file: &SafeTensors, name: &str) -> Vec<i64> {
    let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    tensor.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

/// The ids `[B, S]` of `name`, by row.
fn rows(file: &SafeTensors, name: &str) -> Vec<Vec<u32>> {
    let width = file.tensor(name).unwrap().shape()[1];
    integers(file, name).chunks(width).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
}

/// Largest absolute difference.
fn deviation(found: &[f32], expected: &[f32], what: &str) -> f32 {
    assert_eq!(found.len(), expected.len(), "{what}");
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

fn batch(rows: &[Vec<u32>]) -> Batch {
    Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn mean_loss(out: &HeadOutput, lambda: f64) -> (Vec<f64>, OutputGradient) {
    let mean = |logp: &Tensor| -logp.to_f64().iter().sum::<f64>() / logp.len() as f64;
    let all = |logp: &Tensor, value: f64| Tensor::new(logp.shape(), &vec![value / logp.len() as f64; logp.len()]);
    let d = OutputGradient {
        dlogp: all(&out.logp, -1.0),
        dlse: all(&out.logp, 0.0),
        mtp: out.mtp.iter().map(|logp| all(logp, -lambda)).collect(),
        dscores: None,
        dlikelihood: None,
    };
    let losses = std::iter::once(&out.logp).chain(&out.mtp).map(mean).collect();
    (losses, d)
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// Every gradient of the file against ours: how many, and the largest difference in a tensor's norm.
fn check_gradients(case: &str, params: &Params, grads: &Grads, expected: &SafeTensors) -> (usize, f64) {
    let mut found = BTreeMap::new();
    for (p, spec, _) in params.iter() {
        let mut start = 0;
        for part in &spec.parts {
            let len: usize = part.shape.iter().product();
            if !part.name.ends_with("e_score_correction_bias") {
                found.insert(format!("grad.{}", part.name), &grads.get(p).read::<f32>()[start..start + len]);
            }
            start += len;
        }
    }
    let names =
        expected.tensors().into_iter().filter(|(name, view)| name.starts_with("grad.") && !view.data().is_empty());
    let names: BTreeSet<String> = names.map(|(name, _)| name).collect();
    assert_eq!(names, found.keys().cloned().collect(), "{case}: gradients");
    let expected: BTreeMap<&str, Vec<f32>> = names.iter().map(|name| (name.as_str(), floats(expected, name))).collect();
    let size_of = |x: &[f32]| norm(x.iter().map(|&x| x.into()));
    let whole = norm(expected.values().map(|x| size_of(x)));
    let mut largest = 0.0f64;
    for (name, found) in &found {
        let expected = &expected[name.as_str()];
        let size = size_of(expected);
        let off = norm(found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
        if size < 1e-7 * whole {
            // zero but for rounding, as of a router that gives its one choice the weight 1: then ours is, too
            assert!(size_of(found) < 1e-7 * whole, "{case}: {name} is {} of {whole}, expected 0", size_of(found));
            continue;
        }
        assert!(off <= 1e-4 * size, "{case}: {name} is off by {off} of {size}");
        largest = largest.max(off / size);
    }
    (found.len(), largest)
}

/// The choices of all layers that have routes in the file: as sets, for their order is unspecified.
fn check_routes(case: &str, stats: &Stats, expected: &SafeTensors, name_of: impl Fn(usize) -> String) -> usize {
    for (&layer, ids) in &stats.routes {
        let name = name_of(layer);
        let k = expected.tensor(&name).unwrap_or_else(|e| panic!("{case}: {name}: {e}")).shape()[1];
        let sets = |ids: &[i64]| {
            let mut sets: Vec<Vec<i64>> = ids.chunks(k).map(<[i64]>::to_vec).collect();
            sets.iter_mut().for_each(|set| set.sort_unstable());
            sets
        };
        let found: Vec<i64> = ids.iter().flat_map(Tensor::to_f64).map(|e| e as i64).collect();
        assert_eq!(sets(&found), sets(&integers(expected, &name)), "{case}: layer {layer}");
    }
    stats.routes.len()
}

/// Logits from the caches, all rows at once, against the file's; and the greedy continuation a token at a time. Returns
/// the largest difference, and by how much the expected token is not the best.
fn check_generation(case: &Case, cpu: &Cpu, ids: &[Vec<u32>], expected: &SafeTensors) -> (f32, f32) {
    let (model, params) = (&case.model, &case.params);
    let mut caches: Vec<_> = ids.iter().map(|_| model.new_cache()).collect();
    let width = ids[0].len();
    let requests = caches.iter_mut().enumerate();
    let mut requests: Vec<CacheRows> =
        requests.map(|(i, cache)| CacheRows { rows: i * width..(i + 1) * width, cache }).collect();
    let positions: Vec<u32> = ids.iter().flat_map(|_| 0..width as u32).collect();
    let hidden = model.decode(cpu, params, &ids.concat(), &positions, &mut requests);
    let logits = model.logits(cpu, params, &hidden);
    let off = deviation(logits.read(), &floats(expected, "logits"), &case.name);

    let (mut cache, mut lost) = (model.new_cache(), 0.0f32);
    let greedy = rows(expected, "gen_ids").remove(0);
    let prompt = greedy.iter().zip(&ids[0]).take_while(|(a, b)| a == b).count(); // or a little more
    let mut next = 0;
    for end in prompt..greedy.len() {
        let positions: Vec<u32> = (next as u32..end as u32).collect();
        let mut requests = [CacheRows { rows: 0..end - next, cache: &mut cache }];
        let hidden = model.decode(cpu, params, &greedy[next..end], &positions, &mut requests);
        let logits = model.logits(cpu, params, &cpu.gather(&hidden, &Tensor::new([1], &[(end - next - 1) as u32])));
        let logits = logits.read::<f32>();
        lost = lost.max(logits.iter().fold(f32::MIN, |a, &b| a.max(b)) - logits[greedy[end] as usize]);
        next = end;
    }
    (off, lost)
}

fn forward_and_backward(case: &Case, cpu: &Cpu) {
    let Case { name, model, params, expected } = case;
    let expected = SafeTensors::deserialize(expected).unwrap();
    let ids = rows(&expected, "input_ids");
    // all positions, for the logits; the last of a row predicts nothing that is in the file
    let whole = Batch {
        targets: vec![0; ids.concat().len()],
        ids: ids.concat(),
        documents: DocumentBounds::of_lengths(&ids.iter().map(Vec::len).collect::<Vec<_>>()),
        ..Default::default()
    };
    let stats = RefCell::new(Stats::keeping_routes());
    let (_, saved) = model.forward(cpu, params, &whole, Balance::NONE, &stats);
    let logits = model.logits(cpu, params, saved.hidden());
    let logits = deviation(logits.read(), &floats(&expected, "logits"), name);
    let routes = check_routes(name, &stats.borrow(), &expected, |layer| format!("router.{layer}.topk_idx"));

    let batch = batch(&ids);
    let stats = RefCell::default();
    let (out, saved) = model.forward(cpu, params, &batch, Balance::NONE, &stats);
    let (losses, d) = mean_loss(&out, 0.0);
    let loss = (losses[0] - f64::from(floats(&expected, "loss")[0])).abs();
    let mut grads = Grads::zeros(cpu, params);
    model.backward(cpu, params, saved, d, &mut grads, &stats);
    let (count, gradients) = check_gradients(name, params, &grads, &expected);
    let (cached, lost) = check_generation(case, cpu, &ids, &expected);
    say(&format!(
        "{name}: logits off by {logits:.1e}, cached {cached:.1e}, loss {loss:.1e}, {count} gradients \
         {gradients:.1e} of their \
         norm, {routes} layers' routes equal, greedy tokens {lost:.1e} below the best"
    ));
    assert!(logits < 1e-4 && cached < 1e-4 && loss < 2e-5, "{name}");
    assert!(lost < 2e-4, "{name}: a greedy token is {lost} below the best"); // two logits, each within 1e-4
}

#[test]
fn every_forward_case_is_as_in_transformers() {
    let cpu = Cpu::new(2);
    cases_with("input_ids").for_each(|case| forward_and_backward(&case, &cpu));
}

#[test]
fn mtp_modules_predict_as_the_reference() {
    let cpu = Cpu::new(2);
    for Case { name, model, params, expected } in cases_with("embed_first.post_norm.mtp_logits") {
        let (_, header) = SafeTensors::read_metadata(&expected).unwrap();
        let lambda = header.metadata().as_ref().and_then(|m| m.get("lambda")).map_or(0.3, |x| x.parse().unwrap());
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let batch = batch(&rows(&expected, "tokens"));
        let stats = RefCell::new(Stats::keeping_routes());
        let (out, saved) = model.forward(&cpu, &params, &batch, Balance::NONE, &stats);
        let (losses, d) = mean_loss(&out, lambda);
        let wanted = floats(&expected, "embed_first.post_norm.losses");
        let [main, mtp] = [0, 1].map(|i| (losses[i] - f64::from(wanted[i])).abs());
        let logits = model.logits(&cpu, &params, saved.hidden());
        let logits = deviation(logits.read(), &floats(&expected, "main_logits"), &name);
        let more = model.logits(&cpu, &params, saved.mtp_hidden(1));
        let more = deviation(more.read(), &floats(&expected, "embed_first.post_norm.mtp_logits"), &name);
        let last = model.config().num_hidden_layers;
        stats.borrow_mut().routes.retain(|&layer, _| layer == last);
        assert_eq!(check_routes(&name, &stats.borrow(), &expected, |_| "router.mtp.topk_idx".into()), 1);
        let mut grads = Grads::zeros(&cpu, &params);
        model.backward(&cpu, &params, saved, d, &mut grads, &stats);
        let (count, gradients) = check_gradients(&name, &params, &grads, &expected);
        say(&format!(
            "{name}: logits off by {logits:.1e}, mtp {more:.1e}, losses {main:.1e} and {mtp:.1e}, {count} \
             gradients \
             {gradients:.1e} of their norm"
        ));
        assert!(logits < 1e-4 && more < 1e-4 && main < 2e-5 && mtp < 2e-5, "{name}");
        let mut sum = Tensor::zeros([1], DType::F64);
        cpu.square_sum(grads.get(params.handles().next().unwrap()), &mut sum);
        assert!(sum.read::<f64>()[0] > 0.0, "{name}");
    }
}
