//! NVRTC on the machine of the GPU, beside the machine code that smelt came with.

use crate::gpu::{Row, opened};
use serde_json::json;
use smelt_kernels::DeviceError;
use smelt_kernels::cuda::{Comparison, Found, SOURCES, architecture, open_compiler};
use std::{env, fs};

/// Every file of kernels that the GPU uses; none where smelt came with no machine code.
fn compare(gpu: &Found) -> Result<Vec<Comparison>, DeviceError> {
    let architecture = architecture(gpu.major, gpu.minor);
    let sources = SOURCES.iter().filter(|source| source.runs_on(gpu));
    sources.filter_map(|source| Comparison::here(source, &architecture, &[])).collect()
}

/// Files that the same version compiled differently are wrong; those of another version say which kernels differ.
pub(crate) fn part() -> Vec<Row> {
    let gpu = opened();
    let Some(path) = open_compiler() else {
        return vec![Row::new("NVRTC", json!({ "found": "none on this machine: nothing to compare" }))];
    };
    let found = path.display().to_string();
    let all = match compare(gpu.found()) {
        Ok(all) => all,
        Err(error) => return vec![Row::wrong("NVRTC", json!({ "found": found, "why": error.to_string() }))],
    };
    let Some([embedded, compiled]) = all.first().map(|one| one.made_by.clone()) else {
        let why = "smelt came without machine code: NVRTC compiled all that ran here";
        return vec![Row::new("NVRTC", json!({ "found": found, "kernels": why }))];
    };
    let mut rows =
        vec![Row::new("NVRTC", json!({ "found": found, "release": compiled, "release_of_embedded": embedded }))];
    for one in &all {
        let differing: Vec<String> = one.differing.iter().map(ToString::to_string).collect();
        let figures = json!({ "bytes_are_equal": one.is_equal, "kernels_that_differ": differing });
        rows.push(match one.is_of_one_version() {
            true if !one.differing.is_empty() => Row::wrong(one.file, figures),
            true => Row::right(one.file, figures),
            false => Row::new(one.file, figures),
        });
    }
    rows
}

/// What `operations_right` checks, with the code of this machine's NVRTC where it is another.
pub(crate) fn operations() -> Vec<Row> {
    let gpu = opened();
    let all = if open_compiler().is_some() { compare(gpu.found()) } else { Ok(Vec::new()) };
    let all = match all {
        Ok(all) => all,
        Err(error) => return vec![Row::wrong("NVRTC", json!({ "why": error.to_string() }))],
    };
    if all.iter().all(|one| one.differing.is_empty()) {
        let why = "no other code: see `compiler` and `operations_right`";
        return vec![Row::new("operations with code of this machine's NVRTC", json!({ "kernels": why }))];
    }
    let folder = env::temp_dir().join(format!("smelt-bench-{}-kernels", std::process::id()));
    let architecture = architecture(gpu.found().major, gpu.found().minor);
    let written = fs::create_dir_all(&folder).and_then(|()| {
        let path = |file: &str| folder.join(format!("{file}.{architecture}.cubin"));
        all.iter().try_for_each(|one| fs::write(path(one.file), &one.compiled))
    });
    if let Err(error) = written {
        return vec![Row::wrong("NVRTC", json!({ "why": format!("{}: {error}", folder.display()) }))];
    }
    drop(gpu);
    // SAFETY: this process has one thread. Those that go on after a kernel that fails have it too.
    unsafe { env::set_var("SMELT_KERNELS", &folder) };
    let rows = crate::operations::right();
    drop(fs::remove_dir_all(&folder)); // in the system's folder for temporary files
    rows
}
