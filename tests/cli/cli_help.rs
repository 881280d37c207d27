//! Help, completions, manual pages, and names with `_`.

use crate::cli_common;

use clap::Command;
use cli_common::*;
use fusedpo::cli::Cli as Program;
use fusedpo::commands::help::COMMANDS;

/// Commands of the program, and those within them.
fn commands() -> Vec<Vec<String>> {
    fn walk(command: &Command, path: &[String], all: &mut Vec<Vec<String>>) {
        for sub in command.get_subcommands() {
            let path = [path, &[sub.get_name().to_owned()]].concat();
            all.push(path.clone());
            walk(sub, &path, all);
        }
    }
    let mut all = Vec::new();
    walk(&Program::program(), &[], &mut all);
    all
}

#[test]
fn a_short_help_is_a_screen_and_every_example_is_a_command() {
    for path in commands() {
        let help = |flag: &str| {
            let words = ["fusedpo".to_owned()].into_iter().chain(path.clone()).chain([flag.to_owned()]);
            Program::program().try_get_matches_from(words).unwrap_err().to_string()
        };
        let (short, long) = (help("-h"), help("--help"));
        let lines = short.lines().count();
        assert!(lines <= 48, "{path:?} -h has {lines} lines:\n{short}");
        if path.len() > 1 {
            continue;
        }
        let (_, _, examples) =
            COMMANDS.iter().find(|(name, ..)| *name == path[0]).unwrap_or_else(|| panic!("{path:?} has no examples"));
        assert_ne!(examples[0], examples[1]);
        for example in examples {
            assert!(
                short.contains(&format!("  {example}\n")) && long.contains(&format!("  {example}\n")),
                "{example}:\n{short}"
            );
            assert!(example.starts_with(&format!("fusedpo {}", path[0])), "{example}");
            if let Err(e) = Program::program().try_get_matches_from(example.split(' ')) {
                panic!("{example}: {e}");
            }
        }
    }
}

/// Whoever adds an option to a large command says what it belongs to.
#[test]
fn options_of_large_commands_stand_under_headings() {
    for command in Program::program().get_subcommands() {
        let own = || command.get_arguments().filter(|a| a.get_long().is_some());
        let bare: Vec<_> = own().filter(|a| a.get_help_heading().is_none()).map(|a| a.get_id().to_string()).collect();
        if own().count() > 25 && command.get_name() != "plan" && command.get_name() != "eval" {
            assert_eq!(bare, [""; 0], "{}", command.get_name());
        }
        for arg in own() {
            let [short, long] = [arg.get_help(), arg.get_long_help()].map(|text| text.unwrap().to_string());
            let ends = short.split(" [").next().unwrap();
            assert!(long.starts_with(ends) && short.len() <= long.len(), "{short}\n{long}");
        }
    }
}

/// Every option of every command, as other trainers write it.
#[test]
fn names_with_underscores_are_the_same_options() {
    let mut seen = 0;
    for command in Program::program().get_subcommands() {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long().filter(|l| l.contains('-')) else { continue };
            let aliases = arg.get_all_aliases().unwrap_or_default();
            assert!(aliases.contains(&long.replace('-', "_").as_str()), "{} --{long}", command.get_name());
            seen += 1;
        }
    }
    assert!(seen > 150, "{seen}");
    let cli = Cli::with_data();
    for (out, args) in
        [("a", "--learning_rate 1e-3 --max_steps=2 --log_level error"), ("b", "--learning-rate 1e-3 --max-steps=2")]
    {
        cli.ok(&format!("dpo --model m --data d --device cpu {args} --out {out}"));
    }
    assert!(cli.bytes("a/model.safetensors") == cli.bytes("b/model.safetensors"));
    // What is no name of an option is none: a value, and what nobody knows.
    let ran = cli.command("generate --model m --max_new_tokens 2").args(["--prompt", "--top_p"]).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let ran = cli.run("dpo --learning_rte 1");
    assert!(ran.code == 2 && ran.err.contains("unexpected argument '--learning_rte'"), "{ran:?}");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let cli = Cli::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = cli.ok(&format!("completions {shell}")).out;
        for path in commands() {
            assert!(text.contains(path.last().unwrap()), "{shell}: {path:?}");
        }
        assert!(text.contains("learning-rate") && !text.contains("--learning_rate"), "{shell}");
    }
    let ran = cli.run("completions tcsh");
    assert!(ran.code == 2 && ran.err.contains("invalid value 'tcsh'"), "{ran:?}");
    let pages = commands().len() + 1;
    // Twice: pages that are there are replaced, and what else lies there stays.
    for _ in 0..2 {
        assert_eq!(cli.ok("man a/man1").out, format!("{pages} pages: a/man1\n"));
        cli.write("a/man1/ls.1", "mine");
    }
    assert_eq!((cli.names("a/man1", "").len(), cli.text("a/man1/ls.1")), (pages + 1, "mine".into()));
    for path in commands() {
        let page = cli.text(&format!("a/man1/fusedpo-{}.1", path.join("-")));
        assert!(page.starts_with(".ie") && page.contains(".SH NAME"), "{page}");
        // Every option with what it is for, whether it stands in `-h` or not.
        for entry in page.split("\n.TP\n").skip(1) {
            let said = entry.lines().nth(1).unwrap_or_default();
            assert!(!said.is_empty() && !said.starts_with('.'), "{path:?}: {entry}");
        }
    }
    let page = cli.text("a/man1/fusedpo-dpo.1");
    assert!(page.contains("fusedpo dpo \\-\\-config") && page.contains("\\-\\-ref\\-model\\-sync\\-steps"), "{page}");
    cli.write("file", "");
    let ran = cli.run("man file");
    assert!(ran.code == 2 && ran.err.starts_with("fusedpo: file: cannot create: "), "{ran:?}");
}
