//! Groups of ranks: one rank on any device, and up to three ranks on simulated GPUs through a simulated NCCL, each a
//! thread. Expected values are computed here, by loops over what every rank had.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::collective::{Group, Nccl, Pending, Reduce, Solo};
use smelt_kernels::*;
use std::any::Any;
use std::process::Command;
use std::sync::{Arc, Barrier, LazyLock, Mutex, MutexGuard};
use std::thread;

/// One test at a time: ranks of different tests would share GPUs.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static GPUS: LazyLock<()> = LazyLock::new(|| simulator::with_nccl(3));
    let guard = ONE.lock().unwrap_or_else(|e| e.into_inner());
    LazyLock::force(&GPUS);
    guard
}

const ALL: [DType; 5] = [DType::F32, DType::F64, DType::Bf16, DType::E4m3, DType::U32];
const REDUCED: [DType; 4] = [DType::F32, DType::F64, DType::Bf16, DType::U32];

/// Whole numbers below 16, different on each rank: exact in every type, and so are sums of three.
fn values(rank: usize, seed: usize, n: usize) -> Vec<f64> {
    (0..n).map(|i| ((i * 7 + rank * 5 + seed * 3) % 16) as f64).collect()
}

fn tensor(values: &[f64], shape: &[usize], dtype: DType) -> Tensor {
    Tensor::new(shape, values).cast(dtype)
}

fn on(gpu: &dyn Backend, values: &[f64], shape: &[usize], dtype: DType) -> Tensor {
    gpu.upload(&tensor(values, shape, dtype))
}

/// What a thread panicked with.
fn text(payload: Box<dyn Any + Send>) -> String {
    let error = DeviceError::of_panic(payload.as_ref()).map(ToString::to_string);
    let error = error.or_else(|| payload.downcast_ref::<String>().cloned());
    error.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Runs `work` on every rank of a group of `size`; what each returned, or panicked with.
fn ranks<R: Send>(size: usize, work: impl Fn(&Arc<Cuda>, Nccl) -> R + Sync) -> Vec<Result<R, String>> {
    let (id, work) = (Nccl::unique_id().expect("the simulated NCCL opens"), &work);
    let run = move |rank: usize| {
        let gpu = Arc::new(Cuda::new(rank as u32).expect("the simulated GPU opens"));
        let group = Nccl::join(&gpu, &id, rank, size).unwrap_or_else(|e| panic!("{e}"));
        work(&gpu, group)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(text)).collect()
    })
}

fn all_good(results: Vec<Result<(), String>>) {
    for (rank, result) in results.into_iter().enumerate() {
        result.unwrap_or_else(|said| panic!("rank {rank}: {said}"));
    }
}

/// The reduction of what every rank had, by a loop.
fn reduced(all: &[Vec<f64>], reduce: Reduce) -> Vec<f64> {
    let column = |i: usize| all.iter().map(move |values| values[i]);
    let n = all[0].len();
    match reduce {
        Reduce::Sum => (0..n).map(|i| column(i).sum()).collect(),
        Reduce::Max => (0..n).map(|i| column(i).fold(f64::MIN, f64::max)).collect(),
        Reduce::Mean => (0..n).map(|i| column(i).sum::<f64>() / all.len() as f64).collect(),
    }
}

/// Equal, but for the rounding of a mean of three.
fn expect(what: &str, found: &Tensor, expected: &[f64], shape: &[usize]) {
    found.expect(what, shape);
    let least = match found.dtype() {
        DType::F32 => 1e-6,
        DType::Bf16 => 4e-3,
        _ => 1e-15,
    };
    for (i, (a, b)) in found.to_f64().iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= least * b.abs(), "{what}, {:?}, element {i}: {a}, expected {b}", found.dtype());
    }
}

/// Rows that rank `from` sends to rank `to`: ragged, some none.
fn count(from: usize, to: usize) -> usize {
    [3, 0, 130, 1, 2, 0, 5, 64, 7][(4 * from + to) % 9]
}

