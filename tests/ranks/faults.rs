//! What can go wrong with one rank in the middle of a run: all processes end within a deadline, a line says which rank it was and why,
//! and from the last checkpoint another number of processes comes to the bytes of a run that nothing disturbed.

use crate::abreast::abreast;
use crate::cli_common::{Cli, Mount, Running, words};
use crate::job::{By, Ended, Job, send};
use crate::training::{RUN, assert_same};
use crate::transport::seed;
use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Short steps, and few lanes: a checkpoint every 25 steps.
const LONG: &str = "--max-steps 200 --save-steps 25 --eval-steps 50 --lanes 4";

/// How soon all have ended, with 3 s of patience where they have to wait.
const DEADLINE: Duration = Duration::from_secs(20);

/// Data, and the undisturbed run `whole`: once for all tests that are under way.
pub fn scene() -> Arc<Cli> {
    static SCENE: Mutex<Weak<Cli>> = Mutex::new(Weak::new());
    let mut scene = SCENE.lock().unwrap_or_else(|e| e.into_inner());
    scene.upgrade().unwrap_or_else(|| {
        let cli = Arc::new(Cli::with_data());
        cli.ok(&format!("{} --out whole", args()));
        *scene = Arc::downgrade(&cli);
        cli
    })
}

pub fn args() -> String {
    format!("dpo {RUN} {LONG}")
}

/// One of `0..n`.
fn any(n: usize) -> usize {
    (seed() / 1000 % n as u64) as usize
}

/// A run of three that has a checkpoint, and goes on for a moment.
fn under_way(by: &By, cli: &Cli, out: &str, more: &[(&str, &str)]) -> Job {
    let mut job = Job::start(by, cli, 3, &format!("{} --out {out}", args()), more);
    job.awaits(&cli.path(&format!("{out}/checkpoint-25")));
    std::thread::sleep(Duration::from_millis(any(40) as u64));
    job
}

/// Goes on with `out` by another number of processes than three.
pub fn comes_to_the_same(by: &By, cli: &Cli, out: &str) {
    let ranks = [1, 2, 4][any(3)];
    let ended = Job::start(by, cli, ranks, &format!("{} --out {out} --resume auto", args()), &[]).ends(None);
    assert!(ended.well(), "{out}, by {ranks}: {}", ended.said());
    assert_same(cli, out, "whole", &format!("{out}, {ranks} processes"));
}

/// The lines with which each rank ended; of those that `by`'s launcher started all together.
fn lines(ended: &Ended) -> Vec<(Option<i32>, Vec<String>)> {
    let of = |ran: &std::process::Output| {
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        (ran.status.code(), text.lines().filter(|line| line.contains("fusedpo: ")).map(str::to_owned).collect())
    };
    ended.all.iter().map(of).collect()
}

/// All but rank `lost` have ended, each with one line that names it; under an MPI, whose launcher takes the others along, whoever
/// comes first has `why`.
fn others_ended(by: &By, ended: &Ended, lost: usize, why: &str) {
    let (said, lines) = (ended.said(), lines(ended));
    assert!(ended.took < DEADLINE, "{by:?}: {:?}: {said}", ended.took);
    assert!(!said.contains("internal error"), "{said}");
    if let By::Mpi(_) = by {
        assert!(!ended.well() && lines[0].1.len() <= 2, "{said}");
        assert!(said.contains(why), "{why}: {said}");
        return;
    }
    for (rank, (code, lines)) in lines.iter().enumerate().filter(|(rank, _)| *rank != lost) {
        assert!(lines.len() == 1 && *code == Some(1), "{rank}, {code:?}: {said}");
        // Who waits for all names those too that wait for that one.
        let line = lines[0].split(" (FUSEDPO").next().unwrap_or_default();
        let many = line.split_once("ranks ").and_then(|(_, list)| list.split(" are").next()).unwrap_or_default();
        let named = line.contains(&format!("rank {lost}")) || many.split(", ").any(|rank| rank == lost.to_string());
        assert!(named && (rank == 0 || lines[0].contains(&format!("fusedpo: rank {rank}: "))), "{rank}: {said}");
    }
}

/// Does `f` with all that start processes, side by side.
fn with_all(f: impl Fn(&By, &Cli) + Sync) {
    let (cli, f) = (scene(), &f);
    std::thread::scope(|scope| {
        for by in By::all() {
            let cli = &*cli;
            scope.spawn(move || f(&by, cli));
        }
    });
}

