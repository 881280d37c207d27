//! `fusedpo`: parse, run one command, print an error as one line, map it to an exit code.

use clap::Parser;
use clap::error::ErrorKind;
use fusedpo::cli::{Cli, Command};
use fusedpo::{commands, demo, signal};
use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_panics();
    signal::install();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version, and help in place of a missing command.
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => e.exit(),
        Err(e) => return fail(&format!("{}; see --help", usage_line(&e.to_string())), 2),
    };
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Pack(args) => commands::pack::run_pack(&args),
        Command::Inspect(args) => commands::inspect::run_inspect(&args),
        Command::Sft(args) => commands::train::sft(args),
        Command::Reference(args) => commands::reference::run(&args),
        Command::Dpo { train, dpo } => commands::train::dpo(train, dpo),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Doctor => commands::doctor::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e.to_string(), e.exit_code()),
    }
}

/// Says why, on one line whatever a library's own message looks like.
fn fail(why: &str, code: u8) -> ExitCode {
    eprintln!("fusedpo: {}", why.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" "));
    ExitCode::from(code)
}

/// What clap says, without its usage block.
fn usage_line(text: &str) -> String {
    let said = text.split("\nUsage:").next().unwrap_or(text).trim().trim_start_matches("error: ");
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A panic is a bug of ours: one line that says where, and for a reader that went away (`| head`) not even that.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("no message");
        if what.contains("Broken pipe") {
            std::process::exit(0);
        }
        let at = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        eprintln!("fusedpo: internal error at {at}: {what}; please report it with the command that led here");
        std::process::exit(70);
    }));
}