/// Every operation of one rank, against a loop over what all ranks have.
fn check_operations(device: &dyn Backend, group: &dyn Group) {
    let (rank, size) = (group.rank(), group.size());
    let everybody = |seed: usize, n: usize| (0..size).map(|r| values(r, seed, n)).collect::<Vec<_>>();
    for dtype in ALL {
        let all = everybody(1, 15);
        let pending = group.all_gather(&on(device, &all[rank], &[3, 5], dtype));
        expect("all_gather", &device.download(&pending.wait()), &all.concat(), &[3 * size, 5]);

        // around a ring, the first rank receives last
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let send = || group.send(&on(device, &all[rank], &[15], dtype), next);
        let receive = || device.download(&group.receive([15].into(), dtype, before).wait());
        let received = if rank == 0 {
            let sent = send();
            let received = receive();
            sent.wait();
            received
        } else {
            let received = receive();
            send().wait();
            received
        };
        expect("send and receive", &received, &all[before], &[15]);

        let width = 6;
        let (sent, received): (Vec<_>, Vec<_>) = (0..size).map(|r| (count(rank, r), count(r, rank))).unzip();
        let n = sent.iter().sum::<usize>();
        let mut expected = Vec::new();
        for from in 0..size {
            let total = (0..size).map(|to| count(from, to)).sum::<usize>();
            let start = (0..rank).map(|to| count(from, to)).sum::<usize>();
            let rows = values(from, 2, total * width);
            expected.extend_from_slice(&rows[start * width..(start + count(from, rank)) * width]);
        }
        let rows = on(device, &values(rank, 2, n * width), &[n, width], dtype);
        let found = device.download(&group.all_to_all(&rows, &sent, &received).wait());
        expect("all_to_all", &found, &expected, &[received.iter().sum(), width]);

        let nobody = vec![0; size];
        let none = group.all_to_all(&on(device, &[], &[0, width], dtype), &nobody, &nobody).wait();
        none.expect("all_to_all of nothing", [0, width]);
        group.all_gather(&none).wait().expect("all_gather of nothing", [0, width]);
    }
    for dtype in REDUCED {
        for reduce in [Reduce::Sum, Reduce::Max, Reduce::Mean] {
            if (dtype, reduce) == (DType::U32, Reduce::Mean) {
                continue;
            }
            let all = everybody(3, 2 * size * 4);
            let expected = reduced(&all, reduce);
            let mut x = on(device, &all[rank], &[2 * size, 4], dtype);
            let scattered = group.reduce_scatter(&x, reduce).wait();
            let part = &expected[rank * 8..(rank + 1) * 8];
            expect(&format!("reduce_scatter, {reduce:?}"), &device.download(&scattered), part, &[2, 4]);
            group.all_reduce(&mut x, reduce);
            expect(&format!("all_reduce, {reduce:?}"), &device.download(&x), &expected, &[2 * size, 4]);
        }
    }
}

