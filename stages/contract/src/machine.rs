//! The machine and process that a job runs on, for its provenance.

use smelt_schemas::Digest;

/// blake3 of this program.
pub(crate) fn own_digest() -> Option<Digest> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(std::env::current_exe().ok()?).ok()?, &mut hasher).ok()?;
    Some(hasher.finalize().into())
}

/// The most memory that this process has held so far, in bytes.
pub(crate) fn peak_memory() -> u64 {
    // SAFETY: zeroed is a valid value of this plain struct, and the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}

/// The vector level of the CPU that our kernels use.
pub(crate) fn cpu_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "avx2";
        }
    }
    "portable"
}

pub(crate) fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().into()
}
