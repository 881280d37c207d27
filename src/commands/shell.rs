//! `fusedpo completions` and `fusedpo man`: what a shell and `man` know of the program.

use super::out::STDOUT;
use crate::error::{Error, Result};
use crate::files;
use crate::say;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `fusedpo completions`.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// Shell to complete for
    pub shell: Shell,
}

/// Options of `fusedpo man`.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Folder for the pages; made where it is not there. Pages of these names are replaced
    #[arg(value_name = "DIR")]
    pub out: PathBuf,
}

/// Prints the completions of `program`.
pub fn completions(args: &CompletionsArgs, mut program: Command) -> Result<()> {
    let (name, mut text) = (program.get_name().to_owned(), Vec::new());
    clap_complete::generate(args.shell, &mut program, name, &mut text);
    std::io::stdout().write_all(&text).map_err(Error::io(STDOUT, "write"))
}

/// Writes a page for `program` and one for each of its commands.
pub fn man(args: &ManArgs, mut program: Command) -> Result<()> {
    program.build();
    let out = &args.out;
    if out == Path::new("-") {
        return Err(Error::usage("DIR -: pages go into a folder, which standard output cannot hold; name one"));
    }
    if !out.is_dir() {
        files::make_folder(out)?;
    }
    let mut pages = 0;
    let mut write = |command: &Command| -> Result<()> {
        let mut page = Vec::new();
        // A page has what `--help` has: also of what `-h` leaves out.
        let whole = command.clone().mut_args(|arg| match (arg.get_long_help(), arg.get_help().cloned()) {
            (None, Some(help)) => arg.long_help(help),
            _ => arg,
        });
        let man = Man::new(whole).source(concat!("fusedpo ", env!("CARGO_PKG_VERSION"))).manual("fusedpo");
        let name = man.get_filename();
        man.render(&mut page).map_err(Error::io(out.join(&name), "write"))?;
        pages += 1;
        files::write(&out.join(name), &page)
    };
    write(&program)?;
    for command in program.get_subcommands().filter(|c| c.get_name() != "help") {
        write(command)?;
        command.get_subcommands().filter(|c| c.get_name() != "help").try_for_each(&mut write)?;
    }
    say!("{pages} pages: {}", out.display());
    Ok(())
}
