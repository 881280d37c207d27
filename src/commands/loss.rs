//! `fusedpo loss`: the table of losses for people and scripts, and a loss at given numbers.

use super::choice::named;
use super::flags::Flags;
use super::loss_flags::LossFlags;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::loss::{
    Divergence, Explained, Given, LOSSES, Lengths, LossDef, LossSpec, LossType, Scope, Term, explain, notation,
};
use crate::say;
use clap::{ArgAction, Subcommand};
use serde_json::{Map, Value, json};

/// Widest line of prose, in characters.
const WIDTH: usize = 100;

/// What to do with the table.
#[derive(Subcommand)]
pub enum LossCommand {
    /// A line for every loss: what it is, what it reads, its options with their defaults
    List {
        /// Print one array of JSON objects
        #[arg(long)]
        json: bool,
    },
    /// Formula, options, source and guidance of a loss; with log-probs its value and gradient
    Explain(Box<ExplainArgs>),
}

/// Options of `fusedpo loss explain`.
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// A loss, or several with commas: their sum
    #[arg(value_name = "NAME[,NAME...]", required = true, value_parser = named::<LossType>())]
    #[arg(value_delimiter = ',', num_args = 1, action = ArgAction::Set)]
    losses: Vec<LossType>,
    /// Policy's log-prob of the chosen response, a sum over its tokens
    #[arg(long, value_name = "LOGP", allow_hyphen_values = true)]
    chosen: Option<f64>,
    /// Policy's log-prob of the rejected response
    #[arg(long, value_name = "LOGP", allow_hyphen_values = true)]
    rejected: Option<f64>,
    /// Reference's log-prob of the chosen response; needed where the loss reads a reference
    #[arg(long, value_name = "LOGP", allow_hyphen_values = true)]
    ref_chosen: Option<f64>,
    /// Reference's log-prob of the rejected response; needed where the loss reads a reference
    #[arg(long, value_name = "LOGP", allow_hyphen_values = true)]
    ref_rejected: Option<f64>,
    /// Tokens of the chosen response; needed where the loss reads lengths
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    chosen_len: Option<f64>,
    /// Tokens of the rejected response; needed where the loss reads lengths
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    rejected_len: Option<f64>,
    /// Score of the chosen response; needed where the loss reads scores
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    chosen_score: Option<f64>,
    /// Score of the rejected response; needed where the loss reads scores
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    rejected_score: Option<f64>,
    /// Divergence of the policy from the reference, for losses of judgements [default: 0]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    kl: Option<f64>,
    /// In place of a pair, policy's log-probs of K responses, the most preferred first, for losses of lists
    #[arg(long, value_name = "LOGP,...", allow_hyphen_values = true, value_delimiter = ',', num_args = 1, action = ArgAction::Set)]
    logps: Option<Vec<f64>>,
    /// Reference's log-probs of the same responses
    #[arg(long, value_name = "LOGP,...", allow_hyphen_values = true, value_delimiter = ',', num_args = 1, action = ArgAction::Set)]
    ref_logps: Option<Vec<f64>>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Options of the losses.
    #[command(flatten)]
    options: LossFlags,
}

/// Runs the command.
pub fn run(command: &LossCommand) -> Result<()> {
    match command {
        LossCommand::List { json: true } => say::json(&LOSSES.iter().map(row).collect()),
        LossCommand::List { json: false } => list(),
        LossCommand::Explain(args) => {
            // `chosen` is an option here and a column elsewhere.
            let flags = Flags::of(&LossCommand::augment_subcommands(clap::Command::new("loss")));
            explain_one(args, &flags).map_err(|e| Error::usage(flags.error(&e)))?;
        }
    }
    Ok(())
}

/// A row of the table in JSON.
fn row(def: &LossDef) -> Value {
    let option = |(param, default): &(crate::loss::Param, f64)| json!({ "name": param.name(), "default": default, "domain": param.domain(), "about": param.about() });
    json!({
        "name": def.name,
        "about": def.about,
        "formula": def.formula,
        "notation": notation(def).into_iter().map(|(letter, of)| (letter.to_owned(), json!(of))).collect::<Map<_, _>>(),
        "source": def.source,
        "guidance": def.guidance,
        "reference": def.reference,
        "scores": def.scores,
        "lengths": match def.lengths {
            Lengths::Unread => "none",
            Lengths::Chosen => "chosen",
            Lengths::Both => "both",
        },
        "f_divergence": def.divergence,
        "scope": match def.rule.scope() {
            Scope::Group => "group",
            Scope::Step => "step",
        },
        "options": def.options.iter().map(option).collect::<Vec<_>>(),
    })
}

