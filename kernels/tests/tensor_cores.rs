//! The kernels for Hopper's tensor cores on the simulated GPU, against the CPU: shapes that fill the rings of shared
//! memory several times, ragged ends, empty segments.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::fp8::{Operand, Quantiser, Role, Tile};
use smelt_kernels::*;
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

/// One test at a time: the driver counts launches for all of them.
static ONE: Mutex<()> = Mutex::new(());

fn low() -> &'static Cuda {
    static LOW: LazyLock<Cuda> = LazyLock::new(|| {
        simulator::gpu();
        Cuda::new(0).expect("the simulated GPU opens").in_low_precision()
    });
    &LOW
}

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| random::normal(seed, 1, i as u64) as f32).collect();
    Tensor::new(shape, &values)
}

/// ‖a − b‖ / ‖b‖
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let (a, b) = (a.to_f64(), b.to_f64());
    assert_eq!(a.len(), b.len());
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Launches of a kernel so far.
fn launches(kernel: &str) -> u64 {
    let report = simulator::report();
    let count = report.split_once(&format!("\"{kernel}\": {{\"launches\": ")).map_or("0", |(_, rest)| rest);
    count.split(',').next().unwrap_or_default().parse().unwrap_or(0)
}

/// Runs `work`, which must launch the kernel, for narrow tiles or for wide ones.
fn launching<R>(kernel: &str, work: impl FnOnce() -> R) -> R {
    let count = || launches(kernel) + launches(&format!("{kernel}_wide"));
    let before = count();
    let result = work();
    assert!(count() > before, "`{kernel}` was not launched");
    result
}

/// Set where tests run on a GPU with one multiprocessor, on which all but the smallest products have wide tiles.
const PROCESSORS: &str = "SMELT_SIM_PROCESSORS";

/// How the operand is lowered: to bf16, or to FP8 by tiles.
fn lowered(device: &dyn Backend, x: &Tensor, tile: Option<Tile>, role: Role, segments: Option<&Segments>) -> Operand {
    let how = tile.map(|tile| Quantiser { tile, role, power_of_two: false });
    device.lower(&device.upload(x), how, segments, &mut device.zeros([1], DType::U32))
}

const COUNTS: [&[usize]; 3] = [&[300], &[130, 0, 1, 129, 0], &[0, 64]];

