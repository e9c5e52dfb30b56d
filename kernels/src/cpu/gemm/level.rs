//! The instruction sets of this CPU, detected at run time: one binary serves all CPUs, and all give the same bits.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `f32::mul_add` in loops. NEON when compiled for aarch64; on x86 without FMA correct but slow.
    Portable,
    /// AVX2 and FMA, 256-bit.
    Avx2,
    /// AVX-512 F; bf16 as on `Avx2`.
    Avx512,
    /// AVX-512 F and `vdpbf16ps`.
    Avx512Bf16,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16];

    pub fn best() -> Level {
        *Level::ALL.iter().rev().find(|level| level.is_supported()).expect("portable always is")
    }

    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f");
            match self {
                Level::Portable => true,
                Level::Avx2 => avx2,
                Level::Avx512 => avx512,
                Level::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Level::Portable
        }
    }
}

/// A level that this CPU has, so that code compiled for it may run. Safe code can make no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Supported(Level);

impl Supported {
    pub(crate) const PORTABLE: Self = Self(Level::Portable);

    /// Panics when this CPU lacks the level.
    pub(crate) fn new(level: Level) -> Self {
        assert!(level.is_supported(), "level: this CPU has no {level:?}");
        Self(level)
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

/// Runs `work`, inlined into a function compiled for `level`, so that loops in it use that level's vectors. Rust does
/// not fuse multiply and add, and loops here fix the order of every sum: the level changes the time and no bit.
#[inline(always)]
pub(crate) fn wide<R>(level: Supported, work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        match level.0 {
            // SAFETY: a `Supported` level.
            Level::Avx512 | Level::Avx512Bf16 => return unsafe { avx512(work) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2(work) },
            Level::Portable => {}
        }
    }
    let _ = level;
    work()
}
