//! Several processes, each with a GPU: what goes from one to the other arrives, a run is that of one process to the byte, and
//! whatever ends one of them ends all, in time and with a line each.

use crate::abreast::abreast;
use crate::cli_common::{Cli, rows};
use crate::library;
use crate::mpirun::{Mpirun, said};
use crate::stand::{Stand, Switches};
use crate::torchrun::Torchrun;
use fusedpo::Error;
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::gpu::cuda::CudaDriver;
use fusedpo::backend::{Device, Exchange, RankOps};
use fusedpo::comm::launch::Place;
use fusedpo::comm::{Comm, join};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// What a rank of `a_gpu_rank` does: a seed.
const AS_RANK: &str = "FUSEDPO_TEST_GPU_RANK";

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Exchanges parts of many lengths, several at a time; all ranks draw the same, so that each knows what the others have.
fn exchanges(comm: &dyn Comm, be: &Gpu<CudaDriver, f32>, seed: &mut u64) -> Result<(), Error> {
    let (rank, size) = (comm.world().rank, comm.world().size);
    for most in [0u64, 1, 5, 4097, 70_001] {
        let mut under_way = Vec::new();
        for _ in 0..3 {
            let parts: Vec<Vec<Vec<f32>>> = (0..size)
                .map(|_| {
                    let part = |seed: &mut u64| (0..next(seed) % (most + 1)).map(|_| next(seed) as f32).collect();
                    (0..size).map(|_| part(seed)).collect()
                })
                .collect();
            let mine: Vec<f32> = parts[rank].concat();
            let want: Vec<f32> = parts.iter().flat_map(|of| of[rank].clone()).collect();
            let (mut send, mut receive) = (be.zeros("out", mine.len())?, be.zeros("in", want.len())?);
            be.upload(be.view_mut(&mut send, 0..mine.len()), &mine)?;
            let to: Vec<usize> = parts[rank].iter().map(Vec::len).collect();
            let from: Vec<usize> = parts.iter().map(|of| of[rank].len()).collect();
            let receiving = be.view_mut(&mut receive, 0..want.len());
            let op = Exchange { send: be.view(&send, 0..mine.len()), to: &to, receive: receiving, from: &from };
            be.exchange(comm, op, "exchange numbers")?;
            under_way.push((send, receive, want));
        }
        be.exchanged(comm, "exchange numbers")?;
        for (_, receive, want) in &under_way {
            let mut got = vec![0.0; want.len()];
            be.download(&mut got, be.view(receive, 0..want.len()))?;
            assert!(got == *want, "{most}");
        }
    }
    Ok(())
}

fn lives(comm: &dyn Comm, seed: u64) -> Result<String, Error> {
    let be = Gpu::<_, f32>::new(CudaDriver::open(0)?)?;
    be.join(comm, &environment)?;
    exchanges(comm, &be, &mut seed.clone())?;
    let way = be.joined().expect("it joined");
    be.leave(comm)?;
    // Without a way of their own numbers go by the host, and arrive as well.
    Ok(way)
}

/// What a rank does; nothing where no test started it as one. As the program does it, it says one line and ends.
#[test]
fn a_gpu_rank() {
    let Some(seed) = environment(AS_RANK) else { return };
    let place = Place::of(&environment).unwrap().unwrap();
    let comm = join(Some(&place), &environment).unwrap();
    let lived = lives(&*comm, seed.parse().unwrap()).and_then(|way| comm.end().map(|()| way));
    match lived {
        Ok(way) => println!("says: all arrived at rank {} by {way}", place.rank),
        Err(e) => {
            println!("says: {e}");
            comm.abort(1);
        }
    }
}

/// `command` on the stand-ins, which say what they see in `log`.
pub fn on_stand_ins(mut command: Command, log: &Path, switches: Switches) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STANDIN_")) {
        command.env_remove(name);
    }
    command.env("LD_LIBRARY_PATH", library::folder().unwrap()).env("STANDIN_LOG", log);
    command.envs(switches.iter().map(|(name, value)| (format!("STANDIN_{name}"), value)));
    command
}

/// Panics unless as many processes as `ranks` came to their end on the stand-ins, and none had a defect.
#[track_caller]
fn sound(log: &Path, ranks: usize, what: &str) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    assert!(!text.contains("DEFECT") && text.matches("defects: 0").count() == ranks, "{what}: {text}");
    text
}

fn this_program(seed: u64) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "60"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "ranks::a_gpu_rank", "--nocapture", "--test-threads", "1"]);
    command.env(AS_RANK, seed.to_string());
    command
}

