//! Ranks without MPI meet over TCP: what is sent arrives, strangers and other jobs are passed by, and who is late or lost is named.

use crate::abreast::abreast;
use crate::mpirun::{Mpirun, said};
use crate::torchrun::Torchrun;
use crate::transport::{environment, seed, this_program};
use fusedpo::comm::launch::{Launcher, Place};
use fusedpo::comm::tcp::Meeting;
use fusedpo::comm::{Comm, join};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a rank of `a_part` plays.
const PART: &str = "FUSEDPO_TEST_PART";

/// Arguments of this program as such a rank.
const AS_PART: [&str; 3] = ["--exact", "meeting::a_part", "--nocapture"];

/// A rank that does `PART` at the third step, or, as the others, goes on.
#[test]
fn a_part() {
    let Some(part) = environment(PART) else { return };
    let place = Place::of(&environment).unwrap().unwrap();
    let comm = match join(Some(&place), &environment) {
        Ok(comm) => comm,
        Err(e) => return println!("says: {e}"),
    };
    comm.barrier("meet").unwrap();
    for step in 0..5 {
        match (step, part.as_str()) {
            (3, "dies") => std::process::abort(),
            (3, "hangs") => std::thread::sleep(Duration::from_secs(60)),
            (3, "fails") => return comm.abort(1),
            (3, "gives up") => return gives_up(&*comm),
            (3, "is behind") => std::thread::sleep(Duration::from_millis(2500)),
            (3, "errs") => drop(comm.barrier("do something else").map_err(|e| println!("says: {e}"))),
            _ => {}
        }
        if let Err(e) = comm.gather(&vec![step; 100_000], "hear of a step's numbers") {
            println!("says: {e}");
            // As in the program: what goes wrong for all rank 0 tells, before others go whom it would lose.
            std::thread::sleep(Duration::from_millis(if place.rank == 0 { 0 } else { 500 }));
            return comm.abort(1);
        }
    }
    comm.end().unwrap();
}

/// A rank whose own work fails while another thread of it waits for what only this work would have brought about.
fn gives_up(comm: &dyn Comm) {
    let waited = std::thread::scope(|scope| {
        let waits = scope.spawn(|| (comm.gather(&[], "hear of nothing"), Instant::now()));
        std::thread::sleep(Duration::from_millis(100));
        let given_up = Instant::now();
        comm.give_up();
        let (ended, at) = waits.join().unwrap();
        println!("says: {}", ended.unwrap_err());
        at.duration_since(given_up)
    });
    assert!(waited < Duration::from_millis(1500), "less than the patience that ranks have: {waited:?}");
    // As in the program: a launcher that ends a job at once drops what it was about to pass on.
    std::thread::sleep(Duration::from_millis(500));
    comm.abort(1);
}

/// A rank that plays `part`, with two seconds of patience.
fn part_of(part: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "12"]);
    command.arg(std::env::current_exe().unwrap()).args(AS_PART);
    command.env(PART, part).env("FUSEDPO_COMM_TIMEOUT", "2");
    command
}

fn play(torchrun: &Torchrun, size: usize, part: (usize, &str)) -> Vec<Output> {
    let others = if part.1 == "gives up" { "is behind" } else { "" };
    let of = |rank: usize| part_of(if rank == part.0 { part.1 } else { others });
    let all = (0..size).filter(|rank| part.1 != "missing" || *rank != part.0);
    Torchrun::end(all.map(|rank| torchrun.rank(rank, of(rank)).spawn().unwrap()).collect())
}

#[test]
fn what_is_sent_arrives_without_mpi() {
    for ranks in 2..=4 {
        let (torchrun, seed) = (Torchrun::new(ranks), seed());
        let of = |_| {
            let mut command = Command::new("timeout");
            this_program(command.args(["-k", "5", "120"]), seed);
            command
        };
        for (rank, ran) in Torchrun::end(torchrun.start(of)).iter().enumerate() {
            let text = said(ran);
            assert!(text.contains(&format!("all arrived at rank {rank} of {ranks} by TCP")), "seed {seed}: {text}");
        }
    }
}

#[test]
fn who_is_lost_or_late_is_named() {
    let parts = [
        ("dies", "cannot hear of a step's numbers: rank 2 is lost: its connection was closed"),
        ("fails", "cannot hear of a step's numbers: rank 2 has ended"),
        ("hangs", "s to hear of a step's numbers: rank 2 is lost or stuck"),
        ("errs", "sends 100000 bytes in place of 0"),
        ("gives up", "cannot hear of a step's numbers: rank 2 "),
        ("missing", "rank 2 is missing"),
    ];
    abreast(3, &parts, |(part, why)| {
        let (torchrun, begun) = (Torchrun::new(4), Instant::now());
        let all = play(&torchrun, 4, (2, part));
        let texts: Vec<String> = all.iter().map(said).collect();
        let told = texts.iter().filter(|text| text.contains("says: ") && text.contains(why)).count();
        let named = texts.iter().filter(|text| text.contains("says: ")).count();
        assert!(told >= 1 && named >= 3, "{part}: {texts:?}");
        let own = "says: cannot hear of nothing: the ranks have parted";
        assert!(*part != "gives up" || texts[2].contains(own) && texts[2].contains("1 passed"), "{texts:?}");
        // Rank 0 tells the user.
        assert!(*part == "missing" || texts[0].contains("rank 2"), "{part}: {texts:?}");
        let most = if *part == "hangs" { 14 } else { 8 };
        assert!(begun.elapsed() < Duration::from_secs(most), "{part}: {:?}", begun.elapsed());
    });
}

