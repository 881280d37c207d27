//! Which run is at work when: some at a time, in the order of the table, and the reference before all.

use super::args::{SweepArgs, stopped};
use super::folder::Folder;
use super::planned::Plan;
use super::row::{self, Common, Slot, Step, VISIBLE};
use crate::commands::child::{self, Ended};
use crate::commands::signal;
use crate::error::{Error, Result};
use crate::note;
use crate::sweep::{Results, Row};
use crate::train::choices::DeviceChoice;
use crate::warn;
use std::ffi::OsString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Makes every run, or what is missing of it. Errors: stopped by a signal, or nothing can be written; a run that fails is a row
/// that says why.
pub(super) fn all(args: &SweepArgs, common: &Common, plans: &[Plan]) -> Result<Results> {
    signal::saves();
    let Common { spec, folder, .. } = *common;
    let jobs = args.jobs.unwrap_or(args.gpus.len().max(1)).min(plans.len().max(1));
    let gpus = gpus(args, jobs, plans);
    let slots = slots(jobs, rayon::current_num_threads(), &gpus);
    let runs = plans.iter().map(|p| Row::new(&p.point.name, &p.point.values)).collect();
    let results = Results { version: 1, stage: spec.stage, varied: spec.varied.clone(), complete: false, runs };
    references(folder, plans, gpus.first()).map_err(|e| match e {
        Error::Stopped(_) => stopped(&args.file, &args.out, &unfinished(&results)),
        e => e,
    })?;
    let (next, shared, failed) = (AtomicUsize::new(0), Mutex::new(results), Mutex::new(None));
    let work = |slot: &Slot| {
        while !signal::stop_requested() && lock(&failed).is_none() {
            let i = next.fetch_add(1, Ordering::SeqCst);
            let Some(plan) = plans.get(i) else { break };
            let begun = Instant::now();
            let mut row = Row::new(&plan.point.name, &plan.point.values);
            let step = match row::make(common, plan, slot, &mut row) {
                Ok(step) => step,
                Err(e) => {
                    lock(&failed).get_or_insert(e);
                    break;
                }
            };
            if let Step::Done = step {
                told(i, plans.len(), &row, begun);
            }
            let mut results = lock(&shared);
            results.runs[i] = row;
            results.mark_frontier();
            if let Err(e) = folder.write(&results) {
                lock(&failed).get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for slot in &slots {
            scope.spawn(|| work(slot));
        }
    });
    if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    let mut results = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    if signal::stop_requested() && results.runs.iter().any(unmade) {
        let results = unfinished(&results);
        folder.write(&results)?;
        return Err(stopped(&args.file, &args.out, &results));
    }
    results.complete = true;
    results.mark_frontier();
    Ok(results)
}

/// The GPUs that runs have in turn. Several at a time would all take the first that they see: where nobody says otherwise, they share out
/// those that this process is given.
fn gpus(args: &SweepArgs, jobs: usize, plans: &[Plan]) -> Vec<String> {
    let on_cpu = plans.iter().all(|p| p.options.compute.device == DeviceChoice::Cpu);
    // Who names a GPU means one of all that there are.
    let named = plans.iter().any(|p| matches!(p.options.compute.device, DeviceChoice::CudaAt(_)));
    if !args.gpus.is_empty() || jobs == 1 || on_cpu || named {
        return args.gpus.clone();
    }
    let seen = std::env::var(VISIBLE).unwrap_or_default();
    let seen: Vec<String> = seen.split(',').map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect();
    if seen.len() > 1 {
        note!("GPUs {} in turn, one a run ({VISIBLE})", seen.join(", "));
    }
    seen
}

/// What each of `jobs` runs at a time computes with: the threads shared out, each one that is there, and the GPUs in turn.
fn slots(jobs: usize, threads: usize, gpus: &[String]) -> Vec<Slot> {
    let slot = |job: usize| Slot {
        threads: (threads / jobs + usize::from(job < threads % jobs)).max(1),
        gpu: (!gpus.is_empty()).then(|| gpus[job % gpus.len()].clone()),
    };
    (0..jobs).map(slot).collect()
}

/// Nothing came of it yet.
fn unmade(row: &Row) -> bool {
    row.error.as_deref() == Some(row::STOPPED) || row.error.is_none() && row.steps.is_none()
}

/// Says of each run that did not begin that it did not.
fn unfinished(results: &Results) -> Results {
    let mut results = results.clone();
    for row in results.runs.iter_mut().filter(|r| unmade(r)) {
        row.error = Some(row::STOPPED.to_owned());
    }
    results
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(i: usize, of: usize, row: &Row, begun: Instant) {
    let part = |name: &str, x: Option<f64>| x.map_or_else(String::new, |x| format!(", {name} {x:.4}"));
    let measured = [
        part("held-out loss", row.eval_loss),
        part("accuracy", row.accuracy),
        part("kl", row.kl),
        part("reward", row.reward),
    ]
    .concat();
    let error = row.error.as_ref().map_or_else(String::new, |e| format!(", {e}"));
    let seconds = begun.elapsed().as_secs_f64();
    note!("{}/{of} {}: {:.1} s{measured}{error}", i + 1, row.name, seconds);
}

/// The reference's log-probs of all runs that are yet to be made, once for each reference: runs that begin at a time would each
/// compute them.
fn references(folder: &Folder, plans: &[Plan], gpu: Option<&String>) -> Result<()> {
    let mut passes: Vec<Vec<OsString>> = Vec::new();
    for plan in plans.iter().filter(|p| !row::is_trained(&folder.path(&p.point.name))) {
        let Some(pass) = row::reference(plan) else { continue };
        if !passes.contains(&pass) {
            passes.push(pass);
        }
    }
    for (i, pass) in passes.iter().enumerate() {
        if signal::stop_requested() {
            return Err(Error::stopped("stopped"));
        }
        note!("reference {}/{}", i + 1, passes.len());
        let env: Vec<_> = gpu.map(|gpu| (VISIBLE.to_owned(), gpu.clone())).into_iter().collect();
        match child::run_self(pass, &env, &|line| warn!("{}", line.trim_start_matches("warning: ")))? {
            Ended::Well(_) => {}
            Ended::Stopped => return Err(Error::stopped("stopped")),
            // It costs those runs that cannot do without.
            Ended::Badly(why) => warn!("the reference's log-probs: {why}; the runs that read them try by themselves"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_shared_out_and_gpus_go_round() {
        let gpus: Vec<String> = ["0", "GPU-5a"].map(str::to_owned).to_vec();
        let of = |jobs, threads, gpus: &[String]| -> Vec<(usize, Option<String>)> {
            slots(jobs, threads, gpus).into_iter().map(|s| (s.threads, s.gpu)).collect()
        };
        assert_eq!(of(1, 7, &[]), [(7, None)]);
        assert_eq!(of(3, 8, &[]), [(3, None), (3, None), (2, None)]);
        assert_eq!(of(3, 2, &[]), [(1, None), (1, None), (1, None)]);
        let of_gpus: Vec<_> = of(3, 3, &gpus).into_iter().map(|(_, gpu)| gpu.unwrap()).collect();
        assert_eq!(of_gpus, ["0", "GPU-5a", "0"]);
    }
}