#[test]
fn numbers_go_from_gpu_to_gpu() {
    if library::folder().is_none() {
        return;
    }
    let aside = tempfile::TempDir::new().unwrap();
    let mut seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    for ranks in 2..=4 {
        let (seed, log) = (next(&mut seed), aside.path().join(format!("torchrun-{ranks}")));
        let all = Torchrun::end(Torchrun::new(ranks).start(|_| on_stand_ins(this_program(seed), &log, &[])));
        let text: String = all.iter().map(said).collect();
        assert_eq!(text.matches("says: all arrived").count(), ranks, "seed {seed}: {text}");
        assert!(text.contains("by NCCL 2.30.7, libnccl.so.2"), "{text}");
        sound(&log, ranks, &text);
    }
    for mpirun in Mpirun::all() {
        let log = aside.path().join(mpirun.name);
        let mut command = mpirun.command(2);
        let program = this_program(seed);
        command.arg(program.get_program()).args(program.get_args()).env(AS_RANK, seed.to_string());
        let text = said(&on_stand_ins(command, &log, &[]).output().unwrap());
        assert_eq!(text.matches("says: all arrived").count(), 2, "{}, seed {seed}: {text}", mpirun.name);
        sound(&log, 2, &text);
    }
}

/// What befalls rank 1 of three, whose patience is 2 s: what the others say.
const FAULTS: &[(&str, Switches, &str)] = &[
    ("does not come", &[("NCCL_NEVER", "1")], "s to join the GPUs of the other ranks: another rank is lost or stuck"),
    ("has no library", &[], "rank 1 has no NCCL by which GPUs reach each other (/nowhere/libnccl.so.2"),
    (
        "has another version",
        &[("NCCL", "22906")],
        "rank 1 has NCCL 2.29.6 and rank 0 NCCL 2.30.7: all ranks need the same",
    ),
    (
        "has an old one",
        &[("NCCL", "21301")],
        "rank 1 has no NCCL by which GPUs reach each other (NCCL 2.13.1, libnccl.so.2: 2.14",
    ),
    ("is killed", &[("NCCL_DIE", "4")], "rank 1 is lost: its connection was closed"),
    ("is stuck", &[("NCCL_STICK", "4")], "s to exchange numbers: another rank is lost or stuck"),
    ("fails", &[("FAIL", "ncclSend:5")], "rank 1 has ended"),
    ("fails late", &[("NCCL_ASYNC", "3")], "rank 1 has ended"),
    ("cannot join", &[("FAIL", "ncclCommInitRankConfig:1")], "rank 1 has ended"),
    ("cannot end", &[("NCCL_STICK", "4"), ("NCCL_ABORT_HANGS", "1"), ("LEAKS", "1")], "another rank is lost or stuck"),
];

#[test]
fn a_rank_that_is_lost_ends_all() {
    if library::folder().is_none() {
        return;
    }
    let aside = tempfile::TempDir::new().unwrap();
    abreast(3, FAULTS, |(what, switches, why)| {
        let log = aside.path().join(what.replace(' ', "-"));
        let begun = Instant::now();
        let of = |rank: usize| {
            let mut command = on_stand_ins(this_program(7), &log, if rank == 1 { switches } else { &[] });
            if rank == 1 && switches.is_empty() {
                command.env("FUSEDPO_NCCL_LIBRARY", "/nowhere/libnccl.so.2");
            }
            command.env("FUSEDPO_COMM_TIMEOUT", "2");
            command
        };
        let all = Torchrun::end(Torchrun::new(3).start(of));
        let took = begun.elapsed();
        let texts: Vec<String> = all.iter().map(said).collect();
        for rank in [0, 2] {
            assert_eq!(texts[rank].matches("says: ").count(), 1, "{what}: {texts:?}");
        }
        // Rank 1 waits as long as the others, and may be the first of them to say so.
        assert!(texts.iter().any(|text| text.contains(why)), "{what}: {texts:?}");
        let dies = *what == "is killed";
        assert!(dies || texts[1].matches("says: ").count() == 1, "{what}: {texts:?}");
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(!text.contains("DEFECT"), "{what}: {text}\n{texts:?}");
    });
}

pub const RUN: &str = "--model m --data d --device cuda --dtype f32 --learning-rate 1e-3 --batch-size 5 --token-budget 96 \
                   --max-steps 3 --lanes 4 --quiet";

/// Runs that differ in what goes through several ranks.
const KINDS: &[&str] =
    &["sft", "dpo --eval-steps 2 --save-steps 2", "dpo --loss-type bco_pair", "dpo --lora-r 2 --lora-dropout 0.2"];

