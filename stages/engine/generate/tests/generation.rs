//! What a request gives does not depend on its company, and agrees with training's form.

use smelt_generate::*;
use smelt_kernels::Cpu;
use smelt_model::{CacheRows, Config, Init, Kind, Model, Params};

/// One model of every family, each with `limit` positions.
fn models(limit: usize) -> Vec<(Model, Params)> {
    let shared = r#""vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6"#;
    let families = [
        r#""model_type": "deepseek_v3", "moe_intermediate_size": 16, "num_attention_heads": 2, "n_shared_experts": 1,
        "n_routed_experts": 8, "kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "qk_nope_head_dim": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1"#,
        r#""model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true"#,
        r#""model_type": "qwen3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10"#,
        r#""model_type": "llama", "num_attention_heads": 4, "attention_bias": true"#,
    ];
    let model = |family: &str| {
        let mut config = Config::from_json(format!("{{ {shared}, {family} }}").as_bytes()).unwrap();
        config.max_position_embeddings = limit;
        let model = Model::new(config).unwrap();
        let mut params = model.init(&Init { seed: 5, embedding: 1.0, router: 0.3, weight: Some(0.3) });
        for p in params.handles().filter(|&p| params.spec(p).kind == Kind::Zero).collect::<Vec<_>>() {
            let bias = params.get_mut(p).write::<f32>();
            bias.iter_mut().enumerate().for_each(|(i, b)| *b = 0.1 * (i % 7) as f32 - 0.3);
        }
        (model, params)
    };
    families.into_iter().map(model).collect()
}

fn requests() -> Vec<Request> {
    let request = |i: u64| {
        let stop = vec![7, 8];
        let sampling = match i % 4 {
            0 => Sampling { max_tokens: 30, stop, ..Default::default() },
            1 => Sampling { temperature: 0.0, max_tokens: 12, stop, ..Default::default() },
            2 => Sampling { temperature: 0.7, top_p: 0.9, max_tokens: 25, stop, ..Default::default() },
            _ => Sampling { top_k: 5, max_tokens: 3 + i as usize, ..Default::default() },
        };
        // four of every eight share a prompt
        let prompt = if i % 8 < 4 {
            vec![1, 2, 3, 4]
        } else {
            (0..1 + i as u32 % 9).map(|j| (i as u32 * 5 + j * 3) % 60).collect()
        };
        Request { prompt, seed: 1000 + i, sampling }
    };
    (0..24).map(request).collect()
}

fn same(a: &Completion, b: &Completion) -> bool {
    let bits = |c: &Completion| c.logp.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    a.tokens == b.tokens && bits(a) == bits(b) && a.finish == b.finish
}

#[test]
fn a_request_has_the_same_bits_alone_and_in_any_batch() {
    models(128).iter().for_each(|(model, params)| check_company(model, params));
}

fn check_company(model: &Model, params: &Params) {
    let (requests, family) = (requests(), &model.config().family);
    let (one, two) = (Cpu::new(1), Cpu::new(2));
    let alone: Vec<Completion> = requests
        .iter()
        .map(|request| {
            let generator = Generator { model, params, backend: &one, concurrency: 1 };
            generator.run(std::slice::from_ref(request)).unwrap().remove(0)
        })
        .collect();
    assert!(alone.iter().any(|c| c.finish == Finish::Stop) && alone.iter().any(|c| c.finish == Finish::Length));
    for concurrency in [1, 5, 100] {
        for backend in [&one, &two] {
            let generator = Generator { model, params, backend, concurrency };
            for (i, (a, b)) in generator.run(&requests).unwrap().iter().zip(&alone).enumerate() {
                assert!(same(a, b), "{family:?}: request {i} of {concurrency} at once: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn a_prompt_read_at_once_or_token_by_token_gives_the_same_bits() {
    let (ids, one, two) = ((0..40).map(|i| i * 7 % 60).collect::<Vec<u32>>(), Cpu::new(1), Cpu::new(2));
    for (model, params) in models(128) {
        let read = |backend: &Cpu, pieces: &[usize]| {
            let (mut cache, mut start, mut bits) = (model.new_cache(), 0, Vec::new());
            for &count in pieces {
                let positions: Vec<u32> = (start as u32..(start + count) as u32).collect();
                let mut requests = [CacheRows { rows: 0..count, cache: &mut cache }];
                let hidden = model.decode(backend, &params, &ids[start..start + count], &positions, &mut requests);
                bits.extend(hidden.read::<f32>().iter().map(|x| x.to_bits()));
                start += count;
            }
            bits
        };
        let whole = read(&two, &[40]);
        assert!(whole == read(&one, &[1; 40]), "{:?}", model.config().family);
        assert!(whole == read(&two, &[11, 1, 1, 20, 7]), "{:?}", model.config().family);
    }
}

/// Generation's form and training's sum in different orders; 1e-4 is what the design asks for.
#[test]
fn log_probabilities_agree_with_training() {
    models(128).iter().for_each(|(model, params)| check_agreement(model, params));
}

fn check_agreement(model: &Model, params: &Params) {
    let (requests, cpu) = (requests(), Cpu::new(2));
    let generator = Generator { model, params, backend: &cpu, concurrency: 16 };
    let completions = generator.run(&requests).unwrap();
    let sequences: Vec<Vec<u32>> =
        requests.iter().zip(&completions).map(|(r, c)| [&r.prompt[..], &c.tokens].concat()).collect();
    let scored: Vec<(&[u32], usize)> = sequences.iter().zip(&requests).map(|(s, r)| (&s[..], r.prompt.len())).collect();
    for limit in [40, 10_000] {
        let scores = logprobs(model, params, &cpu, &scored, limit).unwrap();
        for (found, completion) in scores.iter().zip(&completions) {
            assert_eq!(found.len(), completion.logp.len());
            for (a, b) in found.iter().zip(&completion.logp) {
                assert!((a - b).abs() < 1e-4, "{:?}: {a} {b}", model.config().family);
            }
        }
    }
}

#[test]
fn stop_tokens_and_limits_end_a_completion() {
    let ((model, params), cpu) = (models(20).remove(0), Cpu::new(1));
    let generator = Generator { model: &model, params: &params, backend: &cpu, concurrency: 4 };
    let request = |max_tokens, stop| Request {
        prompt: vec![1; 10],
        seed: 3,
        sampling: Sampling { max_tokens, stop, ..Default::default() },
    };
    let all: Vec<u32> = (0..60).collect();
    let done = generator.run(&[request(50, vec![]), request(4, vec![]), request(50, all), request(0, vec![])]).unwrap();
    let ends: Vec<(usize, Finish)> = done.iter().map(|c| (c.tokens.len(), c.finish)).collect();
    // ten positions are left; the last token drawn needs none of its own
    assert_eq!(ends, [(11, Finish::Length), (4, Finish::Length), (1, Finish::Stop), (0, Finish::Length)]);
    assert_eq!(done[0].tokens[..4], done[1].tokens);
    let text = generator.run(&[Request { prompt: vec![1; 20], ..request(1, vec![]) }]).unwrap_err().to_string();
    assert!(text.contains("21 tokens; the model knows 20 positions"), "{text}");
}
