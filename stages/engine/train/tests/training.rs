//! The trainer's promises: resume, threads and the cut into micro-batches change nothing; the reference's 50 steps come
//! out.

#[path = "../../../../tests/parity/say.rs"]
mod say;

use safetensors::SafeTensors;
use say::say;
use smelt_kernels::{Backend, Cpu, random};
use smelt_model::{
    Balance, BalanceCounts, BalanceScope, Batch, Config, HeadOutput, Init, Model, Param, Params, Stats, load,
};
use smelt_schemas::{ExitCode, Fault};
use smelt_train::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn config() -> Config {
    let text = r#"{ "model_type": "deepseek_v3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
        "moe_intermediate_size": 16, "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "num_attention_heads": 2,
        "n_shared_experts": 1, "n_routed_experts": 8, "routed_scaling_factor": 1.0, "kv_lora_rank": 12,
        "q_lora_rank": 10,
        "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "max_position_embeddings": 128, "rms_norm_eps": 1e-6 }"#;
    Config::from_json(text.as_bytes()).unwrap()
}

/// Biases, key-value heads for two query heads each, and a tied head.
fn dense() -> Config {
    let text = r#"{ "model_type": "qwen2", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true }"#;
    Config::from_json(text.as_bytes()).unwrap()
}

fn settings(lr: f64) -> Settings {
    let hyper = Hyper { weight_decay: 0.05, ..Hyper::default() };
    let schedule = Schedule::over(40, lr, 4, Decay::Cosine, 0.1);
    let balance = Balance { weight: 1e-3, mtp: true, ..Balance::NONE };
    Settings { balance, bias_speed: 1e-3, ..Settings::new(hyper, schedule) }
}

fn trainer(threads: usize) -> Trainer {
    trainer_of(config(), threads)
}

fn trainer_of(config: Config, threads: usize) -> Trainer {
    let model = Arc::new(Model::new(config).unwrap());
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    Trainer::new(model, params, Arc::new(Cpu::new(threads)), settings(1e-2))
}

/// Counting sequences with a step of their own: something to learn.
fn documents(step: u64, count: u64) -> Vec<Vec<u32>> {
    let document = |i: u64| {
        let [start, stride, length] = [50, 3, 40].map(|n| random::below(7, step * 100 + i, n, n) as u32);
        (0..20 + length).map(|j| (start + j * (stride + 1)) % 50).collect()
    };
    (0..count).map(document).collect()
}

fn step(trainer: &mut Trainer, at: u64, parts: usize) -> Report {
    let documents = documents(at, 8);
    let pieces: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let batches: Vec<Batch> = pieces.chunks(8 / parts).map(Batch::next_token).collect();
    let objective = NextToken { mtp_weight: 0.3, z: 0.0 };
    let micro: Vec<(Batch, &dyn Objective)> = batches.into_iter().map(|batch| (batch, &objective as _)).collect();
    trainer.step(&micro).unwrap()
}

