//! Runs stages in tests as a runner would, without processes: a fresh store, rows in, manifests and rows out.
//!
//! Shared by the tests of the data stages, which include it by path.

#![allow(dead_code, reason = "every test takes what it needs")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smelt_schemas::{ArtifactRef, Device, InputRef, Invocation, Manifest, PROTOCOL};
use smelt_stage::kinds::{Document, Documents, Micros, Table};
use smelt_stage::{Context, Error, Source, Stage, run_invocation};
use smelt_store::Store;

/// A store in a new folder, and how many threads its jobs get.
pub(crate) struct Workshop {
    folder: PathBuf,
    store: Store,
    pub threads: usize,
    /// Bytes that its jobs may hold.
    pub memory: Option<u64>,
    /// Times that `run_program` was asked.
    asked: AtomicUsize,
}

impl Workshop {
    /// An empty one; `test` names its folder and must be used once.
    pub(crate) fn new(test: &str) -> Self {
        // An example has no such folder.
        let temporary = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = temporary.join(test);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        std::fs::create_dir_all(folder.join("scratch")).unwrap();
        let store = Store::open(folder.join("store").to_str().unwrap()).unwrap();
        Workshop { folder, store, threads: 2, memory: None, asked: AtomicUsize::new(0) }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The effective config, as `resolve` would print it.
    pub(crate) fn resolve<S: Stage>(&self, config: Value, inputs: &[(&str, &[InputRef])]) -> Result<Value, Error> {
        self.resolve_sources::<S>(config, inputs).map(|(config, _)| config)
    }

    /// The effective config, and what is read from outside the store.
    pub(crate) fn resolve_sources<S: Stage>(
        &self,
        config: Value,
        inputs: &[(&str, &[InputRef])],
    ) -> Result<(Value, Vec<Source>), Error> {
        let mut config: S::Config = serde_json::from_value(config).map_err(|e| Error::config("", e.to_string()))?;
        let counts = inputs.iter().map(|(name, refs)| ((*name).to_owned(), refs.len())).collect();
        let sources = S::resolve(&mut config, &counts)?;
        Ok((serde_json::to_value(&config).unwrap(), sources))
    }

    /// Does a whole job and gives what it committed.
    pub(crate) fn run<S: Stage>(&self, config: Value, inputs: &[(&str, &[InputRef])]) -> Result<Manifest, Error> {
        let (config, sources) = self.resolve_sources::<S>(config, inputs)?;
        self.run_resolved::<S>(config, sources, inputs)
    }

    /// Does a job of which `resolve` was asked before.
    pub(crate) fn run_resolved<S: Stage>(
        &self,
        config: Value,
        sources: Vec<Source>,
        inputs: &[(&str, &[InputRef])],
    ) -> Result<Manifest, Error> {
        let invocation = self.invocation::<S>(config, sources, inputs, "");
        run_invocation::<S>(&invocation)?;
        Ok(self.manifest(&invocation)?.expect("a job that is done has a manifest"))
    }

    /// Runs `program`, the program of the stage, killed right before its first write, and then once more to the end;
    /// the same for its second write, and so on. The ports must be those of an undisturbed run. Returns the number of
    /// kills.
    pub(crate) fn kill_at_every_write<S: Stage>(
        &self,
        program: &str,
        config: Value,
        inputs: &[(&str, &[InputRef])],
    ) -> usize {
        let expected = digests(&self.run::<S>(config.clone(), inputs).unwrap());
        let (config, sources) = self.resolve_sources::<S>(config, inputs).unwrap();
        for n in 1.. {
            let invocation = self.invocation::<S>(config.clone(), sources.clone(), inputs, &n.to_string());
            let file = self.folder.join("invocation.json");
            std::fs::write(&file, serde_json::to_vec(&invocation).unwrap()).unwrap();
            let mut command = std::process::Command::new(program);
            command.arg("run").arg(&file).stdout(std::process::Stdio::null());
            let killed = command.env("SMELT_KILL_AT_WRITE", n.to_string()).status().unwrap();
            if killed.success() {
                return n - 1;
            }
            assert_eq!(killed.code(), None, "write {n}: it ended by itself");
            assert!(command.env_remove("SMELT_KILL_AT_WRITE").status().unwrap().success(), "after a kill at write {n}");
            let manifest = self.manifest(&invocation).unwrap().expect("a job that is done has a manifest");
            assert_eq!(digests(&manifest), expected, "after a kill at write {n}");
        }
        unreachable!("a job ends before it writes for ever")
    }

    /// Does a job by 1, 2 and 5 processes of `program`, the program of the stage, with kills at random moments: whoever
    /// is killed starts again. Ports and books must be those of an undisturbed run, and nothing may be left that
    /// `gc` does not find.
    /// Returns the number of kills.
    pub(crate) fn spread<S: Stage>(&self, program: &str, config: Value, inputs: &[(&str, &[InputRef])]) -> usize {
        let expected = self.run::<S>(config.clone(), inputs).unwrap();
        let (config, sources) = self.resolve_sources::<S>(config, inputs).unwrap();
        let mut killed = 0;
        for (round, workers) in [1, 2, 5, 2, 5].into_iter().enumerate() {
            let salt = format!("spread {round}");
            let mut invocation = self.invocation::<S>(config.clone(), sources.clone(), inputs, &salt);
            let files: Vec<PathBuf> = (0..workers).map(|rank| self.folder.join(format!("worker{rank}.json"))).collect();
            for (rank, file) in files.iter().enumerate() {
                (invocation.rank, invocation.threads) = (rank as u32, 1 + rank % 2);
                std::fs::write(file, serde_json::to_vec(&invocation).unwrap()).unwrap();
            }
            killed += work_and_kill(program, &files, 7 + round as u64, 4 * workers);
            let manifest = self.manifest(&invocation).unwrap().expect("a job that is done has a manifest");
            assert_eq!(digests(&manifest), digests(&expected), "{workers} workers, round {round}");
            assert_eq!(manifest.books, expected.books, "{workers} workers, round {round}");
            // What a kill beside the commit left is found, and goes.
            let attempt = format!("{}/attempts/e0", smelt_store::artifact_key(S::NAME, &manifest.fingerprint));
            self.store.delete_leftovers(&self.store.leftovers(&manifest).unwrap()).unwrap();
            let files = manifest.ports.iter().flat_map(|(port, record)| record.files.iter().map(move |f| (port, f)));
            let mut kept: Vec<String> = files.map(|(port, file)| self.store.file_key(&manifest, port, file)).collect();
            kept.push(format!("{attempt}/lease.json"));
            kept.sort();
            let left: Vec<String> = self.store.list(&attempt).unwrap().into_iter().map(|entry| entry.key).collect();
            assert_eq!(left, kept, "{workers} workers, round {round}");
        }
        killed
    }

    /// Does a whole job by `program`, the stage's own, and gives what it warned of.
    pub(crate) fn warnings<S: Stage>(
        &self,
        program: &str,
        config: Value,
        inputs: &[(&str, &[InputRef])],
    ) -> Vec<String> {
        self.run_program::<S>(program, config, inputs).1
    }

    /// Does a whole job by `program`, the stage's own; gives what it committed, which says what the process took, and
    /// what it warned of.
    pub(crate) fn run_program<S: Stage>(
        &self,
        program: &str,
        config: Value,
        inputs: &[(&str, &[InputRef])],
    ) -> (Manifest, Vec<String>) {
        let (config, sources) = self.resolve_sources::<S>(config, inputs).unwrap();
        // Another job each time: one that is committed already would be adopted, without its warnings.
        let salt = format!("program {}", self.asked.fetch_add(1, Ordering::Relaxed));
        let invocation = self.invocation::<S>(config, sources, inputs, &salt);
        let file = self.folder.join("invocation.json");
        std::fs::write(&file, serde_json::to_vec(&invocation).unwrap()).unwrap();
        let said = std::process::Command::new(program).arg("run").arg(&file).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        let events = String::from_utf8(said.stdout).unwrap();
        let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let warnings = events.filter(|e| e["type"] == "warning").map(|e| e["message"].as_str().unwrap().to_owned());
        let warnings = warnings.collect();
        (self.manifest(&invocation).unwrap().expect("a job that is done has a manifest"), warnings)
    }

    /// What a runner hands to a stage; another `salt` makes it another job.
    fn invocation<S: Stage>(
        &self,
        config: Value,
        sources: Vec<Source>,
        inputs: &[(&str, &[InputRef])],
        salt: &str,
    ) -> Invocation {
        let inputs: BTreeMap<String, Vec<InputRef>> =
            inputs.iter().map(|(name, refs)| ((*name).to_owned(), refs.to_vec())).collect();
        let recipe = json!([S::NAME, S::VERSION, config, inputs, sources, salt]).to_string();
        Invocation {
            protocol: PROTOCOL,
            run: "test".into(),
            job: S::NAME.into(),
            stage: S::NAME.into(),
            version: S::VERSION,
            fingerprint: blake3::hash(recipe.as_bytes()).into(),
            config,
            sources,
            inputs,
            store: self.store.address().to_owned(),
            edition: 0,
            threads: self.threads,
            memory: self.memory,
            rank: 0,
            device: Device::Cpu,
            save: smelt_schemas::SavePolicy::default(),
            scratch: self.folder.join("scratch"),
        }
    }

    fn manifest(&self, invocation: &Invocation) -> Result<Option<Manifest>, Error> {
        let (stage, fingerprint) = (invocation.stage.clone(), invocation.fingerprint.clone());
        Ok(self.store.manifest(&ArtifactRef { stage, fingerprint, edition: 0 })?)
    }

    /// What a runner connects when a job reads this port.
    pub(crate) fn port(&self, manifest: &Manifest, port: &str) -> InputRef {
        let record = &manifest.ports[port];
        InputRef {
            artifact: manifest.artifact(),
            port: port.into(),
            kind: record.kind.clone(),
            digest: record.digest.clone(),
        }
    }

    /// Documents of the given ids and texts as an artifact with `per_file` of them in each file.
    pub(crate) fn feed(&self, documents: &[(&str, &str)], per_file: usize) -> InputRef {
        self.feed_with(json!({ "documents": documents, "per_file": per_file }))
    }

    /// The same with what some of them have beside, by id: `{ documents, per_file, urls, times, metadata }`.
    pub(crate) fn feed_with(&self, config: Value) -> InputRef {
        let manifest = self.run::<Feed>(config, &[]).unwrap();
        self.port(&manifest, "documents")
    }

    /// All rows of a table port, in order.
    pub(crate) fn rows<K: Table>(&self, manifest: &Manifest, port: &str) -> Vec<K::Row> {
        let mut rows = Vec::new();
        for file in &manifest.ports[port].files {
            let key = self.store.file_key(manifest, port, file);
            let local = self.store.fetch(&key, file, &self.folder.join("scratch")).unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(local.path()).unwrap()).unwrap();
            for batch in reader.build().unwrap() {
                rows.extend(K::rows(&batch.unwrap()).unwrap());
            }
        }
        rows
    }