#[test]
fn who_gives_up_under_an_mpi_ends_all() {
    abreast(2, &Mpirun::all(), |mpirun| {
        let mut command = mpirun.command(2);
        let program = std::env::current_exe().unwrap();
        command.env("FUSEDPO_COMM_TIMEOUT", "100").env(PART, "is behind").arg(&program).args(AS_PART);
        command.args([":", "-n", "1", "env", &format!("{PART}=gives up")]).arg(&program).args(AS_PART);
        let ran = command.output().unwrap();
        let text = said(&ran);
        let given_up = text.contains("says: cannot hear of nothing: the ranks have parted");
        assert!(!ran.status.success() && given_up, "{mpirun:?}: {text}");
    });
}

/// Somebody else listens at the first port, a stranger knocks at the second, and another job meets beside this one.
#[test]
fn strangers_are_passed_by() {
    let torchrun = Torchrun::new(2);
    let Ok(taken) = TcpListener::bind(("0.0.0.0", torchrun.port() + 1)) else { return };
    let knocks = std::thread::spawn({
        let port = torchrun.port() + 2;
        move || {
            for _ in 0..100 {
                if let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)) {
                    let _ = to.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    // It takes connections and closes them.
    let met = Arc::new(AtomicBool::new(false));
    let closes = std::thread::spawn({
        let met = met.clone();
        move || {
            taken.set_nonblocking(true).unwrap();
            while !met.load(Ordering::Relaxed) {
                drop(taken.accept());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    for ran in play(&torchrun, 2, (0, "")) {
        let text = said(&ran);
        assert!(text.contains("1 passed") && !text.contains("says"), "{text}");
    }
    met.store(true, Ordering::Relaxed);
    knocks.join().unwrap();
    closes.join().unwrap();
}

/// Twenty are at rank 0's door before the others come, and say nothing, or a little.
#[test]
fn strangers_that_stay_hold_nobody_up() {
    let torchrun = Torchrun::new(3);
    let mut all = vec![torchrun.rank(0, part_of("")).spawn().unwrap()];
    let begun = Instant::now();
    let mut strangers = Vec::new();
    while strangers.len() < 20 {
        assert!(begun.elapsed() < Duration::from_secs(10), "rank 0 does not listen");
        match TcpStream::connect(("127.0.0.1", torchrun.port() + 1)) {
            Ok(stranger) => strangers.push(stranger),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    strangers.iter_mut().step_by(2).for_each(|stranger| stranger.write_all(b"fusedpo").unwrap());
    let begun = Instant::now();
    all.extend((1..3).map(|rank| torchrun.rank(rank, part_of("")).spawn().unwrap()));
    for ran in Torchrun::end(all) {
        let text = said(&ran);
        assert!(text.contains("1 passed") && !text.contains("says"), "{text}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn where_ranks_meet() {
    let place = Place { launcher: Launcher::Torchrun, rank: 1, size: 2, local_rank: 1, local_size: None };
    let of = |place: &Place, known: &[(&str, &str)]| {
        let find = |name: &str| known.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Meeting::of(place, &find)
    };
    for (known, why) in [
        (&[("FUSEDPO_COMM_ADDRESS", "here")][..], "FUSEDPO_COMM_ADDRESS=here in the environment: give HOST:PORT"),
        (&[("FUSEDPO_COMM_ADDRESS", "here:0")], "FUSEDPO_COMM_ADDRESS=0 in the environment: not a port"),
        (&[("MASTER_PORT", "29500")], "MASTER_ADDR is not in the environment, and torchrun sets it"),
        (&[("MASTER_ADDR", "a"), ("MASTER_PORT", "many")], "MASTER_PORT=many in the environment: not a port"),
    ] {
        let e = of(&place, known).unwrap_err();
        assert!(e.to_string().contains(why) && e.exit_code() == 2, "{e}");
    }
    let own = |id: &str| {
        of(&place, &[("MASTER_ADDR", "a"), ("MASTER_PORT", "29500"), ("TORCHELASTIC_RUN_ID", id)]).unwrap().unwrap()
    };
    assert_eq!(own("one"), own("one"));
    assert_ne!(own("one"), own("other"));
    // The last ports that there are.
    let last = of(&place, &[("MASTER_ADDR", "a"), ("MASTER_PORT", "65535")]).unwrap();
    assert!(format!("{last:?}").contains("65519..=65534"), "{last:?}");
    // Other launchers have MPI, unless the user says where to meet.
    let other = Place { launcher: Launcher::Slurm, ..place };
    assert_eq!(of(&other, &[("MASTER_ADDR", "a"), ("MASTER_PORT", "29500")]).unwrap(), None);
    assert!(of(&other, &[("FUSEDPO_COMM_ADDRESS", "[::1]:29500")]).unwrap().is_some());
}