/// By number: torchrun's variables, and the MPIs of this machine.
fn with(launcher: usize, cli: &Cli, log: &Path, ranks: usize, args: &str, switches: Switches) -> Vec<Output> {
    let all = Mpirun::all();
    match launcher % (all.len() + 1) {
        0 => {
            // Four are on two machines, as far as they know.
            let torchrun = Torchrun::new(ranks).on_machines(if ranks == 4 { 2 } else { ranks });
            Torchrun::end(torchrun.start(|_| on_stand_ins(cli.command(args), log, switches)))
        }
        n => {
            let mut command = all[n - 1].command(ranks);
            command.arg(env!("CARGO_BIN_EXE_fusedpo")).args(args.split_whitespace()).current_dir(cli.dir.path());
            vec![on_stand_ins(command, log, switches).output().unwrap()]
        }
    }
}

#[test]
fn a_run_by_several_gpus_is_that_of_one() {
    if library::folder().is_none() {
        return;
    }
    let (cli, aside) = (Cli::with_data(), tempfile::TempDir::new().unwrap());
    for (i, kind) in KINDS.iter().enumerate() {
        let one = format!("r{i}-1");
        let log = aside.path().join(&one);
        let args = format!("{kind} {RUN}");
        let ran = on_stand_ins(cli.command(&format!("{args} --out {one}")), &log, &[]).output().unwrap();
        assert!(ran.status.success(), "{kind}: {}", said(&ran));
        sound(&log, 1, kind);
        for ranks in 2..=4 {
            let out = format!("r{i}-{ranks}");
            let (log, what) = (aside.path().join(&out), format!("{kind}, {ranks} ranks"));
            // Two GPUs: they are dealt out in turn. What goes beside the backward pass comes as early as it may, or as late.
            let switches: Switches = &[("GPUS", "2"), ("SIDE_FIRST", "1")];
            let switches = if ranks == 2 { &switches[..1] } else { switches };
            let all = with(i + ranks, &cli, &log, ranks, &format!("{args} --out {out}"), switches);
            let text: String = all.iter().map(said).collect();
            assert!(all.iter().all(|ran| ran.status.success()), "{what}: {text}");
            let log = sound(&log, ranks, &what);
            assert_eq!(log.matches("device 1;").count(), ranks / 2, "{what}: {log}");
            assert_eq!(rows(&cli, &out), rows(&cli, &one), "{what}");
            for file in ["model.safetensors", "adapter_model.safetensors", "ledger.bin"] {
                let [is, was] = [&out, &one].map(|run| std::fs::read(cli.path(&format!("{run}/{file}"))).ok());
                assert!(is == was, "{what}: {file}");
            }
        }
    }
}

/// The best evaluation lies behind: every rank takes its share of that checkpoint's master weights, and what rank 0 writes in single
/// precision is made of all of them.
#[test]
fn the_best_model_of_several_gpus_is_that_of_one() {
    if library::folder().is_none() {
        return;
    }
    let (cli, aside) = (Cli::with_data(), tempfile::TempDir::new().unwrap());
    // The last evaluation is not the best: the held-out loss ends higher.
    let run = RUN.replace("--dtype f32", "--dtype bf16 --save-dtype f32");
    let args = format!("dpo {run} --eval-steps 1 --load-best-model-at-end");
    let of = |out: &str, ranks: usize| {
        let log = aside.path().join(out);
        let all = with(0, &cli, &log, ranks, &format!("{args} --out {out}"), &[("GPUS", "2")]);
        assert!(all.iter().all(|ran| ran.status.success()), "{ranks}: {}", all.iter().map(said).collect::<String>());
        sound(&log, ranks, out);
        let record: serde_json::Value = serde_json::from_slice(&cli.bytes(&format!("{out}/run.json"))).unwrap();
        assert!(record["best"]["step"].as_u64() < Some(3) && record["best"]["loaded"] == true, "{}", record["best"]);
        (rows(&cli, out), cli.bytes(&format!("{out}/model.safetensors")))
    };
    let one = of("one", 1);
    for ranks in [2, 4] {
        assert!(of(&format!("of-{ranks}"), ranks) == one, "{ranks} ranks");
    }
}

