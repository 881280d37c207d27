//! Tests of the tests: planted faults (`kernels/host/faults/faults.cu`) must be found, their sound twins must not.

use crate::check::disagreement;
use crate::host::host_driver;
use crate::{F32, Noise, SEEDS};
use fusedpo::backend::gpu::driver::{Arg, Driver, Dtype, Grid, Kernel};
use fusedpo::backend::gpu::host::HostDriver;
use fusedpo::backend::gpu::{Buf, Gpu};
use half::bf16;

const N: usize = 256;

/// Runs a kernel `out <- x` of `n` outputs and gives the output, which starts as NaN.
fn run(kernel: &'static str, grid: Grid, n: usize, seed: u64, extra: &[Arg]) -> Option<Result<Vec<f64>, String>> {
    let gpu = Gpu::<_, f32>::new(host_driver(seed)?).unwrap();
    let x: Vec<f32> = input().iter().map(|x| *x as f32).collect();
    let (mut out, mut input): (Buf<HostDriver, f32>, Buf<HostDriver, f32>) =
        (gpu.alloc("out", n).unwrap(), gpu.alloc("x", 2 * N).unwrap());
    gpu.put(out.all_mut(), &vec![f32::NAN; n]).unwrap();
    gpu.put(input.all_mut(), &x).unwrap();
    let args = [&[out.all_mut().arg(), input.all().arg()], extra].concat();
    // SAFETY: two live buffers of this driver; what a faulty kernel does beyond them lands in the fence around each.
    let result = unsafe { gpu.driver().launch(Kernel { op: kernel, dtype: Dtype::F32 }, grid, &args) };
    Some(result.map_err(|e| e.to_string()).map(|()| {
        let mut got = vec![0.0f32; n];
        gpu.get(&mut got, out.all()).unwrap();
        got.into_iter().map(f64::from).collect()
    }))
}

fn input() -> Vec<f64> {
    Noise(3).vec::<f32>(2 * N, 1.0)
}

/// How many of the schedules see that `kernel` is wrong: an error, or an output that is not `want`.
fn found(kernel: &'static str, grid: Grid, want: &[f64], extra: &[Arg]) -> usize {
    let wrong = |seed: &&u64| match run(kernel, grid, want.len(), **seed, extra) {
        None => true, // no C++ compiler: said on stderr
        Some(Err(_)) => true,
        Some(Ok(got)) => disagreement(kernel, &got, want, F32, 0.0).is_some(),
    };
    SEEDS.iter().filter(wrong).count()
}

#[test]
fn sound_kernels_pass_and_faulty_ones_fail() {
    if host_driver(0).is_none() {
        return;
    }
    let x = input();
    let block = |threads| Grid::new([1, 1], threads);
    let n = Arg::I32(N as i32);
    let sum = [x[..N].iter().sum()];
    assert_eq!(found("fault_none", block(N), &sum, &[]), 0);
    assert!(found("fault_barrier_removed", block(N), &sum, &[]) >= 3);
    assert_eq!(found("fault_none_async", block(64), &x[..64], &[]), 0);
    assert_eq!(found("fault_wait_forgotten", block(64), &x[..64], &[]), 4);
    assert_eq!(found("fault_wait_after_use", block(64), &x[..64], &[]), 4);
    assert_eq!(found("fault_none_reused", block(64), &x[..64], &[]), 0);
    assert!(found("fault_copy_lands_on_top", block(64), &x[..64], &[]) >= 2);
    assert_eq!(found("fault_copies_left_behind", block(64), &x[..64], &[]), 4);
    assert!(found("fault_wait_without_barrier", block(64), &x[..64], &[]) >= 2);
    // Behind an operation of the warp a missing barrier is still seen.
    let twice: Vec<f64> = (0..N).map(|i| (i + 32) % N).map(|next| x[next] + x[N + next]).collect();
    assert_eq!(found("fault_none_twice", block(N), &twice, &[]), 0);
    for kernel in ["fault_shuffle_for_barrier", "fault_mma_for_barrier", "fault_ldmatrix_for_barrier"] {
        assert!(found(kernel, block(N), &twice, &[]) >= 3, "{kernel}");
    }
    // In launch order the first thread comes first: only other schedules see it.
    assert!(found("fault_broadcast", block(N), &[x[0]; N], &[]) >= 2);
    assert_eq!(found("fault_divergent_barrier", block(N), &x[..N], &[]), 4);
    assert_eq!(found("fault_one_past_the_end", block(N), &x[..N], &[n]), 4);
    assert_eq!(found("fault_last_forgotten", block(N), &x[..N], &[n]), 4);
    assert_eq!(found("fault_misaligned", block(32), &x[..128], &[]), 4);
    let sums: Vec<f64> = (1..=8).map(|i| x[..i].iter().sum()).collect();
    assert!(found("fault_order_of_blocks", Grid::new([8, 1], 32), &sums, &[]) >= 3);
}

