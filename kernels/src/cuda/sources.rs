//! The kernels' sources, embedded: `../../cu`.

use super::device::Found;

/// A header that kernels include.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("attention.cuh", include_str!("../../cu/attention.cuh")),
    ("device.cuh", include_str!("../../cu/device.cuh")),
    ("math.cuh", include_str!("../../cu/math.cuh")),
    ("scales.cuh", include_str!("../../cu/scales.cuh")),
    ("tiles.cuh", include_str!("../../cu/tiles.cuh")),
];

/// One file of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Without `.cu`.
    pub name: &'static str,
    pub text: &'static str,
    /// Whether its kernels use what only compute capability 9.0 has.
    pub is_for_sm90: bool,
}

macro_rules! sources {
    ($($name:literal: $is_for_sm90:literal;)*) => {
        /// Every file of kernels.
        pub const SOURCES: &[Source] = &[$(Source {
            name: $name,
            text: include_str!(concat!("../../cu/", $name, ".cu")),
            is_for_sm90: $is_for_sm90,
        }),*];
    };
}

sources! {
    "attention": false;
    "bf16_gemm": true;
    "bf16_gradient": true;
    "flash_backward": true;
    "flash_forward": true;
    "fp8_gemm": true;
    "fp8_gradient": true;
    "head": false;
    "optimizer": false;
    "products": false;
    "quantise": false;
    "router": false;
    "rows": false;
    "sample": false;
}

impl Source {
    /// Whether its kernels are used on a GPU.
    pub fn runs_on(&self, gpu: &Found) -> bool {
        !self.is_for_sm90 || gpu.is_sm90()
    }

    /// All text that decides its machine code: headers, in the order of their names, and the file.
    pub fn whole(&self) -> String {
        HEADERS.iter().map(|(_, text)| *text).chain([self.text]).collect()
    }

    /// Names of the kernels in the file, with the threads of a block.
    pub fn kernels(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.text.split("\nKERNEL(").skip(1).filter_map(|rest| {
            let (threads, rest) = rest.split_once(") ")?;
            let (name, _) = rest.split_once('(')?;
            Some((name, self.number(threads)?))
        })
    }

    /// A number, or a constant of the file or of a header.
    fn number(&self, text: &str) -> Option<u32> {
        let of_constant = |in_text: &str| {
            let (_, rest) = in_text.split_once(&format!("constexpr int {text} = "))?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let texts = [self.text].into_iter().chain(HEADERS.iter().map(|(_, text)| *text));
        text.parse().ok().or_else(|| texts.into_iter().find_map(of_constant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_and_named_once() {
        let mut names: Vec<&str> = SOURCES.iter().flat_map(|source| source.kernels()).map(|(name, _)| name).collect();
        let count = SOURCES.iter().map(|source| source.text.matches("\nKERNEL(").count()).sum::<usize>();
        assert!(names.len() == count && names.contains(&"rms_norm"), "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name occurs twice");
    }
}
