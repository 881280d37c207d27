//! The command line: which command, with which options. No work is done here.

use crate::commands::choice::named;
use crate::commands::demo::DemoArgs;
use crate::commands::flags::Flags;
use crate::commands::train_flags::{DpoFlags, TrainFlags};
use crate::commands::{
    analyze, doctor, eval, generate, help, inspect, loss, merge, pack, plan, quantize, reference, replay, report, run,
    score, shell, sweep, watch,
};
use crate::say::Level;
use crate::train::schedule::SFT_LEARNING_RATE;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Trains language models on preferences: SFT, then Direct Preference Optimization.
#[derive(Parser)]
#[command(name = "fusedpo", version, about, max_term_width = 100)]
pub struct Cli {
    /// Say nothing on stderr but warnings and errors; a run's log has the rest
    #[arg(long, short, global = true, conflicts_with = "log_level")]
    pub quiet: bool,
    /// How much to say on stderr [default: info]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = named::<Level>())]
    pub log_level: Option<Level>,
    /// Threads of a CPU to work with; results do not depend on it [default: one a core, or RAYON_NUM_THREADS]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

fn threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "give a whole number, 1 or more".to_owned())
}

impl Cli {
    /// How much stderr gets.
    pub fn level(&self) -> Level {
        let asked = if self.quiet { Some(Level::Warning) } else { self.log_level };
        asked.unwrap_or_default()
    }

    /// What the user typed. `--beta -1` is a value out of range, not an option called `-1`.
    pub fn from_command_line() -> Result<Self, clap::Error> {
        fn negative(arg: clap::Arg) -> clap::Arg {
            match arg.get_action().takes_values() && !arg.is_positional() {
                true => arg.allow_negative_numbers(true),
                false => arg,
            }
        }
        fn everywhere(command: clap::Command) -> clap::Command {
            command.mut_args(negative).mut_subcommands(everywhere)
        }
        let mut command = everywhere(Self::program());
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        Self::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
    }

    /// All commands with their options.
    pub fn program() -> clap::Command {
        let rate = |arg: clap::Arg| arg.help(format!("Peak learning rate [default: {SFT_LEARNING_RATE:e}]"));
        help::grouped(Self::command().mut_subcommand("sft", |sft| sft.mut_arg("learning_rate", rate)))
    }

    /// The options of all commands.
    pub fn flags() -> Flags {
        Flags::of(&Self::program())
    }
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// The whole method on data the program makes itself: SFT, sampling, DPO, and what it changed
    Demo(DemoArgs),
    /// Turn JSONL, JSON or Parquet into memory-mapped shards of token ids
    Pack(pack::PackArgs),
    /// Show what a folder of shards holds
    Inspect(inspect::InspectArgs),
    /// Fine-tune on completions (of pairs: the chosen ones)
    Sft(TrainFlags),
    /// Compute and keep the reference's log-probs; interrupted, it goes on
    Reference(reference::ReferenceArgs),
    /// Train on preferences
    Dpo {
        /// Options shared with `sft`.
        #[command(flatten)]
        train: TrainFlags,
        /// Options of DPO.
        #[command(flatten)]
        dpo: Box<DpoFlags>,
    },
    /// The memory that a run would take, buffer by buffer, and the largest token budget that fits: without the weights, and for
    /// a device that need not be here. Takes the options of the run; those that change no memory are checked alone
    Plan(plan::PlanArgs),
    /// Take a step of a run again, op by op, and name what was not finite first
    Replay(replay::ReplayArgs),
    /// Runs as one page that needs no network: curves, held-out tables, configuration, data
    Report(report::ReportArgs),
    /// What a run's ledger says of its pairs: likely flipped labels, the hardest, bias of length, displacement, duplicates
    Analyze(analyze::AnalyzeArgs),
    /// Make all stages of a recipe: pack, sft, reference, dpo, eval, report, export, quantize; again, only what changed
    Run(run::RunArgs),
    /// Search over options: a grid or draws of them, a run each, and a table with reward over KL; killed, it goes on
    Sweep(sweep::SweepArgs),
    /// Draw a run's curves in the terminal, again and again until it ends
    Watch(watch::WatchArgs),
    /// Loss, rewards, accuracy and KL on held-out pairs; where none are held out, on all, with a warning
    Eval(eval::EvalArgs),
    /// Log-probability of every response, as JSON lines
    Score(score::ScoreArgs),
    /// Continue prompts
    Generate(generate::GenerateArgs),
    /// The losses: which there are, and each with its formula, source, and value and gradient at given log-probs
    #[command(subcommand)]
    Loss(loss::LossCommand),
    /// Merge an adapter (LoRA) into the weights of its base model
    Merge(merge::MergeArgs),
    /// Write a model in four bits (NF4), as transformers with bitsandbytes does
    Quantize(quantize::QuantizeArgs),
    /// Print completions of commands and options for a shell
    Completions(shell::CompletionsArgs),
    /// Write manual pages, one a command
    Man(shell::ManArgs),
    /// Which devices, libraries and SIMD levels were found, and what to do about the rest
    Doctor(doctor::DoctorArgs),
}
