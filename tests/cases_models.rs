//! Models, chat templates and answers as people bring them. `tests/cases/models` has the forms and says what is right;
//! `SMELT_CASES=folder` reads the same forms from another folder.

use crate::support::{Bench, Said};
use serde::Deserialize;
use serde_json::{Value, json};
use smelt_text::{Chat, Message};
use smelt_verify::Verifier;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line per case, where `cargo test` shows it: what a test that passes prints is captured, a direct write is not.
fn say(what: &str) {
    // a test does not fail because nobody can read what it says
    let _unread = writeln!(std::io::stderr(), "case: {what}");
}

fn folder() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/models");
    std::env::var_os("SMELT_CASES").map_or(own, PathBuf::from)
}

/// Whether the folder is the project's own, of which it is known what each case gives.
fn is_own() -> bool {
    std::env::var_os("SMELT_CASES").is_none()
}

/// The folders in `kind`, by name; none where there is no such folder.
fn cases(kind: &str) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder().join(kind)).into_iter().flatten().flatten();
    let folders = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut cases: Vec<(String, PathBuf)> =
        folders.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path)).collect();
    cases.sort();
    cases
}

#[derive(Deserialize)]
struct Rendered {
    messages: Vec<Value>,
    #[serde(default)]
    add_generation_prompt: bool,
    text: String,
    #[serde(default)]
    ids: Vec<u32>,
}

/// Text and ids are those of transformers' `apply_chat_template`.
#[test]
fn templates_render_as_in_transformers() {
    let cases = cases("templates");
    assert!(!is_own() || cases.len() >= 4, "{cases:?}");
    for (name, path) in cases {
        let read = |file: &str| std::fs::read(path.join(file));
        let mut config = read("tokenizer_config.json").unwrap_or_else(|_| b"{}".to_vec());
        if let Ok(template) = read("chat_template.jinja") {
            config = smelt_text::with_chat_template(&config, std::str::from_utf8(&template).unwrap()).unwrap();
        }
        let chat = Chat::from_files(&read("tokenizer.json").unwrap(), &config).unwrap();
        let expected: Vec<Rendered> = serde_json::from_slice(&read("expected.json").unwrap()).unwrap();
        let mut count = 0;
        for (i, case) in expected.iter().enumerate() {
            let field = |message: &Value, name: &str| message[name].as_str().unwrap_or_default().to_owned();
            let messages: Vec<Message> = case
                .messages
                .iter()
                .map(|message| Message::new(&field(message, "role"), field(message, "content")))
                .collect();
            let text = chat.template.render(&messages, case.add_generation_prompt).unwrap().text;
            assert_eq!(text, case.text, "{name} {i}");
            if !case.ids.is_empty() {
                assert_eq!(chat.ids(&messages, case.add_generation_prompt).unwrap(), case.ids, "{name} {i}");
            }
            count += 1;
        }
        say(&format!("templates/{name}: {count} chats, text and ids"));
    }
}

#[derive(Deserialize)]
struct Judged {
    gold: String,
    text: String,
    right: bool,
}

