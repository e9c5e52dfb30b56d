//! What a stage needs from its machine: the checks of `doctor`.

use crate::files::Memory;
use smelt_schemas::{Check, Doctor};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Scratch space below which a job may not get far.
const SCRATCH_BYTES: u64 = 1 << 30;

/// What every stage needs: cores, memory for a job that needs `memory_bytes` if that is known, scratch space.
pub fn machine(memory_bytes: Option<u64>) -> Doctor {
    Doctor { checks: vec![cores(), memory(free_memory(), memory_bytes), scratch(&std::env::temp_dir())] }
}

/// That hashes of large source files are remembered from one plan to the next.
pub fn cache() -> Check {
    let (name, hint) =
        ("cache", "set XDG_CACHE_HOME to a folder that can be written; else large files are read for every plan");
    match Memory::of_user().folder() {
        None => check(name, false, "neither XDG_CACHE_HOME nor HOME is set".into(), hint),
        Some(folder) => {
            let written = std::fs::create_dir_all(folder).and_then(|()| try_write(folder));
            let found = written.map(|()| format!("{} can be written", folder.display()));
            match found {
                Ok(found) => check(name, true, found, hint),
                Err(e) => check(name, false, format!("{} cannot be written: {e}", folder.display()), hint),
            }
        }
    }
}

fn check(name: &str, ok: bool, found: String, hint: &str) -> Check {
    Check { name: name.into(), ok, found, hint: (!ok).then(|| hint.into()) }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

fn cores() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    check("cores", true, format!("{cores}, {}", crate::machine::cpu_level()), "")
}

fn memory(free: Option<u64>, needed: Option<u64>) -> Check {
    let ok = free.zip(needed).is_none_or(|(free, needed)| needed <= free);
    let free = free.map_or("unknown".into(), |free| format!("{} free", gigabytes(free)));
    let needed = needed.map_or(String::new(), |needed| format!(", {} for the default config", gigabytes(needed)));
    check("memory", ok, free + &needed, "end other programs, or compute fewer tokens at once")
}

/// Free memory of the machine, or of the cgroup of this process if that has less.
fn free_memory() -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    let [limit, used] = ["max", "current"].map(|what| number(&format!("/sys/fs/cgroup/memory.{what}")));
    Some(limit.zip(used).map_or(machine, |(limit, used)| machine.min(limit.saturating_sub(used))))
}

fn scratch(folder: &Path) -> Check {
    let (name, hint) = ("scratch", "set TMPDIR to a folder with space");
    match try_write(folder).and_then(|()| free_space(folder)) {
        Ok(free) => check(name, free >= SCRATCH_BYTES, format!("{}: {} free", folder.display(), gigabytes(free)), hint),
        Err(e) => check(name, false, format!("{} cannot be written: {e}", folder.display()), hint),
    }
}

fn try_write(folder: &Path) -> std::io::Result<()> {
    let file = folder.join(format!(".smelt-doctor-{}", std::process::id()));
    std::fs::write(&file, b"doctor")?;
    std::fs::remove_file(&file)
}

/// Bytes that this user may still write to the disk of a folder.
pub(crate) fn free_space(folder: &Path) -> std::io::Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` ends with a zero byte; the call writes only into the struct, for which all zeros are a valid
    // value.
    let (failed, about) = unsafe {
        let failed = libc::statvfs(path.as_ptr(), about.as_mut_ptr()) != 0;
        (failed, about.assume_init())
    };
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(about.f_bavail * about.f_frsize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let checks = machine(Some(1)).checks;
        assert_eq!(checks.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["cores", "memory", "scratch"]);
        assert!(
            checks[1].ok && checks[1].found.ends_with(" free, 0.0 GB for the default config"),
            "{}",
            checks[1].found
        );
    }

    #[test]
    fn what_is_missing_fails_with_what_to_do() {
        let short = memory(Some(2_000_000_000), Some(3_500_000_000));
        assert_eq!((short.ok, short.found.as_str()), (false, "2.0 GB free, 3.5 GB for the default config"));
        assert_eq!(short.hint.as_deref(), Some("end other programs, or compute fewer tokens at once"));
        assert!(memory(None, Some(1)).ok && memory(Some(1), None).ok, "what is not known fails nothing");
        let nowhere = scratch(Path::new("/nowhere/at/all"));
        assert!(!nowhere.ok && nowhere.found.starts_with("/nowhere/at/all cannot be written: "), "{nowhere:?}");
        assert_eq!(nowhere.hint.as_deref(), Some("set TMPDIR to a folder with space"));
    }
}
