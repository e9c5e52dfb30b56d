//! Training speed: `cargo run --release -p smelt-train --example bench -- [quickstart|1m|10m|dense10m] [threads] [steps] [precision]`.
//!
//! Prints tokens per second of whole steps (forward, backward, clipping, AdamW, biases) after one step of warm-up: median and best, for
//! the machine may be shared.

use smelt_kernels::{Cpu, random};
use smelt_model::{Batch, Config, DeepseekV3, Family, Init, KeyValueHeads, Model, Precision};
use smelt_train::*;
use std::sync::Arc;
use std::time::Instant;

fn config(which: &str) -> (Config, usize, usize) {
    let v3 = DeepseekV3 {
        moe_intermediate_size: 48,
        num_nextn_predict_layers: 0,
        n_shared_experts: 1,
        n_routed_experts: 8,
        routed_scaling_factor: 1.0,
        kv_lora_rank: 32,
        q_lora_rank: None,
        qk_rope_head_dim: 16,
        v_head_dim: 24,
        qk_nope_head_dim: 16,
        n_group: 1,
        topk_group: 1,
        num_experts_per_tok: 2,
        first_k_dense_replace: 1,
        norm_topk_prob: true,
        rope_interleave: true,
    };
    let base = Config {
        vocab_size: 2048,
        hidden_size: 96,
        intermediate_size: 192,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        max_position_embeddings: 1024,
        rms_norm_eps: 1e-6,
        rope_theta: 1000.0,
        rope_scaling: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
        reward_head: false,
        family: Family::DeepseekV3(v3.clone()),
    };
    let compressed = DeepseekV3 { q_lora_rank: Some(64), qk_nope_head_dim: 32, v_head_dim: 32, ..v3 };
    match which {
        "quickstart" => (base, 16, 128),
        "1m" => {
            let v3 = DeepseekV3 { moe_intermediate_size: 64, ..compressed };
            let family = Family::DeepseekV3(v3);
            (Config { hidden_size: 128, intermediate_size: 352, family, ..base }, 8, 256)
        }
        "10m" => {
            let v3 = DeepseekV3 {
                moe_intermediate_size: 128,
                n_routed_experts: 16,
                num_experts_per_tok: 4,
                kv_lora_rank: 64,
                q_lora_rank: Some(128),
                ..compressed
            };
            (wide(Family::DeepseekV3(v3), base), 8, 256)
        }
        // the same width, with grouped-query attention and a feed-forward of the active experts' width
        "dense10m" => {
            let heads = KeyValueHeads { num_key_value_heads: 2, head_dim: 48 };
            (wide(Family::Qwen3 { heads, attention_bias: false }, base), 8, 256)
        }
        other => panic!("no model `{other}`: quickstart, 1m, 10m or dense10m"),
    }
}

fn wide(family: Family, base: Config) -> Config {
    Config { vocab_size: 8192, hidden_size: 256, intermediate_size: 704, num_hidden_layers: 6, family, ..base }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let which = args.next().unwrap_or_else(|| "quickstart".into());
    let threads = args.next().map_or(2, |n| n.parse().expect("threads"));
    let steps = args.next().map_or(30, |n| n.parse().expect("steps"));
    let precision: Precision = args.next().map_or(Precision::Fp32, |text| {
        let value = if text.starts_with('{') { text.parse().expect("JSON") } else { text.into() };
        serde_json::from_value(value).expect("fp32, bf16, fp8 or {\"fp8\": {…}}")
    });
    let (config, sequences, length) = config(&which);
    let vocabulary = config.vocab_size as u64;
    let model = Arc::new(Model::new(config).expect("a sound config"));
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.02, weight: None });
    println!("{which}: {} parameters, {sequences} × {length}, {threads} threads, {precision:?}", params.count());
    let schedule = Schedule::over(1000, 3e-3, 50, Decay::Cosine, 0.05);
    let settings = Settings { bias_speed: 1e-3, precision, ..Settings::new(Hyper::default(), schedule) };
    let mut trainer = Trainer::new(model, params, Arc::new(Cpu::new(threads)), settings);
    let mut seconds = Vec::new();
    for step in 0..=steps {
        let row = |i: usize| {
            let start = random::below(1, step, i as u64, vocabulary) as u32;
            (0..=length as u32).map(|j| (start + j * j) % vocabulary as u32).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<u32>> = (0..sequences).map(row).collect();
        let batch = Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let objective = NextToken::of(std::slice::from_ref(&batch), 0.0, 0);
        let start = Instant::now();
        let report = trainer.step(&[(batch, &objective)]).expect("a finite loss");
        if step > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
        if step == steps {
            println!("step {} loss {:.3}", report.step, report.loss);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let tokens = (sequences * length) as f64;
    let (median, best) = (seconds[seconds.len() / 2], seconds[0]);
    println!("median {:.0} tokens/s ({:.1} ms a step), best {:.0}", tokens / median, median * 1e3, tokens / best);
}