#[test]
fn errors_say_what_is_wrong() {
    let block = |threads| Grid::new([1, 1], threads);
    let error = |kernel, grid, extra: &[Arg]| run(kernel, grid, N, 1, extra).map(|result| result.expect_err(kernel));
    let check = |got: Option<String>, want: &str| {
        if let Some(got) = got {
            assert!(got.contains(want), "{got}");
        }
    };
    check(error("fault_divergent_barrier", block(N), &[]), "divergent barrier: thread (");
    check(error("fault_early_return", block(N), &[]), "has returned");
    check(error("fault_copies_left_behind", block(64), &[]), "returns with asynchronous copies in flight (1)");
    check(error("fault_one_past_the_end", block(N), &[Arg::I32(N as i32)]), "wrote outside the allocation");
    check(
        error("fault_shared_overrun", Grid { shared: 128, ..block(32) }, &[]),
        "past its 128 bytes of dynamic shared memory",
    );
    check(error("fault_misaligned", block(32), &[]), "not 16-byte aligned");
    check(error("fault_none", block(512), &[]), "512 threads a block, compiled for at most 256");
    check(error("fault_none", block(2048), &[]), "1 to 1024 are possible");
    check(error("fault_none", Grid::new([1, 70000], N), &[]), "a grid of [1, 70000, 1] blocks");
    check(error("fault_none", Grid { shared: 1 << 20, ..block(N) }, &[]), "the device has");
    check(
        error("fault_none", block(N), &[Arg::I32(1)]),
        "arguments are `f32*,const f32*,i32`, the kernel takes `f32*,const f32*`",
    );
    check(error("fault_last_forgotten", block(N), &[Arg::F32(1.0)]), "the kernel takes `f32*,const f32*,i32`");
    check(error("fault_unheard_of", block(N), &[]), "no kernel `fault_unheard_of_f32` was compiled");
}

#[test]
fn swapped_and_foreign_arguments_are_refused() {
    let Some(driver) = host_driver(1) else { return };
    let gpu = Gpu::<_, f32>::new(driver).unwrap();
    let mut buf: Buf<HostDriver, f32> = gpu.alloc("x", N).unwrap();
    let (write, read) = (buf.all_mut().arg(), buf.all().arg());
    let launch = |args: &[Arg]| {
        let kernel = Kernel { op: "fault_none", dtype: Dtype::F32 };
        // SAFETY: refused before anything runs; that is what is tested.
        unsafe { gpu.driver().launch(kernel, Grid::new([1, 1], N), args) }.unwrap_err().to_string()
    };
    assert!(launch(&[read, write]).contains("arguments are `const f32*,f32*`"));
    assert!(launch(&[write, write]).contains("arguments are `f32*,f32*`"));
    let outside = Arg::Memory { at: 4096, bytes: 16, element: "f32", write: false };
    assert!(launch(&[write, outside]).contains("argument 1 points at 16 bytes that are not in one allocation"));
    let Arg::Memory { at, .. } = read else { unreachable!() };
    let long = Arg::Memory { at, bytes: 4 * N + 1, element: "f32", write: false };
    assert!(launch(&[write, long]).contains("not in one allocation"));
}

#[test]
fn the_comparison_refuses_nan() {
    for bad in [f64::NAN, f64::INFINITY] {
        assert!(disagreement("x", &[1.0, bad], &[1.0, 2.0], 1.0, 1.0).is_some());
    }
    assert!(disagreement("x", &[1.0], &[1.0, 2.0], 1.0, 1.0).is_some(), "too short");
    assert!(disagreement("x", &[1.0, 2.0], &[1.0, 2.0], 0.0, 0.0).is_none());
    let nan_under_the_bf16_rule =
        std::panic::catch_unwind(|| crate::check::assert_bf16_rule("x", &[f64::NAN], &[1.0], &[1.0], 0.0));
    assert!(nan_under_the_bf16_rule.is_err());
}

/// The tensor core's twin and ldmatrix against plain sums, and without the barrier between store and load.
#[test]
fn mma_and_ldmatrix() {
    let mut noise = Noise(11);
    let (a, b) = (noise.vec::<bf16>(256, 1.0), noise.vec::<bf16>(128, 1.0));
    let want: Vec<f64> = (0..128).map(|i| (0..16).map(|k| a[i / 8 * 16 + k] * b[k * 8 + i % 8]).sum()).collect();
    let mut missed = 0;
    for seed in SEEDS {
        for kernel in ["fault_none_mma", "fault_mma_without_barrier"] {
            let Some(driver) = host_driver(seed) else { return };
            let gpu = Gpu::<_, bf16>::new(driver).unwrap();
            let (a, b) = (crate::buf::<_, bf16>(&gpu, &a), crate::buf::<_, bf16>(&gpu, &b));
            let mut c = crate::unset::<_, f32>(&gpu, 128);
            let args = [c.all_mut().arg(), a.all().arg(), b.all().arg()];
            // SAFETY: three live buffers of the sizes that the kernel takes.
            unsafe { gpu.driver().launch(Kernel { op: kernel, dtype: Dtype::F32 }, Grid::new([1, 1], 32), &args) }
                .unwrap();
            let wrong = disagreement(kernel, &crate::fetch(&gpu, &c), &want, F32, 1e-5);
            match kernel {
                "fault_none_mma" => assert_eq!(wrong, None),
                _ => missed += usize::from(wrong.is_none()),
            }
        }
    }
    assert_eq!(missed, 0, "a missing barrier before ldmatrix was not seen");
}