fn list() {
    let width = LOSSES.iter().map(|d| d.name.len()).max().unwrap_or(0);
    for def in LOSSES {
        let options = def.options.iter().map(|(param, x)| format!(" {} {x}", flag(param.name())));
        say!("{:width$}  {} [{}]{}", def.name, def.about, needs(def).join(", "), options.collect::<String>());
    }
}

/// What a loss needs, in a few words each.
fn needs(def: &LossDef) -> Vec<&'static str> {
    let mut needs = vec![if def.reference { "reference" } else { "no reference" }];
    needs.extend(def.scores.then_some("scores"));
    needs.extend((def.rule.scope() == Scope::Step).then_some("whole step"));
    needs
}

/// An option as it is typed.
fn flag(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}

fn explain_one(args: &ExplainArgs, flags: &Flags) -> Result<()> {
    let spec = args.options.options(&args.losses)?.resolve()?;
    let given = args.given();
    let at = if given.is_nothing() { None } else { Some(explain(&spec, &given)?) };
    match (args.json, at) {
        (true, None) => say::json(&described(&spec)),
        (true, Some(at)) => say::json(&valued(&spec, &at)),
        (false, at) => {
            for (i, term) in spec.terms().iter().enumerate() {
                if i > 0 {
                    say!("");
                }
                print_loss(&spec, term, flags);
            }
            if let Some(at) = at {
                print_value(&spec, &at);
            }
        }
    }
    Ok(())
}

impl ExplainArgs {
    fn given(&self) -> Given {
        Given {
            chosen: self.chosen,
            rejected: self.rejected,
            ref_chosen: self.ref_chosen,
            ref_rejected: self.ref_rejected,
            chosen_len: self.chosen_len,
            rejected_len: self.rejected_len,
            chosen_score: self.chosen_score,
            rejected_score: self.rejected_score,
            kl: self.kl,
            logps: self.logps.clone(),
            ref_logps: self.ref_logps.clone(),
        }
    }
}

/// A loss without numbers: its row, at what was asked for. A sum is a list of them.
fn described(spec: &LossSpec) -> Value {
    let rows = spec.terms().iter().map(|term| {
        let mut row = row(term.def());
        row["weight"] = json!(term.weight);
        for (option, (param, _)) in row["options"].as_array_mut().into_iter().flatten().zip(term.def().options) {
            option["value"] = json!(term.params[*param]);
        }
        row
    });
    json!({ "name": spec.name(), "f_divergence_type": spec.divergence, "terms": rows.collect::<Vec<_>>() })
}

/// A loss at numbers.
fn valued(spec: &LossSpec, at: &Explained) -> Value {
    let mut all = json!({ "name": spec.name(), "loss": at.loss });
    gradient(&mut all, at.is_pair, &at.d);
    match (at.is_pair, &at.rewards[..]) {
        (true, [chosen, rejected]) => {
            all["rewards"] = json!({ "chosen": chosen, "rejected": rejected });
            all["margin"] = json!(chosen - rejected);
        }
        (true, [chosen]) => all["rewards"] = json!({ "chosen": chosen }),
        (_, rewards) => all["rewards"] = json!(rewards),
    }
    all["f_divergence_type"] = json!(spec.divergence);
    let term = |(term, loss, d): &(Term, f64, Vec<f64>)| {
        let options: Map<_, _> = values(term).map(|(name, x)| (name.to_owned(), json!(x))).collect();
        let mut one = json!({ "name": term.def().name, "weight": term.weight, "options": options, "loss": loss });
        gradient(&mut one, at.is_pair, d);
        one
    };
    all["terms"] = at.terms.iter().map(term).collect();
    all
}