#[test]
fn a_world_of_one_has_every_operation_on_any_device() {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(1));
    for device in [cpu.clone(), Arc::new(Fenced::new(cpu))] {
        check_operations(device.as_ref(), &Solo::new(device.clone()));
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_world_of_one_is_the_same_on_a_gpu_and_through_nccl() {
    let _one = alone();
    let gpu = Arc::new(Cuda::new(0).expect("the simulated GPU opens"));
    check_operations(gpu.as_ref(), &Solo::new(gpu.clone()));
    all_good(ranks(1, |gpu, group| check_operations(gpu.as_ref(), &group)));
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn several_ranks_give_what_loops_over_all_of_them_give() {
    let _one = alone();
    for size in [2, 3] {
        all_good(ranks(size, |gpu, group| check_operations(gpu.as_ref(), &group)));
    }
}

fn host_waits() -> u64 {
    let report = simulator::report();
    let (_, rest) = report.split_once("\"host_waits\": ").expect("it counts them");
    rest.split(',').next().and_then(|count| count.parse().ok()).expect("a number")
}

/// The simulated NCCL works as late as it may, and lets results hold NaN until then: a result that nobody waits for, or
/// memory that is given back too early, would show.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn the_device_waits_and_the_host_does_not() {
    let _one = alone();
    let together = Barrier::new(2); // the driver counts waits of both
    let results = ranks(2, |gpu, group| {
        let device: &dyn Backend = gpu.as_ref();
        let (rank, n) = (group.rank(), 600);
        together.wait();
        let have = [values(0, 1, n), values(1, 1, n)];
        let before = host_waits();
        let mut x = on(device, &have[rank], &[n], DType::F32);
        device.scale(&mut x, 2.0, 1.0); // by a kernel, on the stream that the communication must wait for
        let gathered = group.all_gather(&x);
        drop(x);
        // Memory of the same size while the communication is on its way: it must not be that of x.
        let other = on(device, &vec![-1.0; n], &[n], DType::F32);
        let mut gathered = gathered.wait();
        device.scale(&mut gathered, 0.5, 1.0);
        // one result is what the next communication reads
        let swapped = group.all_to_all(&gathered.clone().reshape([n, 2]), &[n / 2, n / 2], &[n / 2, n / 2]).wait();
        // nobody wants this one; the memory that it writes is given back behind it
        drop(group.all_gather(&other));
        let again = on(device, &vec![-2.0; 2 * n], &[2 * n], DType::F32);
        let waits = host_waits() - before;
        together.wait();
        (waits, [gathered, swapped, other, again].map(|x| device.download(&x).to_f64()))
    });
    for (rank, result) in results.into_iter().enumerate() {
        let n = 600;
        let (waits, [gathered, swapped, other, again]) = result.unwrap_or_else(|said| panic!("rank {rank}: {said}"));
        assert_eq!(waits, 0, "the host waited");
        let both = [values(0, 1, n), values(1, 1, n)].concat();
        let half = &both[rank * n..(rank + 1) * n];
        assert!(gathered == both && swapped == [half, half].concat(), "rank {rank}");
        assert!(other == vec![-1.0; n] && again == vec![-2.0; 2 * n], "rank {rank}");
    }
}

#[test]
#[should_panic(expected = "tensor: written while a clone of it is alive")]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn what_is_on_its_way_cannot_be_written() {
    let _one = alone();
    let result = ranks(1, |gpu, group| {
        let device: &dyn Backend = gpu.as_ref();
        let mut x = device.zeros([8], DType::F32);
        let sent = group.all_gather(&x);
        device.fill(&mut x, 1.0);
        drop(sent.wait());
    });
    all_good(result);
}

