//! Logits of a checkpoint: `cargo run --release --example logits -- FOLDER < ids.json > logits.json`.
//!
//! FOLDER holds config.json and safetensors; ids.json is a list of lists of token ids, each a document. Prints a list
//! of rows, one per token. `tests/parity/logits_with_transformers.py` compares them with transformers'.

use smelt_kernels::{Cpu, DocumentBounds};
use smelt_model::{Balance, Batch, IGNORE, load};
use std::cell::RefCell;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("the folder of a checkpoint is expected")?;
    let (mut config, mut weights) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == "config.json" {
            config = std::fs::read(&path)?;
        } else if name.ends_with(".safetensors") {
            weights.push((name, std::fs::read(&path)?));
        }
    }
    let (model, params) = load(&config, weights.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))?;
    let documents: Vec<Vec<u32>> = serde_json::from_reader(std::io::stdin().lock())?;
    let (ids, lengths) = (documents.concat(), documents.iter().map(Vec::len).collect::<Vec<_>>());
    let batch = Batch {
        targets: vec![IGNORE; ids.len()],
        ids,
        documents: DocumentBounds::of_lengths(&lengths),
        ..Default::default()
    };
    model.check(&batch.ids, batch.documents.longest())?;
    let cpu = Cpu::new(std::thread::available_parallelism()?.get());
    let (_, saved) = model.forward(&cpu, &params, &batch, Balance::NONE, &RefCell::default());
    let logits = model.logits(&cpu, &params, saved.hidden());
    let rows: Vec<&[f32]> = logits.read::<f32>().chunks_exact(model.config().vocab_size).collect();
    serde_json::to_writer(std::io::stdout().lock(), &rows)?;
    Ok(())
}
