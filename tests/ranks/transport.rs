//! What travels between ranks arrives as it was, and sums are those of the tree whatever the number of ranks: this test program
//! again, as every rank of a job.

use crate::abreast::abreast;
use crate::mpirun::{Mpirun, said};
use fusedpo::comm::launch::{Launcher, Place};
use fusedpo::comm::tree::{Stack, finish, lanes_of, nodes};
use fusedpo::comm::{Alone, Comm, Parts, Staging, World, join};
use std::ops::Range;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const AS_RANK: &str = "FUSEDPO_TEST_SEED";

pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// SplitMix64.
pub struct Draws(pub u64);

impl Draws {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
    /// Of many sizes, so that the order of a sum is seen in it.
    fn number(&mut self) -> f64 {
        let sign = if self.next() & 1 == 0 { 1.0 } else { -1.0 };
        sign * (self.next() >> 11) as f64 / (1u64 << 53) as f64 * 10f64.powi(self.below(13) as i32 - 6)
    }
}

/// The sum by its definition: halves after the largest power of two below the width.
fn defined<T: Copy + std::ops::Add<Output = T>>(lanes: &[T]) -> T {
    if let [one] = lanes {
        return *one;
    }
    let mut half = 1;
    while half * 2 < lanes.len() {
        half *= 2;
    }
    defined(&lanes[..half]) + defined(&lanes[half..])
}

fn gathers(comm: &dyn Comm, draws: &mut Draws) {
    let world = comm.world();
    for most in [0, 1, 7, 1000, 300_001] {
        let all: Vec<Vec<u8>> = (0..world.size)
            .map(|_| {
                let n = draws.below(most + 1);
                draws.bytes(n)
            })
            .collect();
        assert_eq!(comm.gather(&all[world.rank], "gather").unwrap(), all);
        let want = draws.bytes(most);
        let mut got = if world.is_first() { want.clone() } else { vec![1; most / 2] };
        comm.broadcast(&mut got, "broadcast").unwrap();
        assert!(got == want);
        comm.barrier("meet").unwrap();
    }
    // More than goes at once.
    let large = draws.bytes((1 << 24) + 13);
    let mut got = if world.is_first() { large.clone() } else { Vec::new() };
    comm.broadcast(&mut got, "broadcast").unwrap();
    let mine = if world.is_first() { &large[..] } else { &large[..3] };
    let all = comm.gather(mine, "gather").unwrap();
    assert!(got == large && all[0] == large && all[1..].iter().all(|one| one == &large[..3]));
}

fn exchanges(comm: &dyn Comm, draws: &mut Draws) {
    let (rank, size) = (comm.world().rank, comm.world().size);
    for most in [0, 1, 5, 4097] {
        let lengths: Vec<Vec<usize>> = (0..size).map(|_| (0..size).map(|_| draws.below(most + 1)).collect()).collect();
        let parts: Vec<Vec<Vec<u8>>> = lengths.iter().map(|to| to.iter().map(|n| draws.bytes(*n)).collect()).collect();
        let (mut send, mut receive) = (Staging::of(&parts[rank].concat()), Staging::default());
        let from: Vec<usize> = lengths.iter().map(|to| to[rank]).collect();
        let of = Parts { send: &mut send, to: &lengths[rank], receive: &mut receive, from: &from };
        comm.exchange(of, "exchange").unwrap();
        let want: Vec<u8> = parts.iter().flat_map(|to| to[rank].clone()).collect();
        assert!(receive.bytes() == want);
    }
    let (mut send, mut receive) = (Staging::default(), Staging::default());
    let few = Parts { send: &mut send, to: &[], receive: &mut receive, from: &vec![0; size] };
    assert!(comm.exchange(few, "exchange").is_err());
}

/// What a rank has of lanes that it adds up as they come.
fn held(all: &[Vec<f32>], own: Range<usize>, lanes: usize) -> (Stack, Vec<Vec<f32>>) {
    let (mut stack, mut held) = (Stack::new(lanes), Vec::<Vec<f32>>::new());
    for lane in own {
        stack.push(lane);
        held.push(all[lane].clone());
        while stack.join() {
            let right = held.pop().unwrap();
            held.last_mut().unwrap().iter_mut().zip(right).for_each(|(to, from)| *to += from);
        }
    }
    (stack, held)
}

