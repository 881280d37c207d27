//! What is said before a run.

use super::options::TrainOptions;
use super::schedule::Schedule;
use super::synced::Sync;
use crate::backend::Backend;
use crate::data::plan::Planner;
use crate::data::shard::format::hex;
use crate::error::Result;
use crate::model::ModelDir;
use crate::observe::{Event, Observe};

/// Which reference the run has, and its identity.
pub fn reference_line(c: &TrainOptions, model: &ModelDir, reference: Option<&ModelDir>) -> Result<String> {
    let Some(reference) = reference else {
        let loss = c.loss().name();
        return Ok(format!("none, loss {loss} reads none"));
    };
    let sha = hex(&reference.identity()?[..8]);
    let whose = match model.computes_as(reference) {
        true => "the starting policy".to_owned(),
        false => reference.name().display().to_string(),
    };
    Ok(match Sync::of(&c.reference) {
        Some(Sync { alpha, every }) => {
            let steps = if every == 1 { "every step".to_owned() } else { format!("every {every} steps") };
            format!("a copy of {whose} (sha256 {sha}...), in memory, which takes {alpha} of the policy {steps}")
        }
        None => format!("{whose} (sha256 {sha}...), from sidecars"),
    })
}

/// Says what the run is about to do.
pub fn announce<B: Backend>(
    be: &B,
    c: &TrainOptions,
    planner: &Planner<'_>,
    s: &Schedule,
    observe: &mut dyn Observe,
) -> Result<()> {
    let mut note = |text: String| observe.tell(&Event::Note(&text));
    let [model, data, out] = [&c.files.model, &c.files.data, &c.files.out].map(|p| p.display());
    note(format!("{}: {model} {data} -> {out}", be.description()))?;
    // Of an SFT run, how many of the data's responses it learns: the chosen, the best, and what nobody compared.
    let what = if planner.is_judged() {
        "judgements".to_owned()
    } else if !c.loss().is_sft() {
        "pairs".to_owned()
    } else {
        match planner.data().num_responses() {
            all if all > planner.units() => format!("responses (of {all}: every chosen or best one)"),
            _ => "responses".to_owned(),
        }
    };
    let beta = c.loss.beta.map_or_else(String::new, |b| format!(" beta {b}"));
    note(format!(
        "{} {what} an epoch, {} a step, {} steps; loss {}{beta}; {:?} lr {:e} {:?}, warm-up {}; clip {}; decay {}; {} token slots; seed {}",
        planner.units(),
        c.data.batch_size,
        s.total,
        c.loss().name(),
        c.optim.optim,
        c.schedule.learning_rate,
        c.schedule.lr_scheduler_type,
        s.warmup,
        c.optim.max_grad_norm,
        c.optim.weight_decay,
        planner.token_budget(),
        c.data.seed
    ))?;
    if let Some(why) = idle(s) {
        observe.tell(&Event::Warning(&why))?;
    }
    let mut note = |text: String| observe.tell(&Event::Note(&text));
    if planner.unscorable() > 0 {
        note(format!(
            "{} {what} are skipped: a response of one token after an empty prompt has nothing to predict it",
            planner.unscorable()
        ))?;
    }
    if planner.skipped_groups() > 0 {
        let n = planner.skipped_groups();
        note(format!("{n} prompts have nothing to train this stage on and are skipped"))?;
    }
    Ok(())
}

/// Of rates that hardly move a weight, why, and what to do.
fn idle(s: &Schedule) -> Option<String> {
    if s.peak == 0.0 {
        return Some("the learning rate is 0: no weight will change; give a larger `options.learning_rate`".into());
    }
    // The last step has the highest rate, which is not the peak yet.
    (s.warmup >= s.total && s.total > 0).then(|| {
        let share = 100.0 * s.at(s.total - 1) / s.peak;
        format!(
            "the warm-up of {} steps does not end within the run's {}: the learning rate reaches {share:.1} % of its peak; lower \
             `options.warmup_steps` or `options.warmup_ratio`, or take more steps",
            s.warmup, s.total
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::schedule::SchedulerType;

    #[test]
    fn a_warm_up_that_does_not_end_and_a_rate_of_0_are_said() {
        let said = |peak, warmup, total| idle(&Schedule { kind: SchedulerType::Linear, peak, warmup, total });
        assert!(said(0.0, 0, 9).unwrap().starts_with("the learning rate is 0:"));
        let want =
            "the warm-up of 500 steps does not end within the run's 10: the learning rate reaches 1.8 % of its peak;";
        assert!(said(1.0, 500, 10).unwrap().starts_with(want));
        assert!(said(1.0, 10, 10).is_some());
        assert_eq!([said(1.0, 9, 10), said(1.0, 0, 1), said(1e-9, 0, 10)], [None, None, None]);
    }
}
