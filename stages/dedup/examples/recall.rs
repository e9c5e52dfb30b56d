//! How many planted copies `dedup` finds, by how they differ from their originals: of each kind 1000, or as many as the
//! argument says.
//!
//! ```text
//! cargo run --release -p smelt-dedup --example recall -- 1000
//! ```

#[path = "../tests/planted/mod.rs"]
mod planted;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use workshop::Workshop;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let copies = std::env::args().nth(1).map_or(Ok(1000), |count| count.parse())?;
    let workshop = Workshop::new(&format!("smelt-recall-{}", smelt_store::unique()));
    let (recalls, wrong) = planted::recall(&workshop, copies);
    eprint!("{}", planted::table(&recalls));
    eprintln!("{wrong} documents that are no copies went, or lost a passage");
    std::fs::remove_dir_all(workshop.folder())?;
    Ok(())
}