/// Exact products, summed in f32 in another order: a few roundings of a sum of hundreds of terms.
const F32_SUMS: f64 = 2e-6;

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn products_are_those_of_the_cpu() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let (cpu, gpu): (Cpu, &dyn Backend) = (Cpu::new(2), low());
    // in bf16, and in FP8 by tiles for products and for gradients
    let tiles = [None, Some((Tile::Row, Tile::Column)), Some((Tile::Block, Tile::Block))];
    let cases = COUNTS.iter().flat_map(|counts| tiles.map(|tiles| (counts, tiles)));
    for (at, (counts, tiles)) in cases.enumerate() {
        let (segments, seed, fp8) = (Segments::of_counts(counts), 10 * at as u64, tiles.is_some());
        let (n, out, inner, experts) = (segments.rows(), 250, 900, counts.len());
        let grouped = (experts > 1).then_some(&segments);
        let on_gpu = segments.on(gpu);
        let of_gpu = grouped.map(|_| &on_gpu);
        let w = if experts > 1 { noise(seed, &[experts, out, inner]) } else { noise(seed, &[out, inner]) };
        for (layout, k, cols) in [(Layout::Nt, inner, out), (Layout::Nn, out, inner)] {
            let (a, start) = (noise(seed + 1, &[n, k]), noise(seed + 2, &[n, cols]));
            let tile = tiles.map(|(tile, _)| tile);
            let run = |device: &dyn Backend, segments: Option<&Segments>, write: Write| {
                let a = lowered(device, &a, tile, Role::Activation, segments);
                let mut c = device.copy(&device.upload(&start));
                device.low_gemm(layout, &a, &device.upload(&w), segments, &mut c, write);
                device.download(&c)
            };
            let kernel = match (fp8, layout) {
                (true, _) => "fp8_gemm",
                (false, Layout::Nt) => "bf16_gemm",
                (false, _) => "bf16_gemm_nn",
            };
            for write in [Write::Set, Write::Add] {
                let found = launching(kernel, || run(gpu, of_gpu, write));
                let off = distance(&found, &run(&cpu, grouped, write));
                assert!(off < F32_SUMS, "{kernel}, {layout:?}, {write:?}, {counts:?}: {off}");
            }
        }
        let (dy, x, start) =
            (noise(seed + 3, &[n, out]), noise(seed + 4, &[n, inner]), noise(seed + 5, w.shape().dims()));
        let run = |device: &dyn Backend, segments: Option<&Segments>, write: Write| {
            let tile = tiles.map(|(_, tile)| tile);
            let dy = lowered(device, &dy, tile, Role::Gradient, segments);
            let x = lowered(device, &x, tile, Role::Activation, segments);
            let mut dw = device.copy(&device.upload(&start));
            device.low_gradient(&dy, &x, segments, &mut dw, write);
            device.download(&dw)
        };
        let kernel = if fp8 { "fp8_gradient" } else { "bf16_gradient" };
        for write in [Write::Set, Write::Add] {
            let found = launching(kernel, || run(gpu, of_gpu, write));
            let off = distance(&found, &run(&cpu, grouped, write));
            assert!(off < F32_SUMS, "{kernel}, {write:?}, {counts:?}: {off}");
        }
    }
    if std::env::var_os(PROCESSORS).is_some() {
        for kernel in ["fp8_gemm", "fp8_gradient", "bf16_gemm", "bf16_gemm_nn", "bf16_gradient"] {
            assert!(launches(&format!("{kernel}_wide")) > 0, "`{kernel}_wide` was not launched");
        }
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn products_in_wide_tiles_are_the_same() {
    let mut again = Command::new(std::env::current_exe().unwrap());
    run(again.args(["products_are", "rows_do_not"]).env(PROCESSORS, "1"));
}

/// A row's bits are its own: alone, or with others beside it, whose number also decides about the width of tiles.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn rows_do_not_depend_on_their_company() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let gpu: &dyn Backend = low();
    let (a, w) = (noise(1, &[300, 640]), gpu.upload(&noise(2, &[520, 640])));
    for tile in [None, Some(Tile::Row)] {
        let product = |rows: usize| {
            let a = Tensor::new([rows, 640], &a.read::<f32>()[..rows * 640]);
            let (a, mut c) = (lowered(gpu, &a, tile, Role::Activation, None), gpu.zeros([rows, 520], DType::F32));
            gpu.low_gemm(Layout::Nt, &a, &w, None, &mut c, Write::Set);
            gpu.download(&c).to_f32()
        };
        let whole = product(300);
        for rows in [1, 37, 129] {
            assert!(product(rows) == whole[..rows * 520], "{tile:?}, {rows} rows");
        }
    }
}

/// Queries, keys, values and probabilities are rounded to bf16, whose unit is 2⁻⁸ of a value: half of it on average
/// is left out of each.
const BF16_ATTENTION: f64 = 8e-3;

