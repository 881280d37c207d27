//! What launchers leave in the environment, as they really do, and what cannot be.

use fusedpo::comm::launch::{Launcher, Place};
use std::collections::HashMap;

fn place(env: &[(&str, &str)]) -> fusedpo::Result<Option<Place>> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    Place::of(&|name| env.get(name).map(|value| (*value).to_owned()))
}

#[test]
fn each_launcher_is_understood() {
    let of =
        |launcher, rank, size, local_rank, local_size| Some(Place { launcher, rank, size, local_rank, local_size });
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<Place>);
    let cases: &[Case<'_>] = &[
        (&[], None),
        (&[("PATH", "/bin")], None),
        (
            &[
                ("RANK", "9"),
                ("WORLD_SIZE", "16"),
                ("LOCAL_RANK", "1"),
                ("LOCAL_WORLD_SIZE", "8"),
                ("MASTER_PORT", "1"),
            ],
            of(Launcher::Torchrun, 9, 16, 1, Some(8)),
        ),
        // An operator of pods sets the first two for a process that nobody else started.
        (&[("RANK", "1"), ("WORLD_SIZE", "2")], None),
        (
            &[("PMI_RANK", "3"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")],
            of(Launcher::Pmi, 3, 4, 1, Some(2)),
        ),
        (
            &[
                ("OMPI_COMM_WORLD_RANK", "0"),
                ("OMPI_COMM_WORLD_SIZE", "2"),
                ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
                ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
                ("PMIX_RANK", "0"),
            ],
            of(Launcher::OpenMpi, 0, 2, 0, Some(2)),
        ),
        // srun --mpi=pmi2.
        (
            &[
                ("SLURM_PROCID", "5"),
                ("SLURM_NTASKS", "8"),
                ("SLURM_STEP_ID", "0"),
                ("SLURM_LOCALID", "1"),
                ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
                ("PMI_RANK", "5"),
                ("PMI_SIZE", "8"),
            ],
            of(Launcher::Pmi, 5, 8, 1, Some(4)),
        ),
        // Machines with 3, 3 and 2: no number that holds for all.
        (
            &[
                ("SLURM_PROCID", "5"),
                ("SLURM_NTASKS", "8"),
                ("SLURM_STEP_ID", "0"),
                ("SLURM_LOCALID", "2"),
                ("SLURM_STEP_TASKS_PER_NODE", "3(x2),2"),
            ],
            of(Launcher::Slurm, 5, 8, 2, None),
        ),
        // srun --mpi=pmix of a step of four in an allocation of eight.
        (
            &[
                ("SLURM_PROCID", "2"),
                ("SLURM_NTASKS", "8"),
                ("SLURM_STEP_NUM_TASKS", "4"),
                ("SLURM_STEP_ID", "3"),
                ("SLURM_LOCALID", "0"),
            ],
            of(Launcher::Slurm, 2, 4, 0, None),
        ),
        // A batch script by itself: the allocation is eight's, the script is nobody's rank.
        (&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0"), ("SLURM_JOB_ID", "7")], None),
        // Open MPI's mpirun within such a script.
        (
            &[
                ("SLURM_PROCID", "0"),
                ("SLURM_NTASKS", "2"),
                ("SLURM_STEP_ID", "4294967291"),
                ("OMPI_COMM_WORLD_RANK", "1"),
                ("OMPI_COMM_WORLD_SIZE", "8"),
                ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ],
            of(Launcher::OpenMpi, 1, 8, 1, None),
        ),
    ];
    for (env, want) in cases {
        assert_eq!(place(env).unwrap(), *want, "{env:?}");
    }
}

#[test]
fn what_cannot_be_is_named() {
    for (env, said) in [
        (&[("PMI_RANK", "0")][..], "PMI_RANK is in the environment and PMI_SIZE is not"),
        (&[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "2")], "ranks are below their number"),
        (
            &[("RANK", "one"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")],
            "RANK=one in the environment: not a whole number",
        ),
        (&[("RANK", "0"), ("LOCAL_RANK", "-1"), ("WORLD_SIZE", "2")], "LOCAL_RANK=-1"),
        (&[("PMI_RANK", "0"), ("PMI_SIZE", "0")], "PMI_RANK=0 and PMI_SIZE=0"),
        (&[("SLURM_PROCID", "1"), ("SLURM_STEP_ID", "0")], "SLURM_STEP_NUM_TASKS is not"),
        (
            &[("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "9999999999")],
            "WORLD_SIZE=9999999999 in the environment: at most 65536",
        ),
        // Each of two would be all of its job.
        (
            &[("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("PMI_RANK", "1"), ("PMI_SIZE", "2")],
            "mpirun (PMI) says in the environment that this process is one of 2, and WORLD_SIZE=1 that it is alone",
        ),
    ] {
        let e = place(env).unwrap_err();
        assert!(e.to_string().contains(said) && e.exit_code() == 2, "{env:?}: {e}");
    }
}

#[test]
fn half_a_launcher_is_told() {
    let half = |env: &[(&str, &str)]| {
        let env: HashMap<&str, &str> = env.iter().copied().collect();
        Place::half(&|name| env.get(name).map(|value| (*value).to_owned()))
    };
    let pod = [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
    let said = half(&pod).unwrap();
    assert!(
        said.starts_with("WORLD_SIZE=2 is in the environment and LOCAL_RANK is not: this process computes by itself"),
        "{said}"
    );
    assert!(half(&[("OMPI_COMM_WORLD_SIZE", "2")]).unwrap().contains("OMPI_COMM_WORLD_RANK is not"));
    for none in [&[][..], &[("WORLD_SIZE", "1"), ("RANK", "0")], &[("WORLD_SIZE", "many")], &[("SLURM_NTASKS", "8")]] {
        assert_eq!(half(none), None, "{none:?}");
    }
}
