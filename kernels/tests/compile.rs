//! Compiles every kernel for every architecture that smelt is built for, with NVIDIA's own compiler, and keeps the
//! table of what it made of them in `docs/kernels.md`. `get-nvrtc.sh` fetches the compiler; no GPU is needed.

use smelt_kernels::cuda::{Comparison, SOURCES, Source, compile};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs};

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100a"];
/// Files whose kernels must use the tensor cores of sm_90a, with the instruction that shows it.
const TENSOR_CORES: [(&str, &str); 4] =
    [("fp8_gemm", "QGMMA"), ("fp8_gradient", "QGMMA"), ("bf16_gemm", "HGMMA"), ("bf16_gradient", "HGMMA")];

/// What the compiler says of one kernel.
#[derive(Debug, Default)]
struct Row {
    registers: u32,
    shared: u32,
    /// Counts of instructions, by their first word.
    instructions: BTreeMap<String, usize>,
}

impl Row {
    fn count(&self, instruction: &str) -> usize {
        self.instructions.get(instruction).copied().unwrap_or(0)
    }
}

/// The same compiler gives the same bytes; other options give other code, and the kernels that have it are named.
fn check_comparisons() {
    let source = SOURCES.iter().find(|source| source.name == "rows").unwrap();
    let of = |options: &[&str]| compile(source, "sm_90a", options).unwrap().cubin;
    let (found, compared) = (of(&[]), |compiled| Comparison::of("rows", &of(&[]), compiled).unwrap());
    let same = compared(found.clone());
    assert!(same.is_equal && same.differing.is_empty() && same.is_of_one_version(), "{:?}", same.differing);
    let release = same.made_by[0].as_deref().unwrap();
    assert!(release.starts_with("13.0, V13.0."), "{release}");

    let other = compared(of(&["--maxrregcount=24"]));
    assert!(!other.is_equal && other.is_of_one_version());
    let norm = other.differing.iter().find(|one| one.kernel == "rms_norm_backward").expect("its code differs");
    let [there, here] = norm.codes.each_ref().map(|code| code.as_ref().unwrap());
    assert!(there.registers > here.registers && there.frame == 0, "{norm}");
    assert!(norm.to_string().starts_with(&format!("`rms_norm_backward`: {} registers, 0 bytes", there.registers)));
    assert!(Comparison::of("rows", b"\x7fELF, simulated", found).is_none());
}

/// Where the compiler is, fetched if need be; None where it cannot be had.
fn home() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("get-nvrtc.sh");
    let answer = Command::new(script).output().ok()?;
    if !answer.status.success() {
        println!("not checked: NVRTC cannot be fetched: {}", String::from_utf8_lossy(&answer.stderr).trim());
        return None;
    }
    Some(String::from_utf8(answer.stdout).ok()?.trim().into())
}

/// The number before `word` in a line of the compiler's.
fn number_before(line: &str, word: &str) -> u32 {
    let before = line.split(word).next().filter(|before| before.len() < line.len()).unwrap_or_default();
    before.rsplit(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty()).map_or(0, |n| n.parse().unwrap_or(0))
}

