//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smelt_kernels::random;
use smelt_pretrain::Pretrain;
use smelt_schemas::Manifest;
use smelt_stage::kinds::{TokenRow, Tokenizer, Tokens};
use smelt_stage::{Context, Error, Stage};
use workshop::Workshop;

/// Documents of random ids.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Corpus {
    documents: u64,
    /// Ids of a document at most.
    longest: u64,
    per_file: u64,
    vocabulary: u64,
}

/// Writes them, with a tokenizer of as many words.
struct Feed;

smelt_stage::inputs! { struct NoInputs {} }
smelt_stage::outputs! { struct Fed { tokens: Port<Tokens>, tokenizer: Port<Tokenizer> } }

impl Stage for Feed {
    const NAME: &'static str = "feed_tokens";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Writes the documents of its config";
    type Config = Corpus;
    type Inputs = NoInputs;
    type Outputs = Fed;

    fn run(config: Corpus, _inputs: NoInputs, out: Fed, cx: &Context) -> Result<(), Error> {
        cx.single(|unit| {
            let special = smelt_text::SPECIAL;
            let words = special.map(str::to_owned).into_iter();
            let words = words.chain((9..config.vocabulary).map(|id| format!("w{id}")));
            let vocabulary: serde_json::Map<String, Value> =
                words.zip(0..).map(|(word, id)| (word, json!(id))).collect();
            let added = (0..9).map(|id| {
                json!({ "id": id, "content": special[id], "special": true, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false })
            });
            let json = json!({ "version": "1.0", "added_tokens": added.collect::<Vec<_>>(),
                "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<|pad|>" } });
            unit.put(&out.tokenizer, "tokenizer.json", json.to_string().as_bytes())?;
            let ends = json!({ "bos_token": "<|bos|>", "eos_token": "<|eos|>" });
            unit.put(&out.tokenizer, "tokenizer_config.json", ends.to_string().as_bytes())
        })?;
        let files = config.documents.div_ceil(config.per_file);
        cx.units("documents", files as usize, |file, unit| {
            let first = file as u64 * config.per_file;
            for document in first..(first + config.per_file).min(config.documents) {
                let length = random::below(1, 0, document, config.longest);
                let id = |i| 9 + random::below(2, document, i, config.vocabulary - 9) as u32;
                let ids: Vec<u32> = (0..length).map(id).collect();
                unit.count_derived(1);
                unit.keep(
                    &out.tokens,
                    TokenRow { document: document.to_string(), source: "feed".into(), language: None, bytes: 0, ids },
                )?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn fed(workshop: &Workshop, corpus: &Corpus) -> Manifest {
    workshop.run::<Feed>(serde_json::to_value(corpus).unwrap(), &[]).unwrap()
}

/// A model of a few parameters, trained for a few steps.
fn tiny() -> Value {
    json!({ "steps": 3, "sequences": 4, "context": 32, "warmup": 1, "fim_rate": 0.3,
        "model": { "width": 16, "layers": 1, "dense_width": 16, "experts": 0, "heads": 1, "nope": 8, "rope": 8,
            "value": 8, "latent": 8, "mtp_layers": 0 } })
}

/// The training on these documents, whatever the threads. Whoever changes it raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("pretrain-golden-{threads}"));
        workshop.threads = threads;
        let many = fed(&workshop, &Corpus { documents: 700, longest: 90, per_file: 100, vocabulary: 60 });
        let few = fed(&workshop, &Corpus { documents: 40, longest: 500, per_file: 100, vocabulary: 60 });
        let tokens = [workshop.port(&many, "tokens"), workshop.port(&few, "tokens")];
        let (tokenizer, held_out) = ([workshop.port(&many, "tokenizer")], [workshop.port(&few, "tokens")]);
        let inputs = [("tokens", &tokens[..]), ("tokenizer", &tokenizer), ("validation", &held_out)];
        let mut weighted = tiny();
        weighted["weights"] = json!([1, 2]);
        let mut best_fit = tiny();
        best_fit["packing"] = json!("best_fit");
        all.push([tiny(), weighted, best_fit].map(|config| {
            let manifest = workshop.run::<Pretrain>(config, &inputs).unwrap();
            format!("{} {:.9}", manifest.ports["model"].digest, manifest.metrics["validation_loss"])
        }));
    }
    assert_eq!(all[0], all[1], "threads change bytes");
    assert_eq!(Pretrain::VERSION, 5);
    let golden = [
        "383f6ec97df42ec3817e07ee740e406dce8764750dc554823b3e61a5021d53eb 4.242367032",
        "1222feb856312e1ffff309cdf46b609028935bba3312f8272daf54fbd9e9c20e 4.242402351",
        "55c67354a1cbea223f9c713d9267ac2a90d57c616c7947fc6a0b4db4f23a4b1b 4.242007424",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new figures here");
}

/// Documents of up to 10,000 ids: 60 million tokens take 240 MB as they are trained on.
#[test]
fn memory_does_not_grow_with_the_corpus() {
    let workshop = Workshop::new("pretrain-memory");
    let peak = |documents| {
        let corpus = fed(&workshop, &Corpus { documents, longest: 10_000, per_file: 3000, vocabulary: 2000 });
        let (tokens, tokenizer) = ([workshop.port(&corpus, "tokens")], [workshop.port(&corpus, "tokenizer")]);
        let inputs = [("tokens", &tokens[..]), ("tokenizer", &tokenizer)];
        let (trained, _) = workshop.run_program::<Pretrain>(env!("CARGO_BIN_EXE_smelt-pretrain"), tiny(), &inputs);
        assert_eq!(trained.books.read, documents);
        trained.provenance.peak_memory_bytes
    };
    let (small, large) = (peak(100), peak(12_000));
    // the pages read last, 64 MiB at most, and a quarter of that for what the allocator keeps
    assert!(large < small + (80 << 20), "{} MB, and {} MB for 100 documents", large >> 20, small >> 20);
}
