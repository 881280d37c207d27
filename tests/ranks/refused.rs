//! What does not work on several processes is refused before anything is done, in one line.

use crate::abreast::abreast;
use crate::cli_common::Cli;
use crate::mpirun::{Mpirun, said};
use crate::torchrun::Torchrun;
use fusedpo::backend::cpu::Cpu;
use fusedpo::comm::{Comm, Parts, World};
use fusedpo::train::joined::Job;

#[test]
fn commands_of_one_process_are_refused_under_a_launcher() {
    let cli = Cli::with_data();
    for (args, env) in [
        ("inspect d", [("PMI_RANK", "0"), ("PMI_SIZE", "2")]),
        (
            "pack --tokenizer m --input rows.jsonl --out e",
            [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "3")],
        ),
    ] {
        let ran = cli.command(args).envs(env).output().unwrap();
        let text = said(&ran);
        assert_eq!(ran.status.code(), Some(2), "{text}");
        assert!(text.contains("processes, and this command runs in one: start it without a launcher"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        // The others leave the word to the first.
        let [(rank, _), size] = env;
        let other = cli.command(args).envs([(rank, "1"), size]).output().unwrap();
        assert_eq!((other.status.code(), said(&other).as_str()), (Some(2), ""));
    }
    assert!(!cli.path("e").exists());
    // A launcher of one is no reason.
    let ran = cli.command("inspect d").envs([("PMI_RANK", "0"), ("PMI_SIZE", "1")]).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
}

/// One GPU by its number would be that of all.
#[test]
fn a_gpu_by_its_number_is_refused() {
    let cli = Cli::with_data();
    abreast(3, &["dpo --data d --out r", "reference --data d", "generate --prompt w5"], |command| {
        let args = format!("{command} --model m --device cuda:1");
        let all = Torchrun::end(Torchrun::new(2).start(|_| cli.command(&args)));
        let why =
            "--device cuda:1: of several processes each takes the GPU of its number on its machine: use --device cuda";
        assert!(said(&all[0]).starts_with(&format!("fusedpo: {why}")), "{}", said(&all[0]));
        assert_eq!(all[0].status.code(), Some(2), "{command}");
        assert!(!cli.path("r").exists());
    });
}

#[test]
fn an_environment_that_cannot_be_is_refused() {
    let cli = Cli::new();
    let ran = cli.command("doctor").env("PMI_RANK", "0").output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(said(&ran).starts_with("fusedpo: PMI_RANK is in the environment and PMI_SIZE is not"), "{}", said(&ran));
}

#[test]
fn doctor_says_what_it_found() {
    let cli = Cli::new();
    let plain = cli.ok("doctor --json").json();
    assert_eq!(plain["ranks"]["launcher"], serde_json::Value::Null);
    let env = [("PMI_RANK", "2"), ("PMI_SIZE", "4"), ("FUSEDPO_MPI_LIBRARY", "/nowhere/libmpi.so")];
    let ran = cli.command("doctor --json").envs(env).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    let ranks = &found["ranks"];
    assert_eq!((&ranks["launcher"], &ranks["rank"], &ranks["size"]), (&"pmi".into(), &2.into(), &4.into()));
    assert_eq!(ranks["mpi"]["usable"], false);
    assert!(ranks["mpi"]["reason"].as_str().unwrap().contains("/nowhere/libmpi.so"), "{ranks}");
    for mpirun in Mpirun::all() {
        let ran = mpirun.command(2).arg(env!("CARGO_BIN_EXE_fusedpo")).arg("doctor").output().unwrap();
        let text = said(&ran);
        let version = if mpirun.name.ends_with("mpich") { "MPICH" } else { "Open MPI v" };
        assert!(text.contains("rank 1 of 2, 1 of 2 on its machine") && text.contains(version), "{text}");
    }
}

/// Rank 0 of two; the other one says the same, but for one word.
struct Two(&'static str, &'static str);

impl Comm for Two {
    fn world(&self) -> World {
        World::of(0, 2)
    }
    fn local_rank(&self) -> usize {
        0
    }
    fn describe(&self) -> String {
        "a test".into()
    }
    fn barrier(&self, _: &str) -> fusedpo::Result<()> {
        Ok(())
    }
    fn broadcast(&self, _: &mut Vec<u8>, _: &str) -> fusedpo::Result<()> {
        Ok(())
    }
    fn gather(&self, mine: &[u8], _: &str) -> fusedpo::Result<Vec<Vec<u8>>> {
        let text = String::from_utf8(mine.to_vec()).unwrap();
        Ok(vec![mine.to_vec(), text.replacen(self.0, self.1, 1).into_bytes()])
    }
    fn exchange(&self, _: Parts<'_>, _: &str) -> fusedpo::Result<()> {
        Ok(())
    }
    fn abort(&self, _: i32) {}
    fn end(&self) -> fusedpo::Result<()> {
        Ok(())
    }
}

/// Under an MPI, where ranks of another version can meet.
#[test]
fn ranks_of_another_version_are_refused() {
    let own = env!("CARGO_PKG_VERSION");
    let compare = |other| {
        let comm = Two(own, other);
        Job { comm: &comm, launched: true }.same_work(&Cpu::<f32>::new().unwrap(), (&[], &[]), &[])
    };
    compare(own).unwrap();
    let e = compare("9.8.7").unwrap_err();
    let said = format!("rank 1 has another version of the program than rank 0: `9.8.7`, and rank 0 `{own}`; ");
    assert!(e.to_string().starts_with(&said) && e.exit_code() == 2, "{e}");
}