/// What every rank said when it could not go on.
fn failures<R: Send>(size: usize, work: impl Fn(&Arc<Cuda>, Nccl) -> R + Sync) -> Vec<String> {
    let results = ranks(size, work);
    results.into_iter().enumerate().map(|(rank, r)| r.err().unwrap_or_else(|| panic!("rank {rank} went on"))).collect()
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_rank_that_panics_ends_the_others() {
    let _one = alone();
    let said = failures(3, |gpu, group| {
        let device: &dyn Backend = gpu.as_ref();
        let mut x = on(device, &[1.0], &[1], DType::F64);
        group.all_reduce(&mut x, Reduce::Sum);
        assert!(group.rank() != 1, "the disk is full");
        // one waits on the host, one asks for more and more
        loop {
            group.all_reduce(&mut x, Reduce::Sum);
            if group.rank() == 2 {
                device.download(&x);
            }
        }
    });
    assert_eq!(said[1], "the disk is full");
    for rank in [0, 2] {
        let expected = format!(
            "NCCL failed to communicate on rank {rank} of 3: remote process exited or there was a network error: \
             rank 1 has aborted"
        );
        assert_eq!(said[rank], expected);
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_group_that_failed_fails_ever_after_and_says_what_to_do() {
    let _one = alone();
    let results = ranks(2, |gpu, group| {
        let device: &dyn Backend = gpu.as_ref();
        let rank = group.rank();
        let x = on(device, &[1.0; 6], &[6], DType::Bf16);
        let caught = |work: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(text).err();
        let first = caught(&|| {
            let moved =
                if rank == 0 { group.send(&x, 1) } else { drop_value(group.receive([7].into(), DType::Bf16, 0)) };
            moved.wait();
            gpu.wait();
        });
        let second = caught(&|| drop(group.all_gather(&x)));
        (first.expect("it fails"), second.expect("it fails again"))
    });
    for (rank, result) in results.into_iter().enumerate() {
        let (first, second) = result.unwrap();
        let expected = format!(
            "NCCL failed to communicate on rank {rank} of 2: invalid usage: rank 0 calls send of 6 elements of type 9 \
             to rank 1, but rank 1 calls receive of 7 elements of type 9 from rank 0"
        );
        assert_eq!([first, second], [expected.clone(), expected]);
    }
}

fn drop_value(pending: Pending<Tensor>) -> Pending<()> {
    drop(pending);
    Solo::new(Arc::new(Cpu::new(1))).send(&Tensor::zeros([1], DType::F32), 0)
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_rank_that_leaves_is_not_waited_for() {
    let _one = alone();
    let results = ranks(2, |gpu, group| {
        if group.rank() == 0 {
            let device: &dyn Backend = gpu.as_ref();
            device.download(&group.all_gather(&device.zeros([4], DType::F32)).wait());
        }
    });
    let said = results[0].as_ref().expect_err("rank 0 cannot go on");
    let expected = "NCCL failed to communicate on rank 0 of 2: remote process exited or there was a network error: \
                    rank 0 calls all-gather of 4 elements of type 7, but rank 1 has left";
    assert_eq!((said.as_str(), &results[1]), (expected, &Ok(())));
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn two_ranks_on_one_gpu_are_refused() {
    let _one = alone();
    let id = Nccl::unique_id().unwrap();
    let join = |rank: usize| Nccl::join(&Arc::new(Cuda::new(0).unwrap()), &id, rank, 2).map(drop);
    let said = thread::scope(|scope| [0, 1].map(|rank| scope.spawn(move || join(rank))).map(|t| t.join().unwrap()));
    for (rank, error) in said.into_iter().enumerate() {
        let error = error.expect_err("it cannot work");
        let expected = format!(
            "NCCL failed to make a group on rank {rank} of 2: invalid usage: ranks 0 and 1 are both on device 0"
        );
        assert_eq!(error.to_string(), expected);
        assert!(error.is_temporary() && error.hint().starts_with("see what the other ranks say"), "{}", error.hint());
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn wrong_shapes_and_types_are_our_bug() {
    let _one = alone();
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(1));
    let of = |device: &dyn Backend, group: &dyn Group| {
        let x = |shape: &[usize], dtype: DType| device.zeros(shape, dtype);
        let wrong: [(&str, &dyn Fn()); 8] = [
            ("all_reduce: E4m3 is only moved: without its scales it has no Sum", &|| {
                group.all_reduce(&mut x(&[4], DType::E4m3), Reduce::Sum);
            }),
            ("reduce_scatter: expected F32, F64 or Bf16, found U32, which has no Mean", &|| {
                drop(group.reduce_scatter(&x(&[4], DType::U32), Reduce::Mean));
            }),
            ("all_to_all: expected counts for 1 ranks, found 2 to send and 1 to receive", &|| {
                drop(group.all_to_all(&x(&[4, 2], DType::F32), &[2, 2], &[4]));
            }),
            ("all_to_all: expected 4 rows to be sent, found counts of 3", &|| {
                drop(group.all_to_all(&x(&[4, 2], DType::F32), &[3], &[3]));
            }),
            ("all_to_all: rank 0 sends itself 4 rows and receives 5", &|| {
                drop(group.all_to_all(&x(&[4, 2], DType::F32), &[4], &[5]));
            }),
            ("send: expected a rank below 1, found 1", &|| drop(group.send(&x(&[4], DType::F32), 1))),
            ("receive: rank 0 has sent itself nothing", &|| drop(group.receive([4].into(), DType::F32, 0))),
            ("receive: expected F64, found F32", &|| {
                group.send(&x(&[4], DType::F32), 0).wait();
                drop(group.receive([4].into(), DType::F64, 0));
            }),
        ];
        for (expected, work) in wrong {
            let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(text);
            assert_eq!(said.expect_err(expected), expected);
        }
    };
    of(cpu.as_ref(), &Solo::new(cpu.clone()));
    all_good(ranks(1, |gpu, group| of(gpu.as_ref(), &group)));
    all_good(ranks(2, |gpu, group| {
        let device: &dyn Backend = gpu.as_ref();
        let scatter = || drop(group.reduce_scatter(&device.zeros([3, 2], DType::F32), Reduce::Sum));
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(scatter)).map_err(text);
        assert_eq!(said.expect_err("3 rows"), "reduce_scatter: expected rows in 2 equal parts, found [3, 2]");
    }));
}

/// Set in a process that a test starts for an environment of its own.
const APART: &str = "SMELT_TEST_APART";

fn is_apart() -> bool {
    std::env::var_os(APART).is_some()
}

/// The test of this name in a process of its own, where [`is_apart`] holds; what it printed.
fn apart(test: &str, environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env_remove("LD_LIBRARY_PATH");
    let output = command.env(APART, "1").envs(environment.iter().copied()).output().expect("the test starts");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn an_nccl_that_cannot_be_used_says_why() {
    if is_apart() {
        return match Nccl::unique_id() {
            Ok(_) => println!("there is {}", Nccl::found().unwrap()),
            Err(error) => println!("error: {error}\nhint: {}", error.hint()),
        };
    }
    let (out, _) = simulator::build();
    let library = out.join("libnccl.so.2").display().to_string();
    let say = |environment: &[(&str, &str)]| apart("an_nccl_that_cannot_be_used_says_why", environment);
    let there = say(&[("SMELT_NCCL", &library)]);
    assert!(there.contains(&format!("there is NCCL 2.27.3, {library}\n")), "{there}");
    let missing = say(&[("SMELT_NCCL", "/nowhere/libnccl.so.2")]);
    assert!(
        missing.contains(
            "error: NCCL cannot be opened: /nowhere/libnccl.so.2: cannot open shared object file: No such file or \
             directory\nhint: set SMELT_NCCL to the file `libnccl.so.2` of NCCL, or unset it\n"
        ),
        "{missing}"
    );
    let old = say(&[("SMELT_NCCL", &library), ("SMELT_SIM_NCCL_VERSION", "21805")]);
    assert!(
        old.contains(&format!(
            "error: NCCL 2.18.5 ({library}) is too old: smelt needs 2.19.0\n\
             hint: update it (`pip install -U nvidia-nccl-cu12`), or set SMELT_NCCL to the file of a newer one\n"
        )),
        "{old}"
    );
}

/// Both ranks send first, so neither is received from; prints how each ends.
fn send_to_each_other() {
    let _one = alone();
    let said = failures(2, |gpu, group| {
        let device: &dyn Backend = gpu.as_ref();
        let x = device.zeros([4], DType::F32);
        group.send(&x, 1 - group.rank()).wait();
        device.download(&group.receive([4].into(), DType::F32, 1 - group.rank()).wait())
    });
    said.iter().for_each(|said| println!("said: {said}"));
}

/// What NVIDIA's NCCL does not notice, and would wait for without end.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn nobody_waits_for_ever() {
    if is_apart() {
        return send_to_each_other();
    }
    let begun = std::time::Instant::now();
    let limits = [("SMELT_NCCL_SECONDS", "1"), ("SMELT_SIM_NCCL_SECONDS", "60")];
    let said = apart("nobody_waits_for_ever", &limits);
    let gave_up = |rank: usize| format!("said: rank {rank} of 2 has waited 1 s for another rank, in vain\n");
    // who gives up first tells the other one
    assert!(said.contains(&gave_up(0)) || said.contains(&gave_up(1)), "{said}");
    assert!(said.matches("said: ").count() == 2 && begun.elapsed().as_secs() < 30, "{said}");
}