/// Of two GPUs each by its number, and what there is not.
#[test]
fn a_gpu_by_its_number() {
    let Some(stand) = Stand::with(Cli::with_data) else { return };
    let run = format!("dpo {}", RUN.replace("--device cuda ", ""));
    let two: Switches = &[("GPUS", "2")];
    for (device, number) in [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)] {
        let out = format!("on-{}", device.replace(':', "-"));
        let (ran, log) = stand.run(&format!("{run} --device {device} --out {out}"), two);
        assert_eq!(ran.code, 0, "{device}: {}", ran.err);
        assert!(log.contains(&format!("device {number};")), "{device}: {log}");
        let config = String::from_utf8(stand.cli.bytes(&format!("{out}/config.toml"))).unwrap();
        assert!(config.contains(&format!("device = \"{device}\"")), "{config}");
        assert!(stand.cli.bytes(&format!("{out}/model.safetensors")) == stand.cli.bytes("on-cuda/model.safetensors"));
    }
    let there = |last: &str| format!("there is {last} (CUDA_VISIBLE_DEVICES may hide some)");
    for (device, gpus, want) in [("cuda:2", two, "cuda:0 to cuda:1"), ("cuda:1", &[][..], "cuda:0 alone")] {
        let mut command = stand.command(&format!("{run} --device {device} --out no"), gpus);
        let ran = command.output().unwrap();
        let want = format!("fusedpo: --device {device}: {}", there(want));
        assert!(said(&ran).starts_with(&want) && ran.status.code() == Some(2), "{}", said(&ran));
        assert!(!stand.cli.path("no").exists());
    }
    // What a config file says is the same.
    stand.cli.write("c.toml", "device = 'cuda:1'\n");
    let (ran, log) = stand.run(&format!("{run} --config c.toml --out by-config"), two);
    assert!(ran.code == 0 && log.contains("device 1;"), "{log}");
}

/// Gradients of layers are on their way before the embedding's are enqueued.
#[test]
fn gradients_travel_beside_the_backward_pass() {
    if library::folder().is_none() {
        return;
    }
    let (cli, aside) = (Cli::with_data(), tempfile::TempDir::new().unwrap());
    let logs = [0, 1].map(|rank| aside.path().join(rank.to_string()));
    let args = format!("sft {RUN} --eval-strategy no --out beside").replace("--max-steps 3", "--max-steps 1");
    let of = |rank: usize| on_stand_ins(cli.command(&args), &logs[rank], &[("TRACE", "1")]);
    let all = Torchrun::end(Torchrun::new(2).start(of));
    let text: String = all.iter().map(said).collect();
    assert!(all.iter().all(|ran| ran.status.success()), "{text}");
    for log in logs {
        let text = sound(&log, 1, "beside");
        let lines: Vec<&str> = text.lines().collect();
        let passes = lines.iter().rposition(|line| line.contains("launch of embed_bwd")).expect("a backward pass");
        // A rank without a part of the first bucket takes nothing of it, and one that has all of it sends nothing.
        let sends =
            lines.iter().position(|line| line.contains("ncclGroupStart")).expect("ranks hand each other gradients");
        assert!(sends < passes, "sent at {sends}, the last pass ends at {passes}: {text}");
    }
}

/// What befalls rank 1 of three in the middle of a run: where gradients go from GPU to GPU, and nobody but NCCL would know.
#[test]
fn a_run_whose_rank_is_lost_ends() {
    if library::folder().is_none() {
        return;
    }
    let (cli, aside) = (Cli::with_data(), tempfile::TempDir::new().unwrap());
    // The patience of ranks: where it is to end, and where it is not.
    let faults: [(usize, Switches, &str, &str); 3] = [
        (0, &[("NCCL_STICK", "3")], "6", "s to add up gradients: another rank is lost or stuck"),
        (1, &[("NCCL_DIE", "4")], "60", "rank 1 is lost: its connection was closed"),
        (2, &[("FAIL", "ncclRecv:9")], "60", "rank 1 has ended"),
    ];
    abreast(3, &faults, |(i, switches, patience, why)| {
        let (log, begun) = (aside.path().join(i.to_string()), Instant::now());
        let of = |rank: usize| {
            let command = cli.command(&format!("sft {RUN} --out lost{i}"));
            let mut command = on_stand_ins(command, &log, if rank == 1 { switches } else { &[] });
            command.env("FUSEDPO_COMM_TIMEOUT", patience);
            command
        };
        let all = Torchrun::end(Torchrun::new(3).start(of));
        let texts: Vec<String> = all.iter().map(said).collect();
        for (rank, (ran, text)) in all.iter().zip(&texts).enumerate().filter(|(rank, _)| *rank != 1) {
            assert_eq!(text.matches("fusedpo: ").count(), 1, "{switches:?}, {rank}: {texts:?}");
            assert_eq!(ran.status.code(), Some(1), "{switches:?}, {rank}: {texts:?}");
        }
        assert!(texts[0].contains(why), "{switches:?}: {texts:?}");
        assert!(begun.elapsed() < Duration::from_secs(25), "{switches:?}: {:?}", begun.elapsed());
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(!text.contains("DEFECT"), "{switches:?}: {text}\n{texts:?}");
    });
}
