//! What `dedup` costs as its input grows: documents, seconds, CPU seconds, and the most memory that was resident.
//!
//! ```text
//! cargo run --release -p smelt-dedup --example scale -- 1000000 2000000
//! cargo run --release -p smelt-dedup --example scale -- '{ "near": false, "passages": {} }' 1000000
//! ```
//!
//! Documents are drawn from a seed: 40 to 100 words of a vocabulary of 50,000, some common and most rare. One of ten is
//! a copy of an earlier one, and another one of ten a copy with one word changed. The job runs in a process of its own,
//! as a runner would start it; how many of the planted copies it found is printed with what it took.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smelt_dedup::Dedup;
use smelt_schemas::{ArtifactRef, Device, Digest, InputRef, Invocation, Manifest, PROTOCOL, SavePolicy};
use smelt_stage::kinds::{Document, Documents};
use smelt_stage::{Context, Error, Stage, run_invocation};
use smelt_store::Store;

const FILE: u64 = 100_000;

/// A sequence of numbers that a seed and a place in it decide.
struct Draw(u64);

impl Draw {
    fn new(seed: u64, place: u64) -> Self {
        let mut draw = Self(seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        draw.next();
        draw
    }

    /// SplitMix64 (Steele et al. 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

fn word(mut number: u64) -> String {
    const SYLLABLES: [&str; 16] =
        ["ba", "ke", "li", "mo", "nu", "pra", "se", "ti", "vo", "xu", "cha", "de", "fi", "go", "hu", "ster"];
    let mut word = String::new();
    while number > 0 || word.is_empty() {
        word += SYLLABLES[(number % 16) as usize];
        number /= 16;
    }
    word
}

/// What a document is.
enum Planted {
    New,
    Copy(u64),
    /// With another word at a place.
    Near(u64),
}

fn planted(seed: u64, i: u64) -> Planted {
    let mut draw = Draw::new(seed, i);
    match draw.below(10) {
        _ if i == 0 => Planted::New,
        0 => Planted::Copy(draw.below(i)),
        1 => Planted::Near(draw.below(i)),
        _ => Planted::New,
    }
}

fn words(seed: u64, i: u64) -> Vec<u64> {
    match planted(seed, i) {
        Planted::New => {
            let mut draw = Draw::new(seed ^ 0x5eed, i);
            let length = 40 + draw.below(61);
            // A third of all words from the 200 most common, the others from all.
            (0..length).map(|_| if draw.below(3) == 0 { draw.below(200) } else { draw.below(50_000) }).collect()
        }
        Planted::Copy(of) => words(seed, of),
        Planted::Near(of) => {
            let mut words = words(seed, of);
            let mut draw = Draw::new(seed ^ 0xbad, i);
            let place = draw.below(words.len() as u64) as usize;
            words[place] = draw.below(50_000);
            words
        }
    }
}

fn text(seed: u64, i: u64) -> String {
    let mut text = String::new();
    for (at, number) in words(seed, i).into_iter().enumerate() {
        text += if at == 0 { "" } else { " " };
        text += &word(number);
    }
    text
}

/// Writes the documents.
struct Feed;

#[derive(Serialize, Deserialize, JsonSchema)]
struct FeedConfig {
    documents: u64,
    seed: u64,
}

smelt_stage::inputs! { struct NoInputs {} }
smelt_stage::outputs! { struct Fed { documents: Port<Documents> } }

impl Stage for Feed {
    const NAME: &'static str = "feed";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Writes documents that it draws";
    type Config = FeedConfig;
    type Inputs = NoInputs;
    type Outputs = Fed;

    fn run(FeedConfig { documents, seed }: FeedConfig, _: NoInputs, out: Fed, cx: &Context) -> Result<(), Error> {
        cx.units("feed", documents.div_ceil(FILE) as usize, |file, unit| {
            let first = file as u64 * FILE;
            for i in first..documents.min(first + FILE) {
                unit.count_derived(1);
                unit.keep(&out.documents, Document::new(i.to_string(), text(seed, i), "drawn"))?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn invocation<S: Stage>(folder: &Path, threads: usize, config: Value, input: Option<InputRef>) -> Invocation {
    let inputs = input.map(|input| ("documents".to_owned(), vec![input])).into_iter().collect();
    Invocation {
        protocol: PROTOCOL,
        run: "scale".into(),
        job: S::NAME.into(),
        stage: S::NAME.into(),
        version: S::VERSION,
        fingerprint: Digest::of(config.to_string().as_bytes()),
        config,
        sources: Vec::new(),
        inputs,
        store: folder.join("store").display().to_string(),
        edition: 0,
        threads,
        memory: None,
        rank: 0,
        device: Device::Cpu,
        save: SavePolicy::default(),
        scratch: folder.join("scratch"),
    }
}

/// What a process took.
struct Taken {
    seconds: f64,
    cpu_seconds: f64,
    resident_bytes: u64,
}

/// Runs a job in a process of its own; what it reports goes to a file.
fn apart(verb: &str, invocation: &Invocation, folder: &Path) -> Result<(Taken, Manifest), Box<dyn std::error::Error>> {
    let file = folder.join(format!("{verb}.json"));
    std::fs::write(&file, serde_json::to_vec(invocation)?)?;
    let events = std::fs::File::create(folder.join(format!("{verb}.events")))?;
    let began = Instant::now();
    let child = std::process::Command::new(std::env::current_exe()?).arg(verb).arg(&file).stdout(events).spawn()?;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the process is a child of this one that nobody else waits for, and both pointers are to live values.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) };
    if waited < 0 || status != 0 {
        return Err(format!("`{verb}` ended with status {status}: see {}", folder.display()).into());
    }
    // SAFETY: a plain struct of numbers, zeroed, then filled by the call.
    let usage = unsafe { usage.assume_init() };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    let taken = Taken {
        seconds: began.elapsed().as_secs_f64(),
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        resident_bytes: 1024 * usage.ru_maxrss as u64,
    };
    let Invocation { stage, fingerprint, edition, .. } = invocation.clone();
    let artifact = ArtifactRef { stage, fingerprint, edition };
    let manifest = Store::open(&invocation.store)?.manifest(&artifact)?.ok_or("it committed nothing")?;
    Ok((taken, manifest))
}

fn measure(config: &Value, documents: u64, folder: &Path, threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    const SEED: u64 = 7;
    std::fs::create_dir_all(folder)?;
    let feed = invocation::<Feed>(folder, threads, json!({ "documents": documents, "seed": SEED }), None);
    let (_, fed) = apart("feed", &feed, folder)?;
    let port = &fed.ports["documents"];
    let input = InputRef {
        artifact: fed.artifact(),
        port: "documents".into(),
        kind: port.kind.clone(),
        digest: port.digest.clone(),
    };
    let dedup = invocation::<Dedup>(folder, threads, config.clone(), Some(input));
    let (taken, found) = apart("dedup", &dedup, folder)?;
    let (mut copies, mut near, mut bytes) = (0, 0, 0);
    for i in 0..documents {
        match planted(SEED, i) {
            Planted::New => {}
            Planted::Copy(_) => copies += 1,
            Planted::Near(_) => near += 1,
        }
        if i % 1000 == 0 {
            bytes += text(SEED, i).len();
        }
    }
    let dropped = |rule: &str| found.books.dropped.get(rule).copied().unwrap_or(0);
    let Taken { seconds, cpu_seconds, resident_bytes } = taken;
    println!(
        "{documents} documents (about {} MB of text, {copies} copies and {near} near copies planted): {seconds:.1} s, \
         {cpu_seconds:.1} CPU s, {} MiB resident; {} dropped as equal, {} as nearly equal{}",
        bytes * 1000 / 1_000_000,
        resident_bytes >> 20,
        dropped("exact_duplicate"),
        dropped("near_duplicate"),
        found.metrics.get("removed_characters").map_or(String::new(), |n| format!(", {} MB cut", n / 1e6)),
    );
    std::io::stdout().flush()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, file] = &args[..]
        && (verb == "feed" || verb == "dedup")
    {
        let invocation: Invocation = serde_json::from_slice(&std::fs::read(file)?)?;
        return Ok(if verb == "feed" {
            run_invocation::<Feed>(&invocation)
        } else {
            run_invocation::<Dedup>(&invocation)
        }?);
    }
    let given = if args.first().is_some_and(|arg| arg.starts_with('{')) { args.remove(0) } else { "{}".into() };
    let config: smelt_dedup::Config = serde_json::from_str(&given)?;
    let config = serde_json::to_value(config)?;
    let threads = std::thread::available_parallelism()?.get();
    let base = std::env::var_os("SMELT_SCALE_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    for documents in args {
        let folder = base.join(format!("smelt-scale-{}", smelt_store::unique()));
        let measured = measure(&config, documents.parse()?, &folder, threads);
        std::fs::remove_dir_all(&folder)?;
        measured?;
    }
    Ok(())
}