    /// The bytes of one file of a port.
    pub(crate) fn file(&self, manifest: &Manifest, port: &str, path: &str) -> Vec<u8> {
        let file = manifest.ports[port].files.iter().find(|file| file.path == path).expect("the port has the file");
        self.store.get(&self.store.file_key(manifest, port, file)).unwrap().to_vec()
    }
}

/// Runs `program` once for each file of `invocations`, all at once, until every process has ended well. `kills` of them
/// are killed, at a random write or after a random time. Returns how many were.
fn work_and_kill(program: &str, invocations: &[PathBuf], seed: u64, kills: usize) -> usize {
    let mut state = seed;
    let mut draw = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let (mut planned, mut killed) = (kills, 0);
    // Each worker: its process, and when it is to be killed.
    let mut start = |file: &Path, planned: &mut usize| {
        let mut command = std::process::Command::new(program);
        command.arg("run").arg(file).stdout(std::process::Stdio::null());
        let mut until = None;
        if *planned > 0 {
            *planned -= 1;
            match draw(2) {
                0 => drop(command.env("SMELT_KILL_AT_WRITE", (1 + draw(25)).to_string())),
                _ => until = Some(std::time::Instant::now() + std::time::Duration::from_millis(1 + draw(80))),
            }
        }
        (command.spawn().unwrap(), until)
    };
    let mut workers: Vec<_> = invocations.iter().map(|file| (file, start(file, &mut planned))).collect();
    while !workers.is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
        workers.retain_mut(|(file, (child, until))| {
            if until.is_some_and(|until| std::time::Instant::now() > until) {
                *until = None;
                child.kill().unwrap();
            }
            match child.try_wait().unwrap() {
                None => true,
                Some(status) if status.success() => false,
                Some(status) => {
                    assert_eq!(status.code(), None, "seed {seed}: a worker ended by itself");
                    killed += 1;
                    (*child, *until) = start(file, &mut planned);
                    true
                }
            }
        });
    }
    killed
}