fn sums(comm: &dyn Comm, draws: &mut Draws) {
    let World { rank, size, .. } = comm.world();
    for (lanes, len) in [(size, 1), (size, 1001), (4.max(size), 3), (8, 4097), (13, 17), (7, 0)] {
        let all: Vec<Vec<f32>> = (0..lanes).map(|_| (0..len).map(|_| draws.number() as f32).collect()).collect();
        let nodes: Vec<Vec<Range<usize>>> = (0..size).map(|rank| nodes(&lanes_of(rank, size, lanes), lanes)).collect();
        let (stack, mine) = held(&all, lanes_of(rank, size, lanes), lanes);
        assert_eq!(stack.nodes(), nodes[rank]);
        let bytes: &[u8] = &mine.concat().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        // Once each rank has all for each, and once it says the same to all.
        let lengths: Vec<usize> = nodes.iter().map(|nodes| nodes.len() * len * 4).collect();
        let (mut send, mut exchanged) = (Staging::of(&bytes.repeat(size)), Staging::default());
        let to = vec![bytes.len(); size];
        let parts = Parts { send: &mut send, to: &to, receive: &mut exchanged, from: &lengths };
        comm.exchange(parts, "add").unwrap();
        let (mut send, mut shared) = (Staging::of(bytes), Staging::default());
        comm.share((&mut send, &mut shared), &lengths, "add").unwrap();
        for received in [exchanged, shared] {
            let mut out = vec![f32::NAN; len];
            finish(&(0..lanes), (&nodes.concat(), received.numbers::<f32>()), 0, &mut out);
            for (i, out) in out.iter().enumerate() {
                let column: Vec<f32> = all.iter().map(|lane| lane[i]).collect();
                assert_eq!(out.to_bits(), defined(&column).to_bits(), "{lanes} lanes, element {i}");
            }
        }
    }
}

/// What a rank does; nothing where no test started it as one.
#[test]
fn as_a_rank() {
    let Some(seed) = environment(AS_RANK) else { return };
    let place = Place::of(&environment).unwrap().unwrap();
    let comm = join(Some(&place), &environment).unwrap();
    assert_eq!((comm.world().rank, comm.world().size), (place.rank, place.size));
    // All draw the same, so that each knows what the others have.
    let mut draws = Draws(seed.parse().unwrap());
    gathers(&*comm, &mut draws);
    exchanges(&*comm, &mut draws);
    sums(&*comm, &mut draws);
    comm.end().unwrap();
    println!("all arrived at rank {} of {} by {}", place.rank, place.size, comm.describe());
}

pub fn this_program(command: &mut Command, seed: u64) -> &mut Command {
    command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "transport::as_a_rank", "--nocapture", "--test-threads", "1"])
        .env(AS_RANK, seed.to_string())
}

pub fn seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[test]
fn one_process_is_a_job_of_one() {
    let mut draws = Draws(seed());
    gathers(&Alone, &mut draws);
    exchanges(&Alone, &mut draws);
    sums(&Alone, &mut draws);
}

#[test]
fn what_is_sent_arrives_under_every_mpi() {
    abreast(2, &Mpirun::all(), |mpirun| {
        for ranks in 1..=4 {
            let seed = seed();
            let ran = this_program(&mut mpirun.command(ranks), seed).output().unwrap();
            let text = said(&ran);
            let arrived = text.matches("all arrived at rank").count();
            assert!(ran.status.success() && arrived == ranks, "{} {ranks} seed {seed}: {text}", mpirun.name);
        }
    });
}

/// With another MPI's library every process is alone, or cannot begin at all: it never takes itself for rank 0 of 1.
#[test]
fn a_library_of_another_launcher_is_refused() {
    let libraries = [("mpirun.openmpi", "libmpich.so.12"), ("mpirun.mpich", "libmpi.so.40")];
    let all = Mpirun::all();
    if all.len() < libraries.len() {
        return println!("skipped: libraries of another launcher (both Open MPI and MPICH are needed)");
    }
    for (mpirun, (_, library)) in all.iter().zip(libraries) {
        let mut command = mpirun.command(2);
        this_program(&mut command, 1).env("FUSEDPO_MPI_LIBRARY", library);
        let text = said(&command.output().unwrap());
        assert!(text.contains("of 2, and for the MPI library (") && text.contains("it is rank 0 of 1"), "{text}");
    }
}

#[test]
fn a_launcher_without_its_library_is_refused() {
    let place = Place { launcher: Launcher::OpenMpi, rank: 1, size: 4, local_rank: 1, local_size: Some(4) };
    let nowhere = |name: &str| (name == "FUSEDPO_MPI_LIBRARY").then(|| "/nowhere/libmpi.so.40".to_owned());
    let why = |place: &Place| join(Some(place), &nowhere).err().unwrap();
    let e = why(&place);
    let said = "Open MPI's mpirun started 4 processes, and there is no MPI library by which they find each other";
    assert!(e.to_string().starts_with(said) && e.exit_code() == 2, "{e}");
    // Something that is no MPI.
    let libc = |name: &str| (name == "FUSEDPO_MPI_LIBRARY").then(|| "libc.so.6".to_owned());
    let e = join(Some(&place), &libc).err().unwrap();
    assert!(e.to_string().contains("libc.so.6 is no MPI library"), "{e}");
    let slow = |name: &str| (name == "FUSEDPO_COMM_TIMEOUT").then(|| "soon".to_owned());
    let e = join(Some(&place), &slow).err().unwrap();
    assert!(e.to_string().contains("FUSEDPO_COMM_TIMEOUT=soon"), "{e}");
    // One process needs nothing.
    assert_eq!(join(Some(&Place { rank: 0, size: 1, ..place }), &nowhere).unwrap().world().size, 1);
}
