//! What `fusedpo plan` says of time, and of the token budget that it recommends.

use crate::data::numbers::grouped;
use crate::train::forecast::{Basis, Budget, Forecast, Pace, Time};
use crate::units;
use serde_json::{Value, json};

/// What steps count.
pub fn unit(plan: &Forecast) -> &'static str {
    if plan.pairs { "pairs" } else { "responses" }
}

/// What micro-batches of a budget hold.
pub fn holds(plan: &Forecast, at: &Budget) -> String {
    let h = &at.holds;
    format!(
        "{:.1} {} a micro-batch, {:.0} % of its slots filled, {:.1} micro-batches a step",
        h.units,
        unit(plan),
        100.0 * h.filled / at.slots as f64,
        h.micro_batches
    )
}

/// Lines for people.
pub fn lines(plan: &Forecast, of_this_machine: bool) -> Vec<String> {
    let mut lines = Vec::new();
    match &plan.time {
        Some(time) => {
            lines.push(basis(time));
            lines.push(steps(plan, time));
            lines.extend(total(time));
        }
        None if of_this_machine => lines.push(
            "time: not known, as there is no memory to measure it in, or nothing is known of this GPU's rates (--gpu NAME takes those of another)"
                .into(),
        ),
        None => lines.push("time: not known; --gpu NAME says of which GPU it is asked for".into()),
    }
    lines.extend(recommended(plan));
    lines
}

fn basis(time: &Time) -> String {
    match &time.basis {
        Basis::Measured(m) => format!(
            "time, calibrated on this device in {}: {:.0} GFLOP/s in products, {:.1} GB/s in ops without",
            units::duration(m.seconds),
            m.products / 1e9,
            m.bandwidth / 1e9
        ),
        Basis::Assumed(of) => format!(
            "time, predicted and not measured: {} by its sheet ({:.0} TFLOP/s in products, {:.0} GB/s), of which {:.0} and {:.0} % \
             are assumed",
            of.name,
            of.products / 1e12,
            of.bandwidth / 1e9,
            100.0 * of.ceilings.products / of.products,
            100.0 * of.ceilings.bandwidth / of.bandwidth
        ),
    }
}

fn pace(plan: &Forecast, pace: &Pace) -> String {
    format!(
        "{} ({} tokens/s, {} {}/s)",
        units::duration(pace.step_seconds),
        grouped(pace.tokens_per_second.round() as u64),
        units::decimals(pace.units_per_second, if pace.units_per_second < 100.0 { 2 } else { 0 }),
        unit(plan)
    )
}

fn steps(plan: &Forecast, time: &Time) -> String {
    let step = format!("a step takes about {}", pace(plan, &time.pace));
    let Some(steps) = time.steps else { return step };
    let all = units::duration(steps as f64 * time.pace.step_seconds);
    format!("{step}; {} steps: {all}", grouped(steps))
}

fn total(time: &Time) -> Option<String> {
    let all = units::duration(time.total_seconds()?);
    let mut parts = Vec::new();
    parts.extend(time.reference_seconds.map(|s| format!("the reference's pass before them {}", units::duration(s))));
    if time.evaluations > 0 {
        parts.push(format!("{} evaluations of {} each", time.evaluations, units::duration(time.evaluation_seconds)));
    }
    (!parts.is_empty()).then(|| format!("{}: {all} in all", parts.join(", ")))
}

fn recommended(plan: &Forecast) -> Vec<String> {
    let Some(best) = &plan.recommended else { return Vec::new() };
    let of = best.budget.slots;
    let step = best.pace.as_ref().map_or_else(String::new, |of| format!(", a step about {}", pace(plan, of)));
    let needed = units::bytes(best.budget.needed);
    vec![format!("recommended: --token-budget {of} ({needed}{step}): {}", holds(plan, &best.budget))]
}

/// Keys of the JSON object.
pub fn as_json(plan: &Forecast) -> Value {
    let time = plan.time.as_ref();
    let of = |value: fn(&Time) -> f64| time.map(value);
    let (basis, measured, assumed) = match time.map(|time| &time.basis) {
        None => (None, None, None),
        Some(Basis::Measured(m)) => (Some("measured"), Some(m), None),
        Some(Basis::Assumed(a)) => (Some("sheet"), None, Some(a)),
    };
    json!({
        "time_basis": basis,
        "calibration_seconds": measured.map(|m| m.seconds),
        "gpu": assumed.map(|a| a.name),
        "product_flops_per_second": measured.map(|m| m.products).or(assumed.map(|a| a.ceilings.products)),
        "moved_bytes_per_second": measured.map(|m| m.bandwidth).or(assumed.map(|a| a.ceilings.bandwidth)),
        "step_seconds": of(|t| t.pace.step_seconds),
        "tokens_per_second": of(|t| t.pace.tokens_per_second),
        "units_per_second": of(|t| t.pace.units_per_second),
        "steps": time.and_then(|t| t.steps),
        "steps_seconds": time.and_then(|t| Some(t.steps? as f64 * t.pace.step_seconds)),
        "reference_seconds": time.and_then(|t| t.reference_seconds),
        "evaluations": time.map(|t| t.evaluations),
        "evaluation_seconds": of(|t| t.evaluation_seconds),
        "total_seconds": time.and_then(Time::total_seconds),
    })
}