fn gradient(to: &mut Value, is_pair: bool, d: &[f64]) {
    match (is_pair, d) {
        (true, [chosen, rejected]) => {
            to["d_chosen"] = json!(chosen);
            to["d_rejected"] = json!(rejected);
        }
        _ => to["d_logps"] = json!(d),
    }
}

/// Options and values of one loss of a sum.
fn values(term: &Term) -> impl Iterator<Item = (&'static str, f64)> {
    term.def().options.iter().map(|(param, _)| (param.name(), term.params[*param]))
}

fn print_loss(spec: &LossSpec, term: &Term, flags: &Flags) {
    let def = term.def();
    paragraph(&format!("{}:", def.name), 2, def.about);
    put("formula", def.formula);
    let letters = notation(def).into_iter().map(|(letter, meaning)| format!("{letter}: {meaning}"));
    let letters = letters.collect::<Vec<_>>().join("; ");
    if !letters.is_empty() {
        put("where", &letters);
    }
    let mut label = "options";
    for (param, default) in def.options {
        let (name, about, domain) = (flag(param.name()), param.about(), param.domain());
        let x = term.params[*param];
        let was = if x == *default { String::new() } else { format!(" (default {default})") };
        put(std::mem::take(&mut label), &format!("{name} {x}{was}: {about}; {domain}"));
    }
    if spec.terms().len() > 1 || term.weight != 1.0 {
        put("weight", &number(term.weight));
    }
    if spec.divergence != Divergence::ReverseKl && def.reference {
        put("rewards", &format!("by {}: {}", spec.divergence, spec.divergence.about()));
    }
    put("source", def.source);
    put("reads", &reads(def));
    let scope = match def.rule.scope() {
        Scope::Group => "one prompt and its responses: once through the model",
        Scope::Step => {
            "the whole step: every row goes through the model twice, as no row has a gradient before all are known"
        }
    };
    put("scope", scope);
    put("when", &flags.reason(def.guidance));
}

/// What a loss reads, in words.
fn reads(def: &LossDef) -> String {
    let mut all = vec!["the policy's log-probs"];
    all.push(if def.reference { "the reference's" } else { "no reference" });
    all.extend(match def.lengths {
        Lengths::Unread => None,
        Lengths::Chosen => Some("the chosen response's length"),
        Lengths::Both => Some("lengths"),
    });
    all.extend(def.scores.then_some("scores"));
    all.join(", ")
}

fn print_value(spec: &LossSpec, at: &Explained) {
    say!("");
    if spec.is_judged() {
        put("taken as", "chosen: a desirable response; rejected: an undesirable one; the loss is the mean of both");
    } else if spec.scope() == Scope::Step {
        put("taken as", "a step of this one pair");
    }
    put("loss", &number(at.loss));
    if let (true, [chosen, rejected]) = (at.is_pair, &at.d[..]) {
        put("d_chosen", &number(*chosen));
        put("d_rejected", &number(*rejected));
    } else {
        put("d_logps", &numbers(&at.d));
    }
    match (at.is_pair, &at.rewards[..]) {
        (true, [c, r]) => {
            put("rewards", &format!("chosen {}, rejected {}, margin {}", number(*c), number(*r), number(c - r)));
        }
        _ => put("rewards", &numbers(&at.rewards)),
    }
    if at.terms.len() > 1 {
        let parts = at.terms.iter().map(|(term, loss, _)| format!("{} {}", term.def().name, number(*loss)));
        put("of it", &parts.collect::<Vec<_>>().join(", "));
    }
}

/// With all its digits, and not hundreds of zeros.
fn number(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 || (1e-5..1e16).contains(&size) { x.to_string() } else { format!("{x:e}") }
}

fn numbers(of: &[f64]) -> String {
    of.iter().map(|x| number(*x)).collect::<Vec<_>>().join(", ")
}

/// A paragraph beside its label.
fn put(label: &str, text: &str) {
    paragraph(&format!("  {label:<11}"), 14, text);
}

/// A paragraph in lines, the first behind `start`, the others behind `hang` spaces.
fn paragraph(start: &str, hang: usize, text: &str) {
    let mut line = start.to_owned();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH && !line.trim().is_empty() {
            say!("{}", line.trim_end());
            line = " ".repeat(hang - 1);
        }
        line += " ";
        line += word;
    }
    say!("{}", line.trim_end());
}