/// Compiles one file; the rows of its kernels, with instructions if there is a disassembler.
fn check(source: &Source, architecture: &str, home: &Path) -> BTreeMap<String, Row> {
    let what = format!("{} for {architecture}", source.name);
    let compiled = compile(source, architecture, &["--ptxas-options=-v"]).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(compiled.cubin.starts_with(b"\x7fELF"), "{what}");
    for ignored in ["C7508", "C7510"] {
        assert!(!compiled.log.contains(ignored), "{what}: wgmma or setmaxnreg has no effect\n{}", compiled.log);
    }
    let (mut rows, mut kernel) = (BTreeMap::<String, Row>::new(), String::new());
    for line in compiled.log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().into();
        } else if line.contains("bytes spill") {
            let spilled = number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            assert!(spilled == 0 && number_before(line, " bytes stack frame") == 0, "{what}, `{kernel}`: {line}");
        } else if line.contains(" registers") {
            let row = rows.entry(kernel.clone()).or_default();
            (row.registers, row.shared) = (number_before(line, " registers"), number_before(line, " bytes smem"));
        }
    }
    let found: Vec<&str> = rows.keys().map(String::as_str).collect();
    let mut expected: Vec<&str> = source.kernels().map(|(name, _)| name).collect();
    expected.sort_unstable();
    assert_eq!(found, expected, "{what}");

    let file = env::temp_dir().join(format!("smelt-{}-{}-{architecture}.cubin", std::process::id(), source.name));
    fs::write(&file, &compiled.cubin).unwrap();
    let listing = Command::new(home.join("bin/nvdisasm")).arg("-c").arg(&file).output().unwrap();
    fs::remove_file(&file).unwrap();
    assert!(listing.status.success(), "{what}: {}", String::from_utf8_lossy(&listing.stderr));
    for line in String::from_utf8_lossy(&listing.stdout).lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix(".text.").and_then(|name| name.strip_suffix(':')) {
            kernel = name.into();
        } else if let Some((_, instruction)) = line.strip_prefix("/*").and_then(|line| line.split_once("*/")) {
            // a predicate may stand before it: `@!P0 LDG.E R2, …`
            let word = instruction.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or_default();
            let name = word.split(['.', ';']).next().unwrap_or_default();
            if let Some(row) = rows.get_mut(&kernel).filter(|_| !name.is_empty()) {
                *row.instructions.entry(name.into()).or_default() += 1;
            }
        }
    }
    for (kernel, row) in &rows {
        assert!(!row.instructions.is_empty(), "{what}, `{kernel}`: nothing is disassembled");
        assert_eq!(row.count("LDL") + row.count("STL"), 0, "{what}, `{kernel}` uses local memory");
        if let Some((_, wanted)) = TENSOR_CORES.iter().find(|(name, _)| *name == source.name) {
            assert!(row.count(wanted) > 0, "{what}, `{kernel}` has no {wanted}: {:?}", row.instructions);
        }
    }
    rows
}

fn table(rows: &BTreeMap<(&str, String), (u32, Row)>) -> String {
    let mut table = String::from(
        "| file | kernel | threads | registers | static shared, bytes | instructions | tensor cores | TMA | \
         global loads, stores |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for ((file, kernel), (threads, row)) in rows {
        let (all, matrix) = (row.instructions.values().sum::<usize>(), row.count("QGMMA") + row.count("HGMMA"));
        let (loads, stores) = (row.count("LDG"), row.count("STG"));
        writeln!(
            table,
            "| {file} | `{kernel}` | {threads} | {} | {} | {all} | {matrix} | {} | {loads}, {stores} |",
            row.registers,
            row.shared,
            row.count("UTMALDG")
        )
        .unwrap();
    }
    table
}

#[test]
fn every_kernel_compiles_without_spills_and_its_table_is_kept() {
    let Some(home) = home() else { return };
    // SAFETY: this is the only test of its process, and no other thread runs yet.
    unsafe { env::set_var("SMELT_CUDA_HOME", &home) };
    check_comparisons();
    let jobs = SOURCES.iter().flat_map(|source| {
        ARCHITECTURES.iter().filter(|arch| !source.is_for_sm90 || **arch == "sm_90a").map(move |arch| (source, *arch))
    });
    let (jobs, rows) = (Mutex::new(jobs.collect::<Vec<_>>()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((source, architecture)) = { jobs.lock().unwrap().pop() } {
                    let made = check(source, architecture, &home);
                    if architecture == "sm_90a" {
                        let threads: BTreeMap<_, _> = source.kernels().collect();
                        let rows_of = made.into_iter().map(|(kernel, row)| {
                            let of_block = threads[kernel.as_str()];
                            ((source.name, kernel), (of_block, row))
                        });
                        rows.lock().unwrap().extend(rows_of);
                    }
                }
            });
        }
    });
    let (path, table) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kernels.md"), table(&rows.into_inner().unwrap()));
    let page = fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- table of compiled kernels -->\n", "<!-- end of the table -->");
    let (before, rest) = page.split_once(start).expect("docs/kernels.md has the table");
    let (kept, after) = rest.split_once(end).expect("docs/kernels.md has its end");
    if env::var_os("SMELT_BLESS").is_some() {
        fs::write(&path, format!("{before}{start}{table}{end}{after}")).unwrap();
    } else {
        assert!(kept == table, "docs/kernels.md is not what the compiler says; SMELT_BLESS=1 writes it anew\n{table}");
    }
}
