//! A checkpoint's folder as it was downloaded.

use smelt_model::{expect_no_pointer, is_weight_file};
use smelt_stage::files::{Found, expand, hash};
use smelt_stage::{Error, MappedFile, Source};
use std::path::Path;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const VOCABULARY: &str = "tokenizer.json";
pub(crate) const TEXT: &str = "tokenizer_config.json";
pub(crate) const TOKENS: &str = "special_tokens_map.json";
pub(crate) const GENERATION: &str = "generation_config.json";
/// Where newer versions of transformers keep the template that older ones keep in [`TEXT`].
pub(crate) const TEMPLATE: &str = "chat_template.jinja";

const KNOWN: [&str; 6] = [CONFIG, VOCABULARY, TEXT, TOKENS, GENERATION, TEMPLATE];

/// The files of the folder that count, by name.
pub(crate) fn files(path: &str) -> Result<Vec<Found>, Error> {
    let folder = expand(path, |name| std::env::var(name).ok()).map_err(|e| Error::in_config("/path", &e))?;
    let cannot = |error: std::io::Error| {
        Error::config("/path", format!("the folder `{folder}` cannot be read: {error}"))
            .hint("name a folder with config.json, weights and tokenizer.json")
    };
    let (mut found, mut names) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(Path::new(&folder)).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let path = entry.path();
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        names.push(name.clone());
        if KNOWN.contains(&name.as_str()) || is_weight_file(&name) {
            let meta = std::fs::metadata(&path).map_err(cannot)?;
            if meta.is_file() {
                found.push(Found { name, bytes: meta.len(), path });
            }
        }
    }
    // where a folder has its weights twice, the safetensors count
    if found.iter().any(|file| file.name.contains(".safetensors")) {
        found.retain(|file| !file.name.contains(".bin"));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    expect_whole(&folder, &found, &names)?;
    Ok(found)
}

/// Says what a folder is that is no checkpoint.
fn expect_whole(folder: &str, found: &[Found], names: &[String]) -> Result<(), Error> {
    let has = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name));
    let refuse = |what: String, hint: &str| Err(Error::config("/path", what).hint(hint));
    if has(&|name| name == "adapter_config.json").is_some() && has(&|name| name == CONFIG).is_none() {
        let what = format!("the folder `{folder}` holds an adapter (LoRA), and not a model");
        return refuse(what, "merge it into its base model first: `merge_and_unload()` of the library peft, then save");
    }
    let missing = [CONFIG, VOCABULARY].into_iter().find(|wanted| found.iter().all(|file| file.name != *wanted));
    let missing = missing.or((!found.iter().any(|file| is_weight_file(&file.name))).then_some("a .safetensors file"));
    let Some(missing) = missing else { return Ok(()) };
    let what = format!("the folder `{folder}` has no {missing}");
    if let Some(file) = has(&|name| name.ends_with(".gguf")) {
        let what = format!("{what}, but `{file}`");
        return refuse(what, "GGUF is a quantised format of llama.cpp: take the original repository of the model");
    }
    if let Some(file) = has(&|name| name.ends_with(".pth") || name.ends_with(".pt") || name.ends_with(".ckpt")) {
        let what = format!("{what}, but `{file}`");
        return refuse(
            what,
            "take the repository in the form of transformers, or convert it: it often has -hf in its name",
        );
    }
    if let Some(file) = has(&|name| name.ends_with(".h5") || name.ends_with(".msgpack") || name.ends_with(".onnx")) {
        return refuse(format!("{what}, but `{file}`"), "save the model as safetensors with transformers first");
    }
    if missing == VOCABULARY
        && let Some(file) = has(&|name| ["tokenizer.model", "vocab.json", "spiece.model"].contains(&name))
    {
        let hint = "load it with `AutoTokenizer.from_pretrained(folder)` and `save_pretrained(folder)`: that writes \
                    tokenizer.json";
        return refuse(format!("{what}, but `{file}`"), hint);
    }
    refuse(what, "download the whole repository")
}

/// The files, mapped: they are read when they are used.
pub(crate) struct Folder(Vec<(String, MappedFile)>);

impl Folder {
    /// `sources`: what was planned; other bytes are refused, for the fingerprint stands for these.
    pub(crate) fn open(path: &str, sources: &[Source]) -> Result<Self, Error> {
        let mut mapped = Vec::new();
        for (file, source) in files(path)?.iter().zip(sources) {
            if hash(file)? != *source {
                return Err(Error::again(format!("`{}` has changed since the job was planned", file.name)));
            }
            let content = MappedFile::open(&file.path)?;
            expect_no_pointer(&file.name, &content).map_err(smelt_checkpoint::fault)?;
            mapped.push((file.name.clone(), content));
        }
        Ok(Self(mapped))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, content)| &**content)
    }

    /// A file that [`files`] found.
    pub(crate) fn get(&self, name: &str) -> &[u8] {
        self.find(name).unwrap_or_default()
    }

    /// Gives back the memory of what was read.
    pub(crate) fn release(&self) {
        self.0.iter().for_each(|(_, content)| content.release());
    }

    pub(crate) fn weights(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let weights = self.0.iter().filter(|(name, _)| is_weight_file(name));
        weights.map(|(name, content)| (name.as_str(), &**content))
    }
}
