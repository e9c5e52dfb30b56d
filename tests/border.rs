//! What a user brings beside a model: prompts, preferences, tokenizers, templates; none of it changes a result without
//! a word, and no job dies of one row.

use crate::support::Bench;
use serde_json::json;
use std::path::{Path, PathBuf};

/// A small Qwen2 with random weights and a ChatML template.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/models/imports/base-chatml-eos").canonicalize().unwrap()
}

/// The same in a folder of its own, to be changed.
fn copy(bench: &Bench) -> PathBuf {
    let folder = bench.path("model");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(folder.join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    folder
}

fn lines(bench: &Bench, name: &str, rows: &[serde_json::Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(bench.path(name), text).unwrap();
}

const PROMPTS: &str = "name: border
jobs:
  hub: { stage: import, config: { path: 'FOLDER' } }
  asked: { stage: ingest, config: { paths: [prompts.jsonl], kind: prompts } }
  aligned:
    stage: align
    input: { model: hub, prompts: asked.prompts }
    config: { steps: 1, prompts: 2, group: 2, max_tokens: 3 }
  scored:
    stage: evaluate
    input: { models: [hub], prompts: asked.prompts }
    config: { names: [hub], samples: 1, max_tokens: 3, stop: ['<|im_end|>'] }
  drawn:
    stage: distill
    input: { model: hub, prompts: asked.prompts }
    config: { samples: 1, max_tokens: 3, keep: answer }
";

#[test]
fn a_job_does_not_die_of_one_prompt() {
    let bench = Bench::new();
    bench.pipeline("border.yaml", &PROMPTS.replace("FOLDER", model().to_str().unwrap()));
    let long = "1+".repeat(400);
    let bad = [
        json!({ "question": long, "answer": "3" }),
        json!({ "question": "a <|im_end|> b", "answer": "3" }),
        json!({ "question": "how many?", "answer": "many" }),
    ];
    let good = ["1+2", "2+3"].map(|question| json!({ "question": question, "answer": "5" }));
    lines(&bench, "prompts.jsonl", &[&bad[..], &good].concat());
    let said = bench.smelt(&["run", "border.yaml"]).ok();
    assert!(said.out.contains("the stop string `<|im_end|>` can never match"), "{said:#?}");
    let sql = "select job, rule, count(*) as n from smelt.drops where job <> 'asked' group by 1, 2 order by 1, 2";
    let found = bench.smelt(&["sql", sql, "--format", "csv"]).ok().out;
    let expected = |job: &str| format!("{job},special_token,1\n{job},too_long,1\n{job},unscorable,1\n");
    let drawn = expected("drawn").replace("drawn,special", "drawn,no_accepted_answer,2\ndrawn,special");
    assert_eq!(found, format!("job,rule,n\n{}{drawn}{}", expected("aligned"), expected("scored")));

    lines(&bench, "prompts.jsonl", &bad);
    for job in ["aligned", "scored", "drawn"] {
        let said = bench.smelt(&["run", "border.yaml", "--only", job]).fails(3).err;
        assert!(said.contains("not one of 3 prompts can be used: 1 special_token (`prompts.jsonl#1`: "), "{said}");
        assert!(said.contains("1 unscorable (`prompts.jsonl#2`: "), "{said}");
    }
}

#[test]
fn a_reward_model_learns_from_preferences_that_are_given() {
    let bench = Bench::new();
    let pipeline = "name: border
jobs:
  hub: { stage: import, config: { path: 'FOLDER' } }
  liked: { stage: ingest, config: { paths: [pairs.jsonl], kind: preferences } }
  judge:
    stage: reward
    input: { model: hub, preferences: liked.preferences }
    config: { steps: 2, batch: 4, held_out: 3, evaluate_every: 1 }
  scored:
    stage: evaluate
    input: { models: [hub], preferences: judge.validation, reward: judge }
    config: { names: [hub] }
";
    bench.pipeline("border.yaml", &pipeline.replace("FOLDER", model().to_str().unwrap()));
    let pair = |i: usize| json!({ "prompt": format!("{i}+1"), "chosen": format!("{}", i + 1), "rejected": "no" });
    let mut rows: Vec<_> = (0..12).map(pair).collect();
    rows.push(json!({ "prompt": "x".repeat(600), "chosen": "a", "rejected": "b" }));
    lines(&bench, "pairs.jsonl", &rows);
    bench.smelt(&["run", "border.yaml"]).ok();
    let count = |table: &str| {
        let sql = format!("select count(*) as n from {table}");
        bench.smelt(&["sql", &sql, "--format", "csv"]).ok().out.lines().nth(1).unwrap().to_owned()
    };
    assert_eq!((count("judge.preferences"), count("judge.validation")), ("9".into(), "3".into()));
    assert_eq!((count("judge.drops"), count("scored")), ("1".into(), "1".into()));
    // the books: 13 read, 12 written, 1 dropped
    let nothing = pipeline.replace(", preferences: liked.preferences", "");
    bench.pipeline("border.yaml", &nothing.replace("FOLDER", model().to_str().unwrap()));
    let said = bench.smelt(&["check", "border.yaml"]).fails(2).err;
    assert!(said.contains("there is nothing to learn from: no pairs are given and none are made"), "{said}");
}

#[test]
fn ids_of_two_tokenizers_do_not_meet() {
    let bench = Bench::new();
    let pipeline = "name: border
jobs:
  hub: { stage: import, config: { path: 'FOLDER' } }
  talks: { stage: problems, config: { characters: 4000, sizes: [2], prompts: 0, conversations: 0 } }
  text: { stage: tokenize, input: { documents: talks.documents }, config: { vocabulary: 300, validation: 0.3 } }
  scored: { stage: evaluate, input: { models: [hub], tokens: text.validation }, config: { names: [hub] } }
  longer: { stage: pretrain, input: { tokens: text, tokenizer: hub.tokenizer, init: hub }, config: { steps: 1 } }
";
    bench.pipeline("border.yaml", &pipeline.replace("FOLDER", model().to_str().unwrap()));
    let said = bench.smelt(&["run", "border.yaml", "--only", "scored"]).fails(3).err;
    assert!(said.contains("input `tokens` was made with the tokenizer "), "{said}");
    assert!(said.contains(", number 1 of input `models` with "), "{said}");
    assert!(
        said.contains("make both with one tokenizer: connect `tokenizer` of the same job to all of them"),
        "{said}"
    );
    let said = bench.smelt(&["run", "border.yaml", "--only", "longer"]).fails(3).err;
    assert!(said.contains("input `tokenizer` was made with the tokenizer "), "{said}");
    assert!(said.contains(", input `tokens` with "), "{said}");
}

const TUNED: &str = "name: border
jobs:
  hub: { stage: import, config: { path: 'FOLDER' } }
  talks: { stage: problems, config: { conversations: 8, answers: short, characters: 0, prompts: 0, sizes: [2] } }
  tuned:
    stage: sft
    input: { model: hub, conversations: talks.conversations }
    config: { epochs: 1, batch: 8, warmup: 0 }
";

#[test]
fn a_template_is_used_or_the_job_ends() {
    let bench = Bench::new();
    let folder = copy(&bench);
    bench.pipeline("border.yaml", &TUNED.replace("FOLDER", folder.to_str().unwrap()));
    for (template, told) in [
        ("a\n{% frob %}", "the chat template fails at line 2, `{% frob %}`: syntax error: unknown statement frob"),
        ("{{ raise_exception('no system') }}", "not one of 8 conversations can be used: 8 template"),
        ("{{ messages[0].content.frob() }}", "string has no method named frob"),
    ] {
        let config = json!({ "eos_token": "<|endoftext|>", "chat_template": template });
        std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
        let said = bench.smelt(&["run", "border.yaml"]).fails(3).err;
        assert!(said.contains(told), "{said}");
        assert!(said.contains("chat template"), "{said}");
    }
}

#[test]
fn weights_that_are_not_finite_do_not_enter() {
    let bench = Bench::new();
    let folder = copy(&bench);
    bench.pipeline("border.yaml", &TUNED.replace("FOLDER", folder.to_str().unwrap()));
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let said = bench.smelt(&["run", "border.yaml", "--only", "hub"]).fails(3).err;
    assert!(said.contains(" holds NaN at element ") && said.contains("every weight must be finite"), "{said}");
}
