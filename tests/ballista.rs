//! Queries that a Ballista cluster answers. What is said to it, and what it may answer, is tested in `smelt-query`;
//! here the command, and a real cluster where there is one.

use crate::s3_server::{SECRET, Server};
use crate::support::{Bench, wait_until};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const PIPELINE: &str = "
name: p
jobs:
  a: { stage: STAGE(count), config: { rows: 300, units: 3 } }
  b: { stage: STAGE(merge), each: { x: [0, 1] }, input: a, run: { env: ['X${x}'] } }
  model: { stage: STAGE(train) }
";

#[test]
fn a_cluster_that_is_not_there_is_named() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    let count = "select count(*) n from a";
    let said = bench.smelt(&["sql", count, "--ballista", "127.0.0.1:1"]).fails(6).err;
    assert_eq!(
        said,
        "error: the Ballista scheduler at http://127.0.0.1:1 cannot be reached: Connection refused (os error 111)\n\
         hint: start one as docs/pipelines.md says under Ballista; without `--ballista` this machine answers\n"
    );
    let said = bench.smelt(&["sql", count, "--ballista", "scheduler"]).fails(2).err;
    assert!(said.starts_with("error: `--ballista scheduler`: the port is missing\nhint: "), "{said}");
    // Records are no files: nobody is asked.
    let jobs = "select count(*) n from smelt.jobs";
    let said = bench.smelt(&["sql", jobs, "--format", "csv", "--ballista", "127.0.0.1:1"]).ok();
    assert_eq!(said.out, "n\n4\n");
}

/// A process of a cluster, ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(program: &Path, args: &[String], environment: &[(&str, String)], log: &Path) -> Process {
    let out = std::fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command.args(args).envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    Process(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display())))
}

/// A scheduler and two executors, which see S3 as `environment` says.
fn cluster(bench: &Bench, programs: &Path, environment: &[(&str, String)]) -> (Vec<Process>, String) {
    let port = free_port();
    let listens = |port: u16| TcpStream::connect(("127.0.0.1", port)).is_ok();
    let args = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let scheduler = args(format!("--bind-host 127.0.0.1 --bind-port {port}"));
    let mut all =
        vec![start(&programs.join("ballista-scheduler"), &scheduler, environment, &bench.path("scheduler.log"))];
    wait_until("the scheduler listens", || listens(port));
    for i in 0..2 {
        let (flight, grpc, health) = (free_port(), free_port(), free_port());
        let folder = bench.path(&format!("executor{i}"));
        std::fs::create_dir_all(&folder).unwrap();
        let executor = args(format!(
            "--scheduler-host 127.0.0.1 --scheduler-port {port} --bind-host 127.0.0.1 --external-host 127.0.0.1 \
             --bind-port {flight} --bind-grpc-port {grpc} --vcores 2 --bind-health-port {health} --work-dir {}",
            folder.display()
        ));
        let log = bench.path(&format!("executor{i}.log"));
        all.push(start(&programs.join("ballista-executor"), &executor, environment, &log));
        wait_until("an executor listens", || listens(flight));
    }
    (all, format!("127.0.0.1:{port}"))
}

#[test]
#[ignore = "needs ballista-scheduler and ballista-executor 55 in SMELT_BALLISTA_BIN; `cargo install` takes a while"]
fn a_real_cluster_answers_as_this_machine_does() {
    let programs = PathBuf::from(std::env::var_os("SMELT_BALLISTA_BIN").expect("SMELT_BALLISTA_BIN names a folder"));
    let (bench, server) = (Bench::new(), Server::start());
    let mut environment = server.environment(SECRET);
    environment.push(("AWS_ALLOW_HTTP", "true".into()));
    let (processes, scheduler) = cluster(&bench, &programs, &environment);
    bench.pipeline("p.yaml", PIPELINE);
    for store in ["artifacts", "s3://bucket/under a prefix"] {
        let smelt = |args: &[&str]| server.smelt(&bench, SECRET, &[args, &["--store", store]].concat());
        smelt(&["run", "p.yaml"]).ok();
        for sql in [
            "select count(*), min(length(text)), max(length(text)) from a",
            "select x, count(*) n from b group by x order by x",
            "select id, text from a where text like '%1%' order by id limit 20",
            "select a.text, j.stage from a join smelt.jobs j on j.job = 'a' order by a.text limit 3",
            "select length(text) l, count(*) n, sum(length(text)) s from a group by 1 order by 1",
            "select job, name, count(*) n, max(value) m from smelt.metrics group by 1, 2 order by 1, 2",
            "select text from a where text = 'nothing'",
        ] {
            for format in ["table", "csv", "json"] {
                let here = smelt(&["sql", sql, "--format", format]).ok().out;
                let there = smelt(&["sql", sql, "--format", format, "--ballista", &scheduler]).ok();
                assert_eq!(there.out, here, "{store}: {sql}: {}", there.err);
            }
        }
        let product = "select sum(length(text) * 9223372036854775807) from a";
        let said = smelt(&["sql", product, "--ballista", &scheduler]).fails(2).err;
        assert!(said.starts_with("error: the cluster cannot compute it: value of "), "{said}");
        let said = smelt(&["sql", "select metadata->>'a' from a", "--ballista", &scheduler]).fails(2).err;
        assert!(said.contains("error: the cluster does not know the function `json_"), "{said}");
    }
    // What the cluster writes down about queries has no secret.
    drop(processes);
    for log in ["scheduler.log", "executor0.log", "executor1.log"] {
        let text = std::fs::read_to_string(bench.path(log)).unwrap();
        assert!(!text.contains(SECRET), "{log}");
    }
}
