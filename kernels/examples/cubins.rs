//! Compiles every kernel for the architectures that smelt is built for, into a folder for `SMELT_CUBIN_DIR`:
//! `make-cubins.sh` calls it. Beside each file lies the text it was made of, which a build compares with its own.

use smelt_kernels::cuda::{SOURCES, compile};
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::args().nth(1).ok_or("which folder?")?);
    fs::create_dir_all(&folder)?;
    for architecture in ["sm_80", "sm_90a", "sm_100a"] {
        for source in SOURCES.iter().filter(|source| !source.is_for_sm90 || architecture == "sm_90a") {
            let name = format!("{}.{architecture}", source.name);
            fs::write(folder.join(format!("{name}.cubin")), compile(source, architecture, &[])?.cubin)?;
            fs::write(folder.join(format!("{name}.source")), source.whole())?;
        }
    }
    println!("{}", folder.display());
    Ok(())
}
