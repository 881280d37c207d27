//! What help says beside the options' own words: under which headings they stand, which of them `-h` shows, and examples. Option
//! names are understood with `_` for `-`, too, as other trainers write them.

use clap::{Arg, Command};
use std::any::TypeId;

/// Headings, and the options under each, by their names with `_`; what is in none stands under clap's `Options`.
const HEADINGS: &[(&str, &[&str])] = &[
    (
        "Files",
        &[
            "model",
            "tokenizer",
            "adapter",
            "ref_model",
            "data",
            "input",
            "out",
            "exclude",
            "exclude_out",
            "overwrite",
            "cache",
            "config",
        ],
    ),
    (
        "Training",
        &[
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "warmup_ratio",
            "batch_size",
            "max_steps",
            "num_train_epochs",
            "seed",
            "lanes",
        ],
    ),
    (
        "Optimiser",
        &["optim", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_dtype"],
    ),
    (
        "What trains",
        &["train", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "lora_init"],
    ),
    (
        "Saving, going on, evaluating",
        &[
            "save_dtype",
            "save_steps",
            "save_total_limit",
            "resume",
            "allow_other_numerics",
            "eval_strategy",
            "eval_steps",
            "max_eval_samples",
            "report_to",
            "eval_data",
            "sample_prompts",
            "sample_max_new_tokens",
            "sample_temperature",
            "kl_budget",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "early_stopping_patience",
            "early_stopping_threshold",
            "ledger",
        ],
    ),
    ("A reference that follows", &["sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"]),
    ("Samples", &["kl_samples", "kl_max_new_tokens", "max_new_tokens", "temperature", "top_p", "num_return_sequences"]),
    (
        "Device, precision, memory",
        &[
            "device",
            "dtype",
            "logits_dtype",
            "token_budget",
            "fit",
            "gradient_checkpointing",
            "cuda_graphs",
            "matmul_plans",
            "gpu",
            "device_memory",
            "quantize",
            "double_quant",
        ],
    ),
];

/// Under this heading stand the losses' options: whatever the table of losses has.
const LOSS: (&str, &[&str]) = (
    "Loss",
    &["loss_type", "loss_weights", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting"],
);

/// What every command takes; `-h` leaves it to `--help`.
const EVERYWHERE: &[&str] = &["quiet", "log_level", "threads"];

/// A command, what `-h` shows of its options (nothing: all of them), and its examples.
type About = (&'static str, &'static [&'static str], [&'static str; 2]);

/// Of every command.
pub const COMMANDS: &[About] = &[
    ("demo", &[], ["fusedpo demo", "fusedpo demo --out tour --steps 300 --prompts 400"]),
    (
        "pack",
        &[
            "tokenizer",
            "input",
            "out",
            "max_length",
            "truncation",
            "map",
            "chat_template",
            "eval_fraction",
            "overwrite",
        ],
        [
            "fusedpo pack --tokenizer smollm2 --input pairs.jsonl --out data --eval-fraction 0.1",
            "fusedpo pack --tokenizer smollm2 --input a.parquet b.csv --out data --map prompt=question",
        ],
    ),
    ("inspect", &[], ["fusedpo inspect data --show 3", "fusedpo inspect data --verify"]),
    (
        "sft",
        RUN,
        [
            "fusedpo sft --model smollm2 --data data --out run-sft",
            "fusedpo sft --model smollm2 --data data --out run-lora --lora-r 16 --learning-rate 2e-4",
        ],
    ),
    (
        "reference",
        &[],
        ["fusedpo reference --model run-sft --data data", "fusedpo reference --model run-sft --data data --prune"],
    ),
    (
        "dpo",
        RUN,
        [
            "fusedpo dpo --model run-sft --data data --out run-dpo --beta 0.1",
            "fusedpo dpo --config run-dpo/config.toml --out run-dpo --resume auto",
        ],
    ),
    (
        "plan",
        PLAN,
        [
            "fusedpo plan --model smollm2 --data data --lora-r 16 --quantize nf4",
            "fusedpo plan --model smollm2 --lengths tldr --device-memory 80GiB --gradient-checkpointing",
        ],
    ),
    ("report", &[], ["fusedpo report run-dpo --out report.html", "fusedpo report run-a run-b --out - > both.html"]),
    ("run", &[], ["fusedpo run recipe.toml --out polite", "fusedpo run docs/recipes/persona.toml --out persona"]),
    (
        "sweep",
        &[],
        [
            "fusedpo sweep betas.toml --out sweep-beta",
            "fusedpo sweep betas.toml --out sweep-beta --jobs 4 --gpus 0,1,2,3",
        ],
    ),
    ("watch", &[], ["fusedpo watch run-dpo", "fusedpo watch run-dpo --once"]),
    ("replay", &[], ["fusedpo replay run-dpo 120", "fusedpo replay run-dpo 120 --json"]),
    (
        "analyze",
        &[],
        [
            "fusedpo analyze run-dpo",
            "fusedpo analyze run-dpo --by source --input pairs.jsonl --exclude-out flipped.jsonl",
        ],
    ),
    (
        "eval",
        &[
            "model",
            "adapter",
            "ref_model",
            "data",
            "json",
            "loss_type",
            "beta",
            "kl_samples",
            "token_budget",
            "dtype",
            "device",
        ],
        [
            "fusedpo eval --model run-dpo --ref-model run-sft --data data",
            "fusedpo eval --model run-dpo --data data --kl-samples 0 --json",
        ],
    ),
    (
        "score",
        &[],
        [
            "fusedpo score --model run-dpo --data data --out scores.jsonl",
            "fusedpo score --model run-dpo --data data --per-token --out -",
        ],
    ),
    (
        "generate",
        &[],
        [
            "fusedpo generate --model run-dpo --prompt Hello --max-new-tokens 60",
            "fusedpo generate --model run-dpo --input prompts.jsonl --temperature 0.7 --num-return-sequences 4",
        ],
    ),
    (
        "merge",
        &[],
        [
            "fusedpo merge --model smollm2 --adapter run-lora --out merged",
            "fusedpo merge --model smollm2 --adapter run-lora --out merged --save-dtype bf16",
        ],
    ),
    (
        "quantize",
        &[],
        [
            "fusedpo quantize --model smollm2 --out smollm2-nf4",
            "fusedpo quantize --model smollm2 --out smollm2-nf4 --double-quant",
        ],
    ),
    (
        "loss",
        &[],
        [
            "fusedpo loss list",
            "fusedpo loss explain sigmoid --chosen -40 --rejected -52 --ref-chosen -42 --ref-rejected -51",
        ],
    ),
    ("doctor", &[], ["fusedpo doctor", "fusedpo doctor --json"]),
    ("completions", &[], ["fusedpo completions bash", "fusedpo completions zsh"]),
    ("man", &[], ["fusedpo man man1", "fusedpo man /usr/local/share/man/man1"]),
];

/// What `-h` shows of a run's.
const RUN: &[&str] = &[
    "model",
    "data",
    "out",
    "config",
    "learning_rate",
    "batch_size",
    "max_steps",
    "num_train_epochs",
    "lora_r",
    "resume",
    "eval_steps",
    "device",
    "dtype",
    "token_budget",
    "loss_type",
    "beta",
    "ref_model",
];

/// And of one that is not begun.
const PLAN: &[&str] = &[
    "stage",
    "lengths",
    "gpu",
    "device_memory",
    "json",
    "model",
    "data",
    "config",
    "batch_size",
    "lora_r",
    "quantize",
    "device",
    "dtype",
    "token_budget",
    "fit",
];

/// `program` with headings, examples, a short `-h`, and names with `_`.
pub fn grouped(program: Command) -> Command {
    let names: Vec<String> = program.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let program = program.mut_args(everywhere);
    names.iter().fold(program, |program, name| program.mut_subcommand(name, |command| of(name, command)))
}

fn of(name: &str, command: Command) -> Command {
    let (_, shown, examples) = COMMANDS.iter().find(|(of, ..)| *of == name).copied().unwrap_or(("", &[], ["", ""]));
    let command = command.mut_args(|arg| {
        let hidden = !shown.is_empty() && !shown.contains(&arg.get_id().as_str());
        brief(short_value(headed(underscored(arg)))).hide_short_help(hidden)
    });
    let command = command.mut_subcommands(|sub| {
        sub.mut_args(|arg| {
            let arg = brief(short_value(headed(underscored(arg))));
            let hidden = arg.get_help_heading() == Some(LOSS.0) && arg.get_id() != "beta";
            arg.hide_short_help(hidden)
        })
    });
    let examples = format!("Examples:\n  {}\n  {}", examples[0], examples[1]);
    let more = if shown.is_empty() { "" } else { "\n\n--help has the other options, and says more of these" };
    command.after_help(format!("{examples}{more}")).after_long_help(examples)
}

/// Of what every command takes.
fn everywhere(arg: Arg) -> Arg {
    let known = EVERYWHERE.contains(&arg.get_id().as_str());
    let arg = underscored(arg);
    if known { arg.help_heading("Everywhere").display_order(1000).hide_short_help(true) } else { arg }
}

/// `--learning_rate` for `--learning-rate`.
fn underscored(arg: Arg) -> Arg {
    match arg.get_long().filter(|long| long.contains('-')).map(|long| long.replace('-', "_")) {
        Some(name) => arg.alias(name),
        None => arg,
    }
}

/// Its value in a letter or a word, where nobody gave it a name: its own, in capitals, says nothing and takes half a line.
fn short_value(arg: Arg) -> Arg {
    let unnamed = arg.get_value_names().is_none_or(|names| names[0].as_str() == arg.get_id().as_str().to_uppercase());
    if !unnamed || !arg.get_action().takes_values() || arg.is_positional() {
        return arg;
    }
    let of = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|t| of == *t);
    match () {
        () if is(&[TypeId::of::<f64>()]) => arg.value_name("X"),
        () if is(&[TypeId::of::<usize>(), TypeId::of::<u64>()]) => arg.value_name("N"),
        () if arg.get_value_parser().possible_values().is_some() => arg.value_name("NAME"),
        () => arg,
    }
}

/// Its first clause and its default for `-h`, all of it for `--help`.
fn brief(arg: Arg) -> Arg {
    let Some(all) = arg.get_help().map(ToString::to_string) else { return arg };
    let (text, default) = match all.find(" [default: ") {
        Some(at) => (&all[..at], all[at + 2..].split_once(']')),
        None => (all.as_str(), None),
    };
    let clause = clause(text).trim_end_matches('.');
    // A list as long as that of the losses is for its own command.
    let many = arg.get_value_parser().possible_values().is_some_and(|values| values.count() > 12);
    let short = clause.to_owned() + &default.map_or_else(String::new, |(default, _)| format!(" [{default}]"));
    arg.help(short).long_help(all).hide_possible_values(many)
}

/// `text` up to its first `; ` outside parentheses, or to the end of its first sentence.
fn clause(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ';' if depth == 0 => return &text[..at],
            '.' if depth == 0 && text[at..].starts_with(". ") => return &text[..at],
            _ => {}
        }
    }
    text
}

fn headed(arg: Arg) -> Arg {
    let id = arg.get_id().as_str();
    let of_loss = LOSS.1.contains(&id) || crate::loss::Param::ALL.iter().any(|p| p.name() == id);
    let heading = HEADINGS.iter().find(|(_, ids)| ids.contains(&id)).map(|(heading, _)| *heading);
    match heading.or(of_loss.then_some(LOSS.0)) {
        Some(heading) => arg.help_heading(heading),
        None => arg,
    }
}