fn documents(device: &dyn Backend, lengths: &[usize]) -> Documents {
    Documents::new(device, DocumentBounds::of_lengths(lengths))
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn latent_attention_is_that_of_the_cpu() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let (cpu, gpu): (Cpu, &dyn Backend) = (Cpu::new(2), low());
    let s = AttentionShape { heads: 2, nope: 128, rope: 64, value: 128, scale: 0.07 };
    let lengths = [5, 130, 1, 64];
    let n = lengths.iter().sum::<usize>();
    let inputs = [2 * 192, 2 * 256, 64, 2 * 128].map(|cols| noise(cols as u64, &[n, cols]));
    let run = |device: &dyn Backend| {
        let [q, kv, k_rope, d_o] = inputs.each_ref().map(|x| device.upload(x));
        let documents = documents(device, &lengths);
        let (o, softmax) = device.attention(&s, &q, &kv, &k_rope, &documents);
        let (dq, dkv, d_rope) = device.attention_backward(&s, &q, &kv, &k_rope, &o, &softmax, &d_o, &documents);
        [o, dq, dkv, d_rope].map(|x| device.download(&x))
    };
    let found = launching("flash_queries_192_128", || run(gpu));
    for ((name, found), expected) in ["o", "dq", "dkv", "dk_rope"].iter().zip(&found).zip(&run(&cpu)) {
        let off = distance(found, expected);
        assert!(off < BF16_ATTENTION, "{name}: {off}");
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn grouped_attention_is_that_of_the_cpu() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let (cpu, gpu): (Cpu, &dyn Backend) = (Cpu::new(2), low());
    for (dim, lengths, kernel) in [(64, [150, 33], "flash_keys_64_64"), (128, [20, 131], "flash_keys_128_128")] {
        let s = GroupedShape { heads: 4, kv_heads: 2, dim, scale: 0.1 };
        let n = lengths.iter().sum::<usize>();
        let inputs = [4, 2, 2, 4].map(|heads| noise((heads * dim) as u64, &[n, heads * dim]));
        let run = |device: &dyn Backend| {
            let [q, k, v, d_o] = inputs.each_ref().map(|x| device.upload(x));
            let documents = documents(device, &lengths);
            let (o, softmax) = device.grouped_attention(&s, &q, &k, &v, &documents);
            let (dq, dk, dv) = device.grouped_attention_backward(&s, &q, &k, &v, &o, &softmax, &d_o, &documents);
            [o, dq, dk, dv].map(|x| device.download(&x))
        };
        let found = launching(kernel, || run(gpu));
        for ((name, found), expected) in ["o", "dq", "dk", "dv"].iter().zip(&found).zip(&run(&cpu)) {
            let off = distance(found, expected);
            assert!(off < BF16_ATTENTION, "{dim} wide, {name}: {off}");
        }
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn the_head_is_that_of_the_cpu() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let (cpu, gpu): (Cpu, &dyn Backend) = (Cpu::new(2), low());
    let (n, d, v) = (150, 130, 610);
    let (x, w, dlogp) = (noise(1, &[n, d]), noise(2, &[v, d]), noise(3, &[n]).cast(DType::F64));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % v as u32).collect();
    let run = |device: &dyn Backend| {
        let (x, w, targets) = (device.upload(&x), device.upload(&w), device.ids(&targets));
        let (dlogp, dlse) = (device.upload(&dlogp), device.numbers(&vec![0.0; n]));
        let mut dw = device.zeros([v, d], DType::F32);
        let head = device.head(&x, &w, &targets);
        let logp = device.copy(&head.logp);
        let dx = device.head_backward(head, &x, &w, &targets, &dlogp, &dlse, &mut dw);
        [logp, dx, dw].map(|x| device.download(&x))
    };
    let found = launching("logits_gradient_bf16", || run(gpu));
    for ((name, found), expected) in ["logp", "dx", "dw"].iter().zip(&found).zip(&run(&cpu)) {
        let off = distance(found, expected);
        assert!(off < 1e-2, "{name}: {off}");
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("the program starts");
    let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{}", said[0], said[1]);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn the_simulator_reports_planted_faults() {
    run(Command::new("bash").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/test.sh")));
}

/// Under other orders of threads and copies, with 1 to 3 blocks, at sizes that the host path does not use.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn kernels_of_the_tensor_cores_hold_under_any_order() {
    let (out, _) = simulator::build();
    let (source, program) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/check/cores.cpp"), out.join("cores"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let mut compile = Command::new(compiler);
    compile.args(["-std=gnu++17", "-O2", "-Wno-psabi", "-o"]).arg(&program).arg(source).arg(out.join("libcuda.so.1"));
    run(compile.arg(format!("-Wl,-rpath,{}", out.display())));
    run(&mut Command::new(program));
}

/// AdamW writes the FP8 forms of a weight that has some: the products after it are those of a weight that is quantised
/// anew, and so are weight and moments.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_step_writes_the_fp8_forms_of_its_weight() {
    let _one = ONE.lock();
    let gpu = low();
    let device = gpu as &dyn Backend;
    for (experts, [out, inner], moments, power_of_two) in [
        (1, [128, 256], DType::F32, false),
        (1, [70, 150], DType::Bf16, true),
        (3, [200, 300], DType::Bf16, false),
        (2, [130, 64], DType::F32, true),
    ] {
        let shape = if experts == 1 { vec![out, inner] } else { vec![experts, out, inner] };
        let host = Segments::of_counts(&vec![9; experts]);
        let on_device = host.on(device);
        let segments = (experts > 1).then_some(&on_device);
        let how = Quantiser { tile: Tile::Row, role: Role::Activation, power_of_two };
        let operand = |cols: usize| {
            let x = device.upload(&noise(1, &[9 * experts, cols]));
            device.lower(&x, Some(how), segments, &mut device.zeros([1], DType::U32))
        };
        let products = |w: &Tensor| -> Vec<Vec<f64>> {
            [(Layout::Nt, inner, out), (Layout::Nn, out, inner)]
                .map(|(layout, k, cols)| {
                    let mut c = device.empty([9 * experts, cols].into(), DType::F32);
                    device.low_gemm(layout, &operand(k), w, segments, &mut c, Write::Set);
                    device.download(&c).to_f64()
                })
                .into()
        };
        let hyper = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step: 3 };
        let run = |is_low: bool| {
            let mut w = device.upload(&noise(2, &shape));
            let dw = device.upload(&noise(3, &shape));
            let moment = |seed| {
                let values: Vec<f32> = noise(seed, &shape).read::<f32>().iter().map(|x| x.abs()).collect();
                device.cast(&device.upload(&Tensor::new(shape.as_slice(), &values)), moments)
            };
            let (mut m, mut v) = (moment(4), moment(5));
            if is_low {
                products(&w);
            }
            let before = launches("adamw_fp8");
            device.adamw(&hyper, &mut w, &dw, &device.numbers(&[0.5]), &mut m, &mut v);
            device.download(&device.numbers(&[0.0])); // until then the driver may not know of the launch
            assert_eq!(launches("adamw_fp8") - before, u64::from(is_low), "{shape:?}");
            let before = launches("quantise_blocks");
            let all = [products(&w), [w, m, v].map(|x| device.download(&x).to_f64()).into()].concat();
            assert_eq!(launches("quantise_blocks") - before, u64::from(!is_low), "{shape:?}: nothing is lowered again");
            all
        };
        assert!(run(true) == run(false), "{shape:?}, {moments:?}");
    }
}