#[test]
fn number_answers_are_judged_as_a_person_judges_them() {
    let Ok(bytes) = std::fs::read(folder().join("number_answers.json")) else {
        assert!(!is_own());
        return;
    };
    let cases: Vec<Judged> = serde_json::from_slice(&bytes).unwrap();
    let mut wrong = Vec::new();
    for Judged { gold, text, right } in &cases {
        let found = Verifier::Number.score(gold, text).map(|score| score.right);
        say(&format!("number_answers: {gold:?} {text:?}: {found:?}"));
        wrong.extend((found != Some(*right)).then_some((gold, text, right)));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Imports a folder; `further` are jobs after `hub`.
fn import(path: &Path, further: &str) -> (Bench, Said) {
    let bench = Bench::new();
    let path = path.canonicalize().unwrap();
    bench.pipeline(
        "hub.yaml",
        &format!("name: hub\njobs:\n  hub: {{ stage: import, config: {{ path: '{}' }} }}\n{further}", path.display()),
    );
    let said = bench.smelt(&["run", "hub.yaml"]);
    (bench, said)
}

/// A checkpoint of a job as a plain folder.
fn model_of(bench: &Bench, job: &str) -> PathBuf {
    let store = bench.store();
    let manifest = store.manifest(&store.pointer("hub", job).unwrap().unwrap().artifact).unwrap().unwrap();
    let recipe = bench.path("artifacts").join("artifacts").join(&manifest.stage).join(manifest.fingerprint.to_string());
    recipe.join("attempts").join(&manifest.attempt).join("files/model")
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn folders_are_imported_or_refused_by_what_they_are() {
    for (name, path) in cases("imports") {
        let (bench, said) = import(&path, "");
        let first = said.err.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        say(&format!("imports/{name}: {}", if said.code == Some(0) { "imported" } else { first }));
        assert!(matches!(said.code, Some(0 | 2 | 3)), "{name}: {said:#?}");
        if !is_own() {
            continue;
        }
        match name.as_str() {
            "lfs-pointer" => {
                let said = said.fails(3).err;
                assert!(said.contains("`model.safetensors` is a Git LFS pointer to 988097824 bytes"), "{said}");
                assert!(said.contains("run `git lfs pull` in its folder"), "{said}");
            }
            "tied-but-different" => {
                let said = said.fails(3).err;
                assert!(said.contains("`lm_head.weight` differs from `model.embed_tokens.weight`"), "{said}");
                assert!(said.contains("set `tie_word_embeddings` to false"), "{said}");
            }
            _ => {
                said.ok();
            }
        }
        if name == "fp16" {
            let bytes = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
            let (given, taken) = (bytes(&path), bytes(&model_of(&bench, "hub")));
            let config = std::fs::read(path.join("config.json")).unwrap();
            let load = |bytes: &[u8]| smelt_model::load(&config, [("model.safetensors", bytes)]).unwrap().1;
            let (given, taken) = (load(&given), load(&taken));
            assert!(given.iter().zip(taken.iter()).all(|((.., a), (.., b))| a.read::<f32>() == b.read::<f32>()));
        }
        if name == "special-tokens-map" {
            let about = json_of(&model_of(&bench, "hub").join("tokenizer_config.json"));
            assert_eq!(about["eos_token"], "<|endoftext|>");
        }
    }
}

const TALKS: &str = "  talks:
    stage: problems
    config: { conversations: 8, answers: short, characters: 0, prompts: 4, sizes: [2] }
  tuned:
    stage: sft
    input: { model: hub, conversations: talks.conversations }
    config: { epochs: 1, batch: 8, warmup: 0 }
  aligned:
    stage: align
    input: { model: tuned, prompts: talks.prompts }
    config: { steps: 1, prompts: 2, group: 2, max_tokens: 4 }
";

/// What `generate` of transformers and vLLM stop at.
#[test]
fn a_tuned_model_ends_with_its_turn_in_every_config() {
    if !is_own() {
        return say("imports: the ends of turns are looked at in the project's own cases alone");
    }
    for (name, ends, kept) in [
        ("base-chatml-eos", json!([514, 512]), json!({ "do_sample": false, "temperature": 0.7 })),
        ("generation-config", json!([514, 512]), json!({ "do_sample": true, "top_p": 0.8, "repetition_penalty": 1.1 })),
        ("fp16", json!([514, 512]), json!({ "use_cache": true })),
    ] {
        let (bench, said) = import(&folder().join("imports").join(name), TALKS);
        said.ok();
        let imported = json_of(&model_of(&bench, "hub").join("generation_config.json"));
        assert_eq!(imported, json_of(&folder().join("imports").join(name).join("generation_config.json")));
        for job in ["tuned", "aligned"] {
            let model = model_of(&bench, job);
            let generation = json_of(&model.join("generation_config.json"));
            assert_eq!(generation["eos_token_id"], ends, "{name} {job}");
            kept.as_object()
                .unwrap()
                .iter()
                .for_each(|(field, value)| assert_eq!(generation[field], *value, "{name} {job}"));
            assert_eq!(json_of(&model.join("config.json"))["eos_token_id"], 514, "{name} {job}");
            assert_eq!(json_of(&model.join("tokenizer_config.json"))["eos_token"], "<|im_end|>", "{name} {job}");
        }
    }
}
