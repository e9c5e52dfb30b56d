//! A folder for a process of a job: its invocation, and what it need not keep.

use crate::diagnostic::{Diagnostic, Result};
use smelt_schemas::ExitCode;
use smelt_store::{Owner, safe_name};
use std::path::PathBuf;

/// A local folder that is deleted with this value; if the process is killed, `sweep` of a later run deletes it.
pub(crate) struct Scratch(pub PathBuf);

impl Scratch {
    const PREFIX: &str = "smelt-";
    const OWNER: &str = "owner.json";

    pub(crate) fn new(run: &str, job: &str, rank: u32) -> Result<Self> {
        let name = format!("{}{run}-{}-{rank}-{}", Self::PREFIX, safe_name(job), std::process::id());
        let folder = std::env::temp_dir().join(name);
        let owner = serde_json::to_vec(&Owner::this_process()).expect("an owner is plain data");
        let made = std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join(Self::OWNER), owner))
            .and_then(|()| std::fs::create_dir_all(folder.join("scratch")));
        made.map_err(|e| {
            Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be made: {e}", folder.display()))
                .hint("set TMPDIR to a folder with space")
        })?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Removes the scratch folders of runners that were killed.
pub(crate) fn sweep() {
    let me = Owner::this_process();
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(Scratch::PREFIX) {
            continue;
        }
        let owner = std::fs::read(entry.path().join(Scratch::OWNER)).ok();
        if owner.and_then(|text| serde_json::from_slice::<Owner>(&text).ok()).is_some_and(|o| o.is_gone(&me)) {
            drop(std::fs::remove_dir_all(entry.path())); // somebody else's folder stays theirs
        }
    }
}
