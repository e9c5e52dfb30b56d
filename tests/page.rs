//! The HTML report in a real browser.

use crate::support::Bench;
use std::path::Path;
use std::process::Command;

/// A headless Chromium, or `None` with the reason on standard error.
fn browser() -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser.sh");
    let said = Command::new(script).output().expect("the script starts");
    if !said.status.success() {
        eprintln!("skipped, the page was not opened: {}", String::from_utf8_lossy(&said.stderr).trim());
        return None;
    }
    Some(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// The page as it is after its scripts have run.
fn rendered(browser: &str, page: &Path) -> String {
    let profile = tempfile::tempdir().unwrap();
    let said = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--window-size=1200,9000"])
        .args(["--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[test]
fn the_report_of_a_pipeline_is_a_page_that_a_browser_draws() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(train), each: { seed: [3, 4] }, config: { seed: '${seed}', \
        steps: 40 } }\n  even: { stage: STAGE(count), config: { rows: 12 } }\n  odd: { stage: STAGE(merge), \
        input: even }\n  later: { stage: STAGE(count), config: { rows: 7 } }\n";
    bench.pipeline("p.yaml", text);
    bench.smelt(&["run", "p.yaml", "--only", "a", "--only", "odd"]).ok();
    let said = bench.smelt(&["report", "p.yaml", "--html", "report.html"]).ok().out;
    assert_eq!(said, "report.html\n");
    let page = std::fs::read_to_string(bench.path("report.html")).unwrap();
    assert!(!page.contains("http://") || !page.contains("<script src"), "the page needs nothing else");
    assert!(!bench.path("report.smelt-tmp").exists());
    let Some(browser) = browser() else { return };
    let drawn = rendered(&browser, &bench.path("report.html"));
    assert!(drawn.contains("data-errors=\"0\""), "{}", drawn.split("<main>").next().unwrap_or_default());
    for section in ["graph", "times", "curves", "lineage", "environment"] {
        assert!(drawn.contains(&format!("<section id=\"{section}\">")), "{section}");
    }
    let charts = drawn.matches("<svg").count();
    assert!(charts >= 3, "{charts} charts were drawn");
    for words in ["a[seed=3]", "4 of 5", "waiting", "jobs done"] {
        assert!(drawn.contains(words), "{words}");
    }
}
