//! `fusedpo`: parse, run one command, print an error as one line, map it to an exit code.

#![forbid(unsafe_code)]

use clap::error::ErrorKind;
use fusedpo::cli::{Cli, Command};
use fusedpo::comm::launch::Place;
use fusedpo::comm::{Comm, World};
use fusedpo::commands::out::STDOUT;
use fusedpo::commands::terminal::Terminal;
use fusedpo::commands::{bus, child, guarded, ranks, signal, threads};
use fusedpo::say::{self, Level};
use fusedpo::train::joined::Job;
use fusedpo::{Error, commands, guard};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = guarded::serve() {
        return code;
    }
    quiet_panics();
    bus::install();
    child::follow_parent();
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        // Help and version, and help in place of a missing command.
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => e.exit(),
        Err(e) => {
            let e = Error::usage(format!("{}; see --help", usage_line(&e.to_string())));
            let place = ranks::place().ok().flatten();
            return end(None, &e, ranks::world(place.as_ref()), 2);
        }
    };
    say::set_level(cli.level());
    let place = match ranks::place() {
        Ok(place) => place,
        Err(e) => return fail(&format!("{e}"), e.exit_code()),
    };
    ranks::hush(place.as_ref());
    let world = ranks::world(place.as_ref());
    let shared = match cli.command {
        Command::Sft(_) => Some("sft"),
        Command::Dpo { .. } => Some("dpo"),
        Command::Reference(_) => Some("reference"),
        Command::Eval(_) => Some("eval"),
        Command::Score(_) => Some("score"),
        Command::Generate(_) => Some("generate"),
        _ => None,
    };
    // `doctor` says what there is, whoever asks.
    let refused = match shared.is_some() || matches!(cli.command, Command::Doctor(_)) {
        true => Ok(()),
        false => ranks::refuse_several(place.as_ref()),
    };
    match refused {
        Err(_) if !world.is_first() => return ExitCode::from(2),
        Err(e) => return fail(&e.to_string(), e.exit_code()),
        Ok(()) => {}
    }
    let comm = match ranks::join(place.as_ref().filter(|_| shared.is_some())) {
        Ok(comm) => comm,
        Err(e) => return end(None, &e, world, e.exit_code()),
    };
    if let (Some(_), None, Some(odd)) = (shared, &place, Place::half(&ranks::environment)) {
        fusedpo::warn!("{odd}");
    }
    // Until here there was nothing to end in order, and who waits for other processes does not look.
    signal::install();
    // Again: UCX, by which MPICH goes, has taken SIGBUS for itself meanwhile.
    bus::install();
    let job = Job { comm: &*comm, launched: place.is_some() };
    if let Err(e) = ranks::same_command(job, shared.unwrap_or_default()) {
        return end(Some(&*comm), &e, world, e.exit_code());
    }
    if let Err(e) = threads::start(cli.threads, place.as_ref()) {
        return fail(&Cli::flags().error(&e), e.exit_code());
    }
    let mut terminal = Terminal::new(Cli::flags());
    let to = &mut terminal;
    let result = match cli.command {
        Command::Demo(args) => commands::demo::run(&args, to),
        Command::Pack(args) => commands::pack::run_pack(&args, to),
        Command::Inspect(args) => commands::inspect::run_inspect(&args),
        Command::Sft(args) => commands::train::sft(&args, job, to),
        Command::Reference(args) => commands::reference::run(&args, job, to),
        Command::Dpo { train, dpo } => commands::train::dpo(&train, &dpo, job, to),
        Command::Plan(args) => commands::plan::run(&args, to),
        Command::Replay(args) => commands::replay::run(&args, to),
        Command::Report(args) => {
            let flags = Cli::flags();
            commands::report::run(&args, &flags, to)
        }
        Command::Analyze(args) => commands::analyze::run(&args),
        Command::Run(args) => commands::run::run(&args, to.flags()),
        Command::Sweep(args) => commands::sweep::run(&args, to),
        Command::Watch(args) => commands::watch::run(&args),
        Command::Eval(args) => commands::eval::run(&args, job, to),
        Command::Score(args) => commands::score::run(&args, job, to),
        Command::Generate(args) => commands::generate::run(&args, job, to),
        Command::Loss(command) => commands::loss::run(&command),
        Command::Completions(args) => commands::shell::completions(&args, Cli::program()),
        Command::Man(args) => commands::shell::man(&args, Cli::program()),
        Command::Doctor(args) => commands::doctor::run(&args, to.flags(), place.as_ref()),
        Command::Merge(args) => commands::merge::run(&args, to),
        Command::Quantize(args) => commands::quantize::run(&args, to),
    };
    // With it go its bars.
    drop(terminal);
    let result = result.and_then(|()| ranks::end(&*comm));
    match result {
        // It came when nothing could be left undone any more; but what is to come after this command is not to begin.
        Ok(()) if signal::stop_requested() => {
            fail("all was done when the signal came", signal::exit_code().unwrap_or_default())
        }
        Ok(()) => ExitCode::SUCCESS,
        // As for `println!`: a reader that left has all it wanted.
        Err(Error::Io { path, source, .. })
            if path == Path::new(STDOUT) && source.kind() == std::io::ErrorKind::BrokenPipe =>
        {
            // The others have come to their end, and wait for this one.
            let _ = ranks::end(&*comm);
            ExitCode::SUCCESS
        }
        Err(e @ Error::Stopped(_)) => end(Some(&*comm), &e, world, signal::exit_code().unwrap_or(e.exit_code())),
        Err(e) => end(Some(&*comm), &e, world, e.exit_code()),
    }
}

/// An error's last words, and the end of the other processes that `comm` joined.
fn end(comm: Option<&dyn Comm>, e: &Error, world: World, code: u8) -> ExitCode {
    if let Some(why) = ranks::last_words(world, &Cli::flags().error(e), e) {
        fail(&why, code);
    }
    if let Some(comm) = comm {
        ranks::abort(comm, code);
    }
    ExitCode::from(code)
}

/// Says why, on one line whatever a library's own message looks like.
fn fail(why: &str, code: u8) -> ExitCode {
    say::at(
        Level::Error,
        &format!("fusedpo: {}", why.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")),
    );
    ExitCode::from(code)
}

/// What clap says, without its usage block.
fn usage_line(text: &str) -> String {
    let said = text.split("\nUsage:").next().unwrap_or(text).trim().trim_start_matches("error: ");
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A panic is a bug of ours, and its one line says where. But `println!` panics where it cannot write: a reader that went
/// away (`| head`) is no error, a full disk is the user's; and a panic inside a library that reads a damaged file becomes an
/// error of its own.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        if guard::is_guarded() {
            return;
        }
        let what = info.payload_as_str().unwrap_or("no message");
        if let Some(why) = what.strip_prefix("failed printing to stdout: ") {
            std::process::exit(unwritable_stdout(why).into());
        }
        let at = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        say::at(
            Level::Error,
            &format!("fusedpo: internal error at {at}: {what}; please report it with the command that led here"),
        );
        std::process::exit(70);
    }));
}

/// Says so, unless a reader left; the exit code.
fn unwritable_stdout(why: &str) -> u8 {
    let code = why.split_once("(os error ").and_then(|(_, rest)| rest.strip_suffix(')')?.parse().ok());
    let source = code.map_or_else(|| std::io::Error::other(why), std::io::Error::from_raw_os_error);
    if source.kind() == std::io::ErrorKind::BrokenPipe {
        return 0;
    }
    let e = Error::io(STDOUT, "write")(source);
    say::at(Level::Error, &format!("fusedpo: {e}"));
    e.exit_code()
}
