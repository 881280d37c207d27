//! A signal to the launcher: what each hands on, and how the run ends by it.

use crate::abreast::abreast;
use crate::faults::{args, comes_to_the_same, scene};
use crate::job::{By, Ended, Job, send};
use crate::mpirun::Mpirun;
use crate::training::RUN;
use std::time::Duration;

/// The step of the one checkpoint in `out` that the end of the run is.
fn stopped_at(ended: &Ended) -> u64 {
    let said = ended.said();
    let lines: Vec<String> = ended.lines();
    assert_eq!(lines.len(), 1, "rank 0 alone says it: {said}");
    let step = lines[0].split("stopped after step ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let step = step.unwrap_or_else(|| panic!("{said}"));
    assert!(lines[0].contains(&format!(", with checkpoint-{step}; this goes on: ")), "{said}");
    step
}

/// Which signals a launcher hands on at once, and the exit code that the run, and with it the launcher, ends with.
#[test]
fn what_a_launcher_hands_on_ends_the_run_with_a_checkpoint() {
    let mut handed_on: Vec<(Mpirun, &str, i32)> = Vec::new();
    for mpirun in Mpirun::all() {
        let signals: &[(&str, i32)] = match mpirun.name {
            "mpirun.openmpi" => &[("USR1", 138)],
            _ => &[("USR1", 138), ("TERM", 143), ("INT", 130)],
        };
        handed_on.extend(signals.iter().map(|(signal, code)| (mpirun.clone(), *signal, *code)));
    }
    let cli = scene();
    abreast(2, &handed_on, |(mpirun, signal, code)| {
        let by = By::Mpi(mpirun.clone());
        let out = format!("{signal}-{}", mpirun.name);
        let mut job = Job::start(&by, &cli, 3, &format!("{} --out {out}", args()), &[]);
        job.awaits(&cli.path(&format!("{out}/checkpoint-25")));
        send(&format!("-{signal}"), job.launcher());
        let ended = job.ends(None);
        let step = stopped_at(&ended);
        assert!((25..200).contains(&step) && ended.took < Duration::from_secs(15), "{step}: {:?}", ended.took);
        assert_eq!(ended.all[0].status.code(), Some(*code), "{}", ended.said());
        assert!(cli.path(&format!("{out}/checkpoint-{step}")).is_dir());
        comes_to_the_same(&by, &cli, &out);
    });
}

/// Open MPI ends a job in its own way where it is told to end: it waits, asks the ranks to, waits as long again, and kills them.
#[test]
fn open_mpi_gives_a_job_the_time_that_it_was_told() {
    let Some(mpirun) = Mpirun::all().into_iter().find(|mpirun| mpirun.name == "mpirun.openmpi") else { return };
    let (cli, by) = (scene(), By::Mpi(mpirun));
    let args = format!(
        "sft {RUN} --lr-scheduler-type constant --max-steps 1000000 --save-steps 0 --eval-strategy no --out told"
    );
    let mut job = Job::start(&by, &cli, 2, &args, &[("OMPI_MCA_odls_base_sigkill_timeout", "3")]);
    job.awaits(&cli.path("told/metrics.jsonl"));
    send("-TERM", job.launcher());
    let ended = job.ends(None);
    let step = stopped_at(&ended);
    assert!(ended.took < Duration::from_secs(15) && ended.all[0].status.code() == Some(1), "{}", ended.said());
    let args = args.replace("1000000", &format!("{}", step + 3));
    let ended = Job::start(&by, &cli, 3, &format!("{args} --resume auto"), &[]).ends(None);
    assert!(ended.well() && ended.said().contains(&format!("{} steps in ", step + 3)), "{}", ended.said());
}