/// What an error says, with its hint on a separate line.
pub(crate) fn told(error: &Error) -> String {
    match &error.problem().hint {
        Some(hint) => format!("{}\nhint: {hint}", error.problem().message),
        None => error.problem().message.clone(),
    }
}

/// The digests of a manifest's ports, to be compared with golden ones.
pub(crate) fn digests(manifest: &Manifest) -> Vec<String> {
    manifest.ports.iter().map(|(name, port)| format!("{name} {}", port.digest)).collect()
}

/// Writes the documents of its config.
struct Feed;

#[derive(Serialize, Deserialize, JsonSchema)]
struct FeedConfig {
    documents: Vec<(String, String)>,
    per_file: usize,
    #[serde(default)]
    urls: BTreeMap<String, String>,
    /// In microseconds.
    #[serde(default)]
    times: BTreeMap<String, i64>,
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
}

smelt_stage::inputs! { struct NoInputs {} }
smelt_stage::outputs! { struct Fed { documents: Port<Documents> } }

impl Stage for Feed {
    const NAME: &'static str = "feed";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Writes the documents of its config";
    type Config = FeedConfig;
    type Inputs = NoInputs;
    type Outputs = Fed;

    fn run(config: FeedConfig, _inputs: NoInputs, out: Fed, cx: &Context) -> Result<(), Error> {
        let files: Vec<&[(String, String)]> = config.documents.chunks(config.per_file).collect();
        cx.units("feed", files.len(), |i, unit| {
            for (id, text) in files[i] {
                unit.count_derived(1);
                let mut document = Document::new(id.clone(), text.clone(), "feed");
                document.url = config.urls.get(id).cloned();
                document.time = config.times.get(id).copied().map(Micros);
                document.metadata = config.metadata.get(id).map(Value::to_string);
                unit.keep(&out.documents, document)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}
