//! The machine and process that a job runs on, for its provenance.

use smelt_schemas::Digest;

/// blake3 of this program.
pub(crate) fn own_digest() -> Option<Digest> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(std::env::current_exe().ok()?).ok()?, &mut hasher).ok()?;
    Some(hasher.finalize().into())
}

/// The most memory that this process has held so far, in bytes.
pub fn peak_memory() -> u64 {
    // The system's count for children and limits, `ru_maxrss`, begins with what the parent held when it started this
    // process; the one in /proc is of this program alone.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or_else(max_rss) * 1024
}

/// KiB; where there is no /proc.
fn max_rss() -> u64 {
    // SAFETY: zeroed is a valid value of this plain struct, and the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss as u64
}

/// Memory of the machine in bytes, or of the cgroup of this process if its limit is lower; None where the system does
/// not say.
pub fn total_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let machine = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    Some(limit.and_then(|limit| limit.trim().parse().ok()).map_or(machine, |limit: u64| limit.min(machine)))
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