/// A grid has so many blocks at most; each goes on with other rows.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn more_rows_than_blocks_are_computed() {
    let (x, rows) = (noise(1, &[700, 260]), (0..700).rev().collect::<Vec<u32>>());
    let on = |device: &dyn Backend| {
        let x = device.upload(&x);
        let mut narrow = device.split(&x, 3).0;
        device.bias(&mut narrow, &device.upload(&noise(2, &[3])));
        [device.gather(&x, &device.ids(&rows)), narrow].map(|x| device.download(&x).to_f64())
    };
    assert!(on(simulator::gpu().as_ref()) == on(&Cpu::new(1)));
}

/// A row of more logits than shared memory holds.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_token_of_a_large_vocabulary_is_drawn_as_on_the_cpu() {
    let logits = noise(1, &[2, 70_000]);
    let draws: Vec<Draw> = [(0, 0.0), (0, 1.0), (1, 0.7), (1, 1.0), (0, 1.3)]
        .into_iter()
        .zip(0..)
        .map(|((row, temperature), place)| Draw { row, temperature, top_p: 1.0, top_k: 0, seed: 5, place })
        .collect();
    let on = |device: &dyn Backend| {
        let (tokens, logp) = device.draw(&device.upload(&logits), &draws);
        (device.download(&tokens).read::<u32>().to_vec(), device.download(&logp))
    };
    let ((found, logp), (expected, of_cpu)) = (on(simulator::gpu().as_ref()), on(&Cpu::new(1)));
    assert_eq!(found, expected);
    assert!(expected.iter().any(|&token| token > 58_000), "no token that is read again: {expected:?}");
    assert!(distance(&logp, &of_cpu) < 1e-6);
}

