//! Code that NVRTC makes on this machine beside the code that smelt has.

use super::compiler::{compile, prebuilt};
use super::cubin::{Code, Cubin};
use super::error::DeviceError;
use super::sources::Source;
use std::collections::BTreeSet;
use std::fmt;

/// How two files of machine code for one file of kernels compare.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub file: &'static str,
    /// The assembler of each, as `13.0, V13.0.88`: of the code that is there, and of what was compiled now.
    pub made_by: [Option<String>; 2],
    /// Byte by byte, all of the file.
    pub is_equal: bool,
    pub differing: Vec<Differing>,
    /// What was compiled now.
    pub compiled: Vec<u8>,
}

/// A kernel whose instructions, registers or local memory differ.
#[derive(Clone, Debug)]
pub struct Differing {
    pub kernel: String,
    /// None where a file has no such kernel.
    pub codes: [Option<Code>; 2],
}

impl fmt::Display for Differing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let say = |code: &Option<Code>| match code {
            None => "not there".to_owned(),
            Some(Code { text, registers, frame }) => {
                format!("{registers} registers, {frame} bytes spilled, {} of code", text.len())
            }
        };
        write!(f, "`{}`: {}; compiled here: {}", self.kernel, say(&self.codes[0]), say(&self.codes[1]))
    }
}

impl Comparison {
    /// Of `found`, which is there, and `compiled`. None where one is no machine code.
    pub fn of(file: &'static str, found: &[u8], compiled: Vec<u8>) -> Option<Self> {
        let [a, b] = [Cubin::read(found)?, Cubin::read(&compiled)?];
        let names: BTreeSet<&String> = a.kernels.keys().chain(b.kernels.keys()).collect();
        let codes = names.into_iter().map(|name| (name, [&a, &b].map(|cubin| cubin.kernels.get(name).cloned())));
        let differing = codes.filter(|(_, [a, b])| a != b);
        let differing = differing.map(|(name, codes)| Differing { kernel: name.clone(), codes }).collect();
        Some(Self { file, is_equal: found == compiled, differing, made_by: [a.made_by, b.made_by], compiled })
    }

    /// Of the prebuilt code of a file, and of what NVRTC makes of it with `options` besides the usual. None where there
    /// is no prebuilt code.
    pub fn here(source: &Source, architecture: &str, options: &[&str]) -> Option<Result<Self, DeviceError>> {
        let found = prebuilt(source, architecture)?;
        let of = |found: Vec<u8>| {
            let compiled = compile(source, architecture, options)?.cubin;
            Self::of(source.name, &found, compiled).ok_or_else(|| {
                let what = format!("the kernels `{}` for {architecture} are no machine code of NVIDIA", source.name);
                DeviceError::new(what, "build smelt again, or unset SMELT_KERNELS")
            })
        };
        Some(found.and_then(of))
    }

    /// Whether the same assembler made both.
    pub fn is_of_one_version(&self) -> bool {
        self.made_by[0].is_some() && self.made_by[0] == self.made_by[1]
    }
}