fn bits(params: &Params) -> Vec<u32> {
    params.iter().flat_map(|(_, _, t)| t.read::<f32>().iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

#[test]
fn twenty_steps_are_ten_a_save_a_load_and_ten_more() {
    [config(), dense()].into_iter().for_each(check_resume);
}

fn check_resume(config: Config) {
    let trainer = |threads| trainer_of(config.clone(), threads);
    let mut whole = trainer(2);
    let losses: Vec<u64> = (0..20).map(|at| step(&mut whole, at, 1).loss.to_bits()).collect();
    let mut first = trainer(2);
    (0..10).for_each(|at| drop(step(&mut first, at, 1)));
    let bytes = first.save();
    drop(first);
    let mut second = trainer(2);
    second.restore(&bytes).unwrap();
    assert_eq!(second.steps(), 10);
    let again: Vec<u64> = (10..20).map(|at| step(&mut second, at, 1).loss.to_bits()).collect();
    assert_eq!(again, losses[10..]);
    assert!(bits(second.params()) == bits(whole.params()));
    assert!(second.save() == whole.save());
}

fn saved_part(trainer: &Trainer, part: usize, parts: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    trainer.write_part(part, parts, &mut bytes).unwrap();
    bytes
}

/// Three ranks wrote it, one reads it: spans are of the tensors, not of the ranks.
#[test]
fn a_state_in_parts_is_the_whole_state_however_many_there_are() {
    let mut whole = guarded();
    (0..9).for_each(|at| drop(step(&mut whole, at, 1)));
    // a parameter of two elements has empty spans in more than two parts
    let mut scored = trainer_of(Config { reward_head: true, ..config() }, 1);
    let parts: Vec<Vec<u8>> = (0..5).map(|part| saved_part(&scored, part, 5)).collect();
    let bytes = scored.save();
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        scored.restore_parts(&order.map(|part| parts[part].as_slice())).unwrap();
        assert!(scored.save() == bytes, "{order:?}");
    }
    let bytes = whole.save();
    for count in [1, 2, 3, 7] {
        let mut parts: Vec<Vec<u8>> = (0..count).map(|part| saved_part(&whole, part, count)).collect();
        parts.reverse();
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut again = guarded();
        again.restore_parts(&views).unwrap();
        assert!(again.save() == bytes, "{count} parts");
        assert!(saved_part(&again, 0, 2) == saved_part(&whole, 0, 2));
    }
    let parts: Vec<Vec<u8>> = (0..3).map(|part| saved_part(&whole, part, 3)).collect();
    let refused = |views: &[&[u8]]| guarded().restore_parts(views).unwrap_err().to_string();
    let text = refused(&[&parts[0], &parts[2]]);
    assert!(text.contains("has elements up to 533, and then from 1066"), "{text}");
    let text = refused(&[&parts[0], &parts[1]]);
    assert!(text.contains("has 1066 elements, the model 1600"), "{text}");
    let text = refused(&[&parts[1], &parts[0], &parts[1], &parts[2]]);
    assert!(text.contains("has elements up to 1066, and then from 533"), "{text}");
    drop(step(&mut whole, 9, 1));
    let text = refused(&[&parts[0], &parts[1], &saved_part(&whole, 2, 3)]);
    assert!(text.contains("its files were saved at different steps, 9 and 10"), "{text}");
    assert!(refused(&[]).contains("there is no file of it"));
}

#[test]
fn one_thread_and_two_train_the_same_bits() {
    for config in [config(), dense()] {
        let (mut one, mut two) = (trainer_of(config.clone(), 1), trainer_of(config, 2));
        for at in 0..5 {
            assert_eq!(step(&mut one, at, 1).loss.to_bits(), step(&mut two, at, 1).loss.to_bits(), "step {at}");
        }
        assert!(bits(one.params()) == bits(two.params()));
    }
}

/// Gradients of 4 parts are summed in another order: f32 rounding of the loss, 1e-6, is all that may differ.
#[test]
fn the_cut_into_micro_batches_is_no_part_of_the_loss() {
    let (mut whole, mut parts) = (trainer(2), trainer(2));
    let (a, b) = (step(&mut whole, 0, 1), step(&mut parts, 0, 4));
    assert!((a.loss - b.loss).abs() < 1e-6, "{} {}", a.loss, b.loss);
    assert!((a.gradient_norm - b.gradient_norm).abs() < 1e-4 * a.gradient_norm);
    for part in ["main", "mtp", "balance"] {
        assert!((a.parts[part] - b.parts[part]).abs() < 1e-6, "{part}");
    }
    assert_eq!(a.totals, StepTotals { square_sum: a.totals.square_sum, ..b.totals });
}

/// Another order of summation changes every trained model. Update these bits only together with the version of every
/// stage that trains or samples.
#[test]
fn fp32_has_the_bits_of_its_version() {
    let mut trainer = trainer(2);
    let last = (0..10).map(|at| step(&mut trainer, at, 1)).last().unwrap();
    assert_eq!(last.loss.to_bits(), 0x4007_aaba_0ff0_3d97, "{}", last.loss);
    assert_eq!(last.gradient_norm.to_bits(), 0x3fe7_3b2b_ab33_edf4, "{}", last.gradient_norm);
    let hash = |hash: u64, bits: &u32| (hash ^ u64::from(*bits)).wrapping_mul(0x100_0000_01b3);
    assert_eq!(bits(trainer.params()).iter().fold(0, hash), 0x2e31_5029_da24_2ebd);
}

#[test]
fn counting_is_learnt() {
    for config in [config(), dense()] {
        let mut trainer = trainer_of(config, 2);
        let reports: Vec<Report> = (0..40).map(|at| step(&mut trainer, at, 1)).collect();
        assert!(reports[0].parts["main"] > 3.5, "{}", reports[0].loss); // ln 50 = 3.9
        assert!(reports[39].parts["main"] < 2.0, "{}", reports[39].loss);
        let biases = trainer.params().iter().filter(|(_, spec, _)| spec.parts[0].name.ends_with("_proj.bias"));
        biases.for_each(|(_, spec, bias)| {
            assert!(bias.read::<f32>().iter().all(|&b| b != 0.0), "{}", spec.parts[0].name)
        });
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update() {
    let model = Arc::new(Model::new(config()).unwrap());
    let params = model.init(&Init { seed: 1, embedding: f64::INFINITY, router: 0.1, weight: None });
    let before = bits(&params);
    let mut trainer = Trainer::new(model, params, Arc::new(Cpu::new(1)), settings(1e-2));
    let batch = Batch::next_token(&[&[1, 2, 3]]);
    let objective = NextToken::default();
    let error = trainer.step(&[(batch, &objective)]).unwrap_err();
    assert_eq!(error.to_string(), "step 1: the loss is NaN");
    assert_eq!((error.exit_code(), error.place()), (ExitCode::Pipeline, Some("step 1".into())));
    assert!(bits(trainer.params()) == before && trainer.steps() == 0);
}

#[test]
fn bad_tokens_and_empty_masks_are_named() {
    let mut trainer = trainer(1);
    let objective = Masked;
    let refused = |trainer: &mut Trainer, batch: Batch| trainer.step(&[(batch, &objective)]).unwrap_err().to_string();
    let text = refused(&mut trainer, Batch::next_token(&[&[1, 50, 3]]));
    assert!(text.contains("token id 50 at place 1 is outside the vocabulary of 50"), "{text}");
    let text = refused(&mut trainer, Batch::next_token(&[&[1; 200]]));
    assert!(text.contains("199 tokens; the model knows 128 positions"), "{text}");
    let text = refused(&mut trainer, masked_batch(&[Example::new(&[1, 2, 3], &[])]));
    assert!(text.contains("nothing to learn"), "{text}");
    let other = Trainer::new(
        Arc::new(Model::new(Config { hidden_size: 16, ..config() }).unwrap()),
        Model::new(Config { hidden_size: 16, ..config() }).unwrap().init(&Init {
            seed: 1,
            embedding: 0.5,
            router: 0.1,
            weight: None,
        }),
        Arc::new(Cpu::new(1)),
        settings(1e-2),
    );
    let text = trainer.restore(&other.save()).unwrap_err().to_string();
    assert!(text.contains("has shape [50, 16], the model [50, 32]"), "{text}");
}

/// MTP modules have no gradient in a fine-tuning: weight decay and the average must not move them either.
#[test]
fn frozen_parameters_keep_every_bit() {
    let model = Arc::new(Model::new(config()).unwrap());
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    let frozen: Vec<Param> = model.mtp_parameters().collect();
    let name = |p: Param| params.spec(p).parts[0].name.clone();
    assert!(!frozen.is_empty() && frozen.iter().all(|&p| name(p).starts_with("model.layers.3.")));
    let is_first_bias = |p: Param| name(p) == "model.layers.1.mlp.gate.e_score_correction_bias";
    let before = params.copy();
    let hyper = Hyper { average: 0.9, ..settings(1e-2).hyper };
    let frozen: Vec<Param> = frozen.into_iter().chain(params.handles().filter(|&p| is_first_bias(p))).collect();
    let settings = Settings { frozen: frozen.clone(), hyper, bias_speed: 1e-3, ..settings(1e-2) };
    let mut trainer = Trainer::new(model, params, Arc::new(Cpu::new(2)), settings);
    for _ in 0..3 {
        trainer.step(&[(masked_batch(&[Example::new(&[1, 2], &[3, 4, 5])]), &Masked)]).unwrap();
    }
    for (p, spec, old) in before.iter() {
        for now in [trainer.params(), trainer.result()] {
            let is_same = now.get(p).read::<f32>() == old.read::<f32>();
            assert_eq!(is_same, frozen.contains(&p), "{}", spec.parts[0].name);
        }
    }
    let (saved, mut again) = (trainer.save(), self::trainer(1));
    let text = again.restore(&saved).unwrap_err().to_string();
    assert!(text.contains("`m.model.layers.3.enorm.weight` is missing"), "{text}");
}

#[test]
fn a_step_without_an_update_counts_in_the_schedule() {
    let (mut plain, mut skipping) = (trainer(1), trainer(1));
    let before = bits(skipping.params());
    (0..3).for_each(|_| skipping.skip());
    assert!(bits(skipping.params()) == before && skipping.steps() == 3);
    let report = step(&mut skipping, 0, 1);
    assert_eq!((report.step, report.lr), (4, 1e-2)); // the warm-up of 4 steps has passed
    assert_eq!(step(&mut plain, 0, 1).lr, 2.5e-3);
}

/// However a model packs its experts, a state has one tensor per expert.
#[test]
fn a_state_has_the_tensors_of_a_checkpoint() {
    let mut trainer = trainer(1);
    drop(step(&mut trainer, 0, 1));
    let state = trainer.save();
    let state = SafeTensors::deserialize(&state).unwrap();
    let expert = trainer.params().iter().find_map(|(_, spec, value)| {
        let mut spans = spec.spans();
        let (part, span) = spans.find(|(part, _)| part.name == "model.layers.1.mlp.experts.5.up_proj.weight")?;
        Some((part.shape.clone(), value.read::<f32>()[span].to_vec()))
    });
    let (shape, values) = expert.unwrap();
    for kind in ["w", "m", "v"] {
        let saved = state.tensor(&format!("{kind}.model.layers.1.mlp.experts.5.up_proj.weight")).unwrap();
        assert_eq!(saved.shape(), shape);
        let saved: Vec<f32> = saved.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        assert_eq!(saved == values, kind == "w");
    }
}

/// A guard that judges after 4 losses, and the two options that the state must carry.
fn guarded() -> Trainer {
    let mut settings = settings(1e-2);
    settings.guard = Some(SpikeGuard { window: 4, z: 8.0, patience: 2 });
    settings.hyper = Hyper { moments: Moments::Bf16, average: 0.9, ..settings.hyper };
    let model = Arc::new(Model::new(config()).unwrap());
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    Trainer::new(model, params, Arc::new(Cpu::new(2)), settings)
}

/// The loss as a sum over its targets instead of their mean.
struct Sum;

impl Objective for Sum {
    fn loss(&self, backend: &dyn Backend, head: &HeadOutput, batch: &Batch, totals: &StepTotals) -> Loss {
        NextToken::default().loss(backend, head, batch, &StepTotals { targets: 1, ..totals.clone() })
    }

    fn value(&self, sums: &[f64], totals: &StepTotals) -> Value {
        NextToken::default().value(sums, &StepTotals { targets: 1, ..totals.clone() })
    }
}

/// A batch that an almost trained model finds absurd.
fn spike(trainer: &mut Trainer) -> Result<Report, Error> {
    let ids: Vec<u32> = (0..60).map(|i| random::below(1, 2, i, 50) as u32).collect();
    let batch = Batch::next_token(&[&ids]);
    trainer.step(&[(batch, &Sum)])
}

#[test]
fn a_spike_is_skipped_and_two_in_a_row_go_back_to_the_copy_before() {
    let mut trainer = guarded();
    for at in 0..9 {
        assert!(!step(&mut trainer, at, 1).is_skipped, "step {at}");
    }
    let before = bits(trainer.params());
    let report = spike(&mut trainer).unwrap();
    assert!(report.is_skipped && report.went_back_to.is_none());
    assert!(bits(trainer.params()) == before && trainer.steps() == 10);
    let report = spike(&mut trainer).unwrap();
    assert_eq!(report.went_back_to, Some(8)); // the last multiple of the window
    assert!(bits(trainer.params()) != before && trainer.steps() == 11);
    // the copy is used up
    spike(&mut trainer).unwrap();
    let error = spike(&mut trainer).unwrap_err().to_string();
    assert!(error.contains("a spike, the 2 steps in a row that the guard allows"), "{error}");
}

#[test]
fn what_guard_average_and_moments_hold_survives_a_save() {
    let mut whole = guarded();
    (0..9).for_each(|at| drop(step(&mut whole, at, 1)));
    spike(&mut whole).unwrap();
    let bytes = whole.save();
    let mut resumed = guarded();
    resumed.restore(&bytes).unwrap();
    assert!(resumed.save() == bytes);
    for trainer in [&mut whole, &mut resumed] {
        assert_eq!(spike(trainer).unwrap().went_back_to, Some(8));
        (20..24).for_each(|at| drop(step(trainer, at, 1)));
    }
    assert!(whole.save() == resumed.save());
    assert!(bits(whole.result()) == bits(resumed.result()) && bits(whole.result()) != bits(whole.params()));
    let error = trainer(1).restore(&bytes).unwrap_err().to_string();
    assert!(error.contains("is BF16, the optimizer keeps F32"), "{error}");
}

/// avg_t = 0.9·avg_{t−1} + 0.1·w_t from w_0; f32 rounds once or twice a step.
#[test]
fn the_average_follows_the_weights() {
    let mut trainer = guarded();
    let values = |params: &Params| -> Vec<f64> { params.iter().flat_map(|(_, _, t)| t.to_f64()).collect() };
    let mut expected = values(trainer.params());
    for at in 0..5 {
        step(&mut trainer, at, 1);
        expected.iter_mut().zip(values(trainer.params())).for_each(|(avg, w)| *avg = 0.9 * *avg + 0.1 * w);
    }
    for (found, expected) in values(trainer.result()).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{found} {expected}");
    }
}

#[test]
fn batch_wise_balance_does_not_depend_on_equal_micro_batches_for_its_weight() {
    let mut settings = settings(1e-2);
    settings.balance = Balance { weight: 0.5, scope: BalanceScope::Batch, ..settings.balance };
    let model = Arc::new(Model::new(config()).unwrap());
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    let mut trainer = Trainer::new(model, params, Arc::new(Cpu::new(1)), settings);
    let report = step(&mut trainer, 0, 4);
    // three layers of experts, the MTP module's included; 1 per layer when all is even
    assert!((2.9..4.0).contains(&report.parts["balance"]), "{}", report.parts["balance"]);
    let parts = report.parts["main"] + 0.3 * report.parts["mtp"] + 0.5 * report.parts["balance"];
    assert!((report.loss - parts).abs() < 1e-9, "{} {parts}", report.loss);
}

/// The folders with `hyper.json` in and below `folder`.
fn collect(folder: &Path, cases: &mut Vec<PathBuf>) {
    if folder.join("hyper.json").is_file() {
        return cases.push(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut below: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    below.sort();
    below.iter().for_each(|folder| collect(folder, cases));
}

fn cases() -> Vec<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let folder = std::env::var_os("SMELT_PARITY").map_or(repository.join("../shared/parity/engine"), PathBuf::from);
    let mut cases = Vec::new();
    collect(&repository.join("tests/parity/engine"), &mut cases);
    assert!(!cases.is_empty(), "the repository has trainings of its own");
    match folder.is_dir() {
        true => collect(&folder, &mut cases),
        false => say(&format!("only the repository's own trainings: no {} (set SMELT_PARITY)", folder.display())),
    }
    cases
}

/// Every training that the independent PyTorch trainer recorded, step by step. Honest f32 implementations differ by
/// 2.7e-6 in a step's loss, and the test allows 2e-5. Weights are compared by the norm of each tensor, 1e-4: AdamW
/// moves an element whose gradient is mere rounding by the whole learning rate, so single elements tell nothing (the
/// reference on one thread and with PyTorch's own AdamW on two differ by 3.7e-5 in one).
#[test]
fn trainings_are_as_in_the_reference() {
    cases().iter().for_each(|case| train_as_in(case));
}

fn train_as_in(folder: &Path) {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (config, init, batches, expected) = (
        read("init/config.json"),
        read("init/model.safetensors"),
        read("batches.safetensors"),
        read("expected.safetensors"),
    );
    let hyper: serde_json::Value = serde_json::from_slice(&read("hyper.json")).unwrap();
    let number = |name: &str| hyper[name].as_f64().unwrap();
    let count = |name: &str| number(name) as u64;
    let (model, params) = load(&config, [("model.safetensors", init.as_slice())]).unwrap();
    let (batches, expected) =
        (SafeTensors::deserialize(&batches).unwrap(), SafeTensors::deserialize(&expected).unwrap());
    let tokens = batches.tensor("tokens").unwrap();
    let [steps, sequences, width] = *tokens.shape() else { panic!("tokens are [steps, B, S + 1]") };
    let ids: Vec<u32> = tokens.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
    let series = |name: &str| -> Vec<f64> {
        expected.tensor(name).unwrap().data().as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
    };
    let schedule = Schedule {
        peak: number("peak"),
        warmup: count("warm"),
        constant: count("const"),
        decay: count("decay"),
        shape: Decay::Cosine,
        floor: number("min_lr") / number("peak"),
        tails: Vec::new(),
    };
    let has_balance = hyper["aux"] != "none";
    let balance = Balance {
        weight: if has_balance { number("alpha") } else { 0.0 },
        scope: if hyper["aux"] == "batch" { BalanceScope::Batch } else { BalanceScope::Sequence },
        counts: if hyper["aux_f"] == "routed" { BalanceCounts::Routes } else { BalanceCounts::Scores },
        mtp: count("mtp_aux") == 1,
    };
    let optimizer = Hyper { clip: number("clip"), weight_decay: number("wd"), ..Hyper::default() };
    let settings = Settings { balance, bias_speed: number("gamma"), ..Settings::new(optimizer, schedule) };
    let mut trainer = Trainer::new(Arc::new(model), params, Arc::new(Cpu::new(2)), settings);
    let wanted = ["step.loss", "step.main", "step.mtp", "step.balance", "step.grad_norm", "step.lr"].map(series);
    let (mut worst, name, cpu) = (0.0f64, folder.display(), Cpu::new(2));
    for step in 0..steps {
        let rows: Vec<&[u32]> = ids[step * sequences * width..][..sequences * width].chunks(width).collect();
        let batch = Batch::next_token(&rows);
        let objective = NextToken { mtp_weight: number("lam"), z: 0.0 };
        let stats = RefCell::new(Stats::keeping_routes());
        drop(trainer.model().forward(&cpu, trainer.params(), &batch, Balance::NONE, &stats));
        for (layer, found) in &stats.borrow().routes {
            let found: Vec<u32> = found.iter().flat_map(|ids| ids.read::<u32>()).copied().collect();
            let wanted = expected.tensor(&format!("route.{layer}")).unwrap();
            let k = wanted.shape()[2];
            let wanted = &wanted.data()[step * found.len()..][..found.len()];
            let set = |ids: &[u8]| ids.iter().copied().collect::<BTreeSet<u8>>();
            for (token, (found, wanted)) in found.chunks(k).zip(wanted.chunks(k)).enumerate() {
                let found: Vec<u8> = found.iter().map(|&e| e as u8).collect();
                assert_eq!(set(&found), set(wanted), "{name}, step {}: layer {layer}, token {token}", step + 1);
            }
        }
        let r = trainer.step(&[(batch, &objective)]).unwrap();
        let part = |name: &str| r.parts.get(name).copied().unwrap_or(0.0);
        let mut found = vec![r.loss, part("main"), part("mtp")];
        found.extend(has_balance.then(|| part("balance")));
        for (found, wanted) in found.iter().zip(&wanted) {
            worst = worst.max((found - wanted[step]).abs());
            let (at, wanted) = (step + 1, wanted[step]);
            assert!((found - wanted).abs() < 2e-5, "{name}, step {at}: {found}, expected {wanted}");
        }
        let norm = r.gradient_norm;
        assert!((norm / wanted[4][step] - 1.0).abs() < 1e-3, "{name}, step {}: gradient norm {norm}", step + 1);
        assert!((r.lr - wanted[5][step]).abs() < 1e-12);
        for (layer, loads) in &r.totals.loads {
            let counts = expected.tensor(&format!("count.{layer}")).unwrap();
            let counts = &counts.data()[step * loads.len() * 8..][..loads.len() * 8];
            let counts: Vec<u64> = counts.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u64).collect();
            assert_eq!(*loads, counts, "{name}: layer {layer}, step {}", step + 1);
        }
        for (_, spec, bias) in trainer.params().iter() {
            let Some(layer) = spec.parts[0].name.strip_suffix(".mlp.gate.e_score_correction_bias") else { continue };
            let layer = layer.rsplit('.').next().unwrap();
            let expected = expected.tensor(&format!("bias.{layer}")).unwrap();
            let row = &expected.data()[step * bias.len() * 4..][..bias.len() * 4];
            for (found, &expected) in bias.read::<f32>().iter().zip(row.as_chunks().0) {
                let expected = f32::from_le_bytes(expected);
                assert!((found - expected).abs() < 1e-6, "{name}: bias of layer {layer}, step {}", step + 1);
            }
        }
    }
    let (last, mut weights, mut largest) = (read("final.safetensors"), 0.0f64, 0.0f32);
    let last = SafeTensors::deserialize(&last).unwrap();
    for (_, spec, value) in trainer.params().iter() {
        let mut start = 0;
        for part in &spec.parts {
            let len: usize = part.shape.iter().product();
            let found = &value.read::<f32>()[start..start + len];
            start += len;
            let expected = last.tensor(&part.name).unwrap();
            let expected: Vec<f32> =
                expected.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            let gaps: Vec<f32> = found.iter().zip(&expected).map(|(found, expected)| found - expected).collect();
            let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let (off, size) = (norm(&gaps), norm(&expected));
            assert!(off <= 1e-4 * size, "{name}: {} is off by {off} of {size}", part.name);
            weights = weights.max(if size > 0.0 { off / size } else { 0.0 });
            largest = gaps.iter().fold(largest, |most, gap| most.max(gap.abs()));
        }
    }
    say(&format!(
        "{name}: {steps} steps, losses off by at most {worst:.1e}, final weights {weights:.1e} of their norm, one \
         element {largest:.1e}"
    ));
}

/// Log-probabilities and gradients of a sampler at a temperature, as TRL and verl have them: computed by PyTorch
/// (tests/parity/grpo_with_pytorch.py) on the same rollouts. f32 against f32 sums in another order: 1e-5 of the norm.
#[test]
fn grpo_at_a_temperature_is_as_in_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/parity/engine/llama");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let weights = read("hf/model.safetensors");
    let (model, params) = load(&read("hf/config.json"), [("model.safetensors", weights.as_slice())]).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&read("grpo.json")).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let (model, prompt) = (Arc::new(model), file["prompt"].as_u64().unwrap() as usize);
    let answers: Vec<Vec<u32>> =
        file["ids"].as_array().unwrap().iter().map(|ids| numbers(ids).iter().map(|&id| id as u32).collect()).collect();
    let advantages = numbers(&file["advantages"]);
    for case in file["cases"].as_array().unwrap() {
        let temperature = case["temperature"].as_f64().unwrap();
        let mut grpo =
            Grpo { clip: file["clip"].as_f64().unwrap(), beta: file["beta"].as_f64().unwrap(), ..Grpo::default() };
        let mut examples = Vec::new();
        for (i, ids) in answers.iter().enumerate() {
            let count = ids.len() - prompt;
            grpo.advantage.extend(std::iter::repeat_n(advantages[i], count));
            grpo.old.extend(numbers(&case["old"][i]));
            grpo.reference.extend(numbers(&case["reference"][i]));
            grpo.weight.extend(std::iter::repeat_n(1.0 / (count * answers.len()) as f64, count));
            examples.push(Example::new(&ids[..prompt], &ids[prompt..]));
        }
        let batch = Batch { temperature, ..masked_batch(&examples) };
        let settings = Settings::new(Hyper::default(), Schedule::over(1, 0.0, 0, Decay::Constant, 1.0));
        let mut trainer = Trainer::new(model.clone(), params.copy(), Arc::new(Cpu::new(2)), settings);
        let report = trainer.step(&[(batch, &grpo)]).unwrap();
        let near = |found: f64, name: &str| {
            let wanted = case[name].as_f64().unwrap();
            assert!(
                (found - wanted).abs() <= 1e-5 * wanted.abs().max(0.1),
                "T {temperature}: {name} {found}, {wanted}"
            );
        };
        near(report.loss, "loss");
        near(report.gradient_norm, "gradient_norm");
    }
}