/// Of generation: a block serves eight heads, here of 3 × 11, and sixteen of 19 that all read one latent.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn more_heads_than_a_block_serves_read_one_key() {
    let grouped = GroupedShape { heads: 33, kv_heads: 3, dim: 10, scale: 0.3 };
    let latent = AttentionShape { heads: 19, nope: 8, rope: 4, value: 6, scale: 0.1 };
    let on = |device: &dyn Backend| {
        let [q, of_latent, kv_b] =
            [[5, 330], [5, 19 * 12], [19 * 14, 20]].map(|shape| device.upload(&noise(1, &shape)));
        let [pages, latents] = [60, 24].map(|width| [2, 3].map(|seed| device.upload(&noise(seed, &[100, width]))));
        let request = |pages| CachedRows { rows: 0..5, pages, length: 180 };
        let o = device.cached_attention(&grouped, &q, &[request(&pages)]);
        [o, device.latent_attention(&latent, &of_latent, &kv_b, &[request(&latents)])].map(|x| device.download(&x))
    };
    for (found, expected) in on(simulator::gpu().as_ref()).iter().zip(&on(&Cpu::new(1))) {
        assert!(distance(found, expected) < 1e-5, "{}", distance(found, expected));
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn many_tiles_have_one_scale() {
    let rows = Segments::of_counts(&[768]); // 42 tiles, with rows of whole tiles on both
    let mut x = noise(1, &[768, 896]);
    x.write::<f32>()[768 * 896 - 1] = 100.0;
    let on = |device: &dyn Backend| match lowered(device, &x, Some(Tile::Tensor), Role::Weight, Some(&rows.on(device)))
    {
        Operand::Fp8(lowered) => [lowered.q, lowered.scale].map(|x| device.download(&x).to_f64()),
        Operand::Plain(_) => panic!("not quantised"),
    };
    assert!(on(simulator::gpu().as_ref()) == on(&Cpu::new(1)));
}

/// A block of the embedding's gradient has the ids that are equal modulo 256, and takes 256 of their rows at a time.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn many_rows_of_few_ids_are_added_in_order() {
    let ids: Vec<u32> = (0..900).map(|i| [5, 261, 5, 517, 7][random::below(1, 2, i, 5) as usize]).collect();
    let on = |device: &dyn Backend| {
        let (dx, mut dw) = (device.upload(&noise(1, &[900, 300])), device.upload(&noise(2, &[600, 300])));
        device.embedding_backward(&device.ids(&ids), &dx, &mut dw);
        device.download(&dw).to_f64()
    };
    assert!(on(simulator::gpu().as_ref()) == on(&Cpu::new(1)));
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn tokens_may_have_more_choices_than_a_warp_has_threads() {
    let router = Router { experts: 50, expert_groups: 1, node_limit: 1, top_k: 40, normalise: true, scale: 1.0 };
    let on = |device: &dyn Backend| {
        let [logits, x] = [50, 200].map(|cols| device.upload(&noise(1, &[9, cols])));
        let r = device.route(&router, &logits, &device.zeros([50], DType::F32));
        let rows = device.dispatch(&x, &r);
        let (mut y, mut dx) = (device.copy(&x), device.copy(&x));
        device.combine(&rows, &r, &mut y);
        device.gather_backward(&rows, &r.slots, &mut dx);
        let (drows, _) = device.combine_backward(&rows, &r, &x);
        [r.ids, rows, y, dx, drows].map(|x| device.download(&x).to_f64())
    };
    assert!(on(simulator::gpu().as_ref()) == on(&Cpu::new(1)));
}
