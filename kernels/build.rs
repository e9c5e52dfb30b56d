//! Embeds prebuilt kernels: with `SMELT_CUBIN_DIR` set, every `{file}.{architecture}.cubin` of that folder. Without it
//! nothing is embedded, and a program compiles its kernels when it first needs them. CUDA is needed in neither case.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The text that a file of kernels is compiled from: headers, in the order of their names, and the file.
fn whole(name: &str) -> io::Result<String> {
    let entries: Vec<PathBuf> = fs::read_dir("cu")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let mut parts: Vec<PathBuf> =
        entries.into_iter().filter(|path| path.extension().is_some_and(|e| e == "cuh")).collect();
    parts.sort();
    parts.push(Path::new("cu").join(format!("{name}.cu")));
    parts.iter().map(fs::read_to_string).collect()
}

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-env-changed=SMELT_CUBIN_DIR");
    println!("cargo:rerun-if-changed=build.rs");
    let mut table = String::from("static CUBINS: &[(&str, &str, &[u8])] = &[\n");
    if let Some(folder) = env::var_os("SMELT_CUBIN_DIR") {
        let folder = fs::canonicalize(folder)?;
        println!("cargo:rerun-if-changed={}", folder.display());
        println!("cargo:rerun-if-changed=cu");
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "cubin")) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let Some((name, architecture)) = stem.rsplit_once('.') else { continue };
            let made_of = fs::read_to_string(path.with_extension("source"))?;
            assert!(
                made_of == whole(name)?,
                "{} was compiled from other sources: run kernels/make-cubins.sh again, or unset SMELT_CUBIN_DIR",
                path.display()
            );
            writeln!(table, "    ({name:?}, {architecture:?}, include_bytes!({path:?})),").expect("to a string");
        }
    }
    table.push_str("];\n");
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("cubins.rs"), table)
}
