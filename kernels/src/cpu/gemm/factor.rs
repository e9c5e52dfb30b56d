//! Which kernel multiplies which element on which CPU level.

use super::cells::{Bf16, Cells};
use super::kernel::Micro;
use super::level::Level;
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// What a product multiplies: `f32` or [`Bf16`]; it sums in f32.
pub trait Factor: Cells {
    #[doc(hidden)]
    fn micro(level: Level) -> &'static Micro;
    /// For elements that are E4M3 numbers: the same bits, from a faster kernel on levels that compute bf16 in several
    /// instructions.
    #[doc(hidden)]
    fn micro_of_e4m3(level: Level) -> &'static Micro {
        Self::micro(level)
    }
}

impl Factor for f32 {
    fn micro(level: Level) -> &'static Micro {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 | Level::Avx512 => &avx512::F32_TILES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &avx2::F32_TILES,
            _ => &portable::F32_TILES,
        }
    }
}

impl Factor for Bf16 {
    fn micro(level: Level) -> &'static Micro {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => &avx512::BF16_TILES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx2 => &avx2::BF16_TILES,
            _ => &portable::BF16_TILES,
        }
    }

    fn micro_of_e4m3(level: Level) -> &'static Micro {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => &avx512::E4M3_TILES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &avx2::E4M3_TILES,
            _ => Self::micro(level),
        }
    }
}