#[test]
fn after_a_kill_any_number_goes_on() {
    with_all(|by, cli| {
        // Rank 0 writes; the others do not.
        abreast(2, &[0, 1 + any(2)], |&lost| {
            let out = format!("killed-{lost}-{}", by.name());
            let job = under_way(by, cli, &out, &[]);
            send("-KILL", job.pid(lost));
            let ended = job.ends(None);
            // The launcher says what it saw.
            let why = match by.name() {
                "mpirun.openmpi" => format!("process rank {lost} with PID "),
                // Which of those that it ended it names is its own affair.
                _ => " RUNNING AT ".into(),
            };
            others_ended(by, &ended, lost, &why);
            let told = ["on signal 9 ", "EXIT CODE: 9", "SIGNAL: 9 ", "its connection was closed"];
            assert!(told.iter().any(|told| ended.said().contains(told)), "{}", ended.said());
            comes_to_the_same(by, cli, &out);
        });
    });
}

#[test]
fn after_a_rank_that_stands_still_any_number_goes_on() {
    with_all(|by, cli| {
        let (out, lost) = (format!("stuck-{}", by.name()), any(3));
        let job = under_way(by, cli, &out, &[("FUSEDPO_COMM_TIMEOUT", "3")]);
        send("-STOP", job.pid(lost));
        let ended = job.ends(Some(lost));
        others_ended(by, &ended, lost, "rank is lost or stuck (FUSEDPO_COMM_TIMEOUT");
        assert!(ended.said().contains("waited 3 s to "), "{}", ended.said());
        comes_to_the_same(by, cli, &out);
    });
}

/// Rank 1 has its own copy of the data, as on a machine with its own disk, and it is cut short.
#[test]
fn after_a_rank_whose_data_are_cut_short_any_number_goes_on() {
    with_all(|by, cli| {
        let (out, own) = (format!("cut-{}", by.name()), format!("own-{}", by.name()));
        copied(cli, "d", &own);
        let args = format!("{} --out {out}", args());
        let other = args.replace("--data d ", &format!("--data {own} "));
        let mut job = Job::each(by, cli, &[args.clone(), other, args], &[]);
        job.awaits(&cli.path(&format!("{out}/checkpoint-25")));
        std::fs::File::options()
            .write(true)
            .open(cli.path(&format!("{own}/train-00000.pref")))
            .unwrap()
            .set_len(0)
            .unwrap();
        let ended = job.ends(None);
        let why = format!("{own}/train-00000.pref: was c");
        others_ended(by, &ended, 1, &why);
        assert_eq!(ended.said().matches(&why).count(), 1, "cut short, or changed: {}", ended.said());
        comes_to_the_same(by, cli, &out);
    });
}

/// Rank 1 alone cannot read what it needs: nothing is begun, and its line says why.
#[test]
fn a_rank_that_cannot_begin_ends_all() {
    with_all(|by, cli| {
        let (bad, damaged) = (format!("bad-{}", by.name()), format!("damaged-{}", by.name()));
        copied(cli, "m", &bad);
        copied(cli, "d", &damaged);
        let mut bytes = cli.bytes(&format!("{bad}/model.safetensors"));
        bytes.truncate(bytes.len() / 2);
        cli.write(&format!("{bad}/model.safetensors"), bytes);
        let mut bytes = cli.bytes(&format!("{damaged}/train-00000.pref"));
        let at = bytes.len() / 2 + any(bytes.len() / 4);
        bytes[at] ^= 1 << any(8);
        cli.write(&format!("{damaged}/train-00000.pref"), bytes);
        let other = [("--model m ", format!("--model {bad} ")), ("--data d ", format!("--data {damaged} "))];
        abreast(2, &other, |(own, other)| {
            let args = format!("{} --out none-{}", args(), by.name());
            let ended = Job::each(by, cli, &[args.clone(), args.replace(own, other), args.clone()], &[]).ends(None);
            others_ended(by, &ended, 1, "fusedpo: rank 1: ");
            let name = other.split(' ').nth(1).unwrap();
            let told = |line: &&String| line.contains("fusedpo: rank 1: ") && line.contains(name);
            assert_eq!(ended.lines().iter().filter(told).count(), 1, "{}", ended.said());
            assert!(!cli.path(&format!("none-{}", by.name())).exists());
        });
    });
}

#[test]
fn after_a_full_disk_any_number_goes_on() {
    with_all(|by, cli| {
        let disk = format!("disk-{}", by.name());
        let Some(_mount) = Mount::new(&cli.path(&disk), "size=4m", "a full disk under several processes") else {
            return;
        };
        let out = format!("{disk}/o");
        let job = under_way(by, cli, &out, &[]);
        let mut rest = std::fs::File::create(cli.path(&format!("{disk}/rest"))).unwrap();
        let full = |n: usize, rest: &mut std::fs::File| while rest.write_all(&vec![0; n]).is_ok() {};
        full(1 << 20, &mut rest);
        full(512, &mut rest);
        drop(rest);
        let ended = job.ends(None);
        let lines = lines(&ended);
        others_ended(by, &ended, 0, "No space left on device");
        assert!(lines[0].1[0].contains(&format!("fusedpo: {out}/")), "{}", ended.said());
        assert!(matches!(by, By::Mpi(_)) || lines[0].0 == Some(2) && lines[0].1.len() == 1, "{}", ended.said());
        std::fs::remove_file(cli.path(&format!("{disk}/rest"))).unwrap();
        comes_to_the_same(by, cli, &out);
    });
}

/// Processes in a network of their own, whose only link goes down.
#[test]
fn after_a_link_is_cut_any_number_goes_on() {
    let Some(network) = Network::new() else { return };
    let (cli, out) = (scene(), "link");
    let args = vec![format!("{} --out {out}", args()); 3];
    let mut job = Job::within(&network.prefix(), &By::Torchrun, &cli, &args, &[("FUSEDPO_COMM_TIMEOUT", "3")]);
    job.awaits(&cli.path(&format!("{out}/checkpoint-25")));
    network.link("down");
    let ended = job.ends(None);
    let said = ended.said();
    assert!(ended.took < DEADLINE, "{:?}: {said}", ended.took);
    for (rank, (code, lines)) in lines(&ended).iter().enumerate() {
        assert!(lines.len() == 1 && *code == Some(1), "{rank}, {code:?}: {said}");
        assert!(lines[0].contains("waited 3 s to ") && lines[0].contains(" lost or stuck"), "{rank}: {said}");
    }
    comes_to_the_same(&By::Torchrun, &cli, out);
}

/// Ranks that continue prompts for a minute hear of one that is killed at once, and not when their share is done.
#[test]
fn a_rank_that_is_killed_ends_those_that_generate() {
    let cli = scene();
    cli.write_rows("prompts.jsonl", &(0..90).map(|i| json!({ "prompt": words(i, 3) })).collect::<Vec<_>>());
    let args = "generate --model m --device cpu --input prompts.jsonl --max-new-tokens 40 --temperature 1 \
                --num-return-sequences 1200 --out texts.jsonl";
    let job = Job::start(&By::Torchrun, &cli, 3, args, &[]);
    // In hundredths of a second: with the meeting and the model it is through by then.
    while cpu_time(job.pid(0)) < 100 {
        std::thread::sleep(Duration::from_millis(20));
    }
    send("-KILL", job.pid(2));
    let ended = job.ends(None);
    others_ended(&By::Torchrun, &ended, 2, "");
    assert!(
        ended.said().contains("cannot generate: rank 2 is lost") && ended.took < Duration::from_secs(12),
        "{ended:?}"
    );
    assert!(!cli.path("texts.jsonl").exists());
}

/// What a process has computed, in hundredths of a second.
fn cpu_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // By itself, and for it by the system, which clears memory.
    words[11..13].iter().map(|word| word.parse::<u64>().unwrap()).sum()
}

/// A network with nothing but `lo`, for as long as a process holds it.
struct Network(Running);

impl Network {
    fn new() -> Option<Network> {
        let held = Command::new("unshare").args(["--net", "sleep", "100"]).stderr(Stdio::null()).spawn();
        let mut held = held.ok().map(Running::from)?;
        std::thread::sleep(Duration::from_millis(200));
        if held.try_wait().unwrap().is_some() {
            println!("skipped: a link that is cut (this user may not make a network)");
            return None;
        }
        let network = Network(held);
        network.link("up");
        Some(network)
    }

    fn prefix(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", self.0.id())]
    }

    fn link(&self, how: &str) {
        let mut ip = Command::new("nsenter");
        assert!(ip.args(&self.prefix()[1..]).args(["ip", "link", "set", "lo", how]).status().unwrap().success());
    }
}

/// A copy of a folder of files.
fn copied(cli: &Cli, from: &str, to: &str) {
    std::fs::create_dir(cli.path(to)).unwrap();
    for entry in std::fs::read_dir(cli.path(from)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        cli.write(&format!("{to}/{name}"), cli.bytes(&format!("{from}/{name}")));
    }
}
