//! `fusedpo run`: the stages of a recipe, each a process of its own, and only what is not there yet.

mod chain;
mod kept;
mod known;
mod stage;
mod words;

use super::flags::Flags;
use super::out;
use super::signal;
use crate::error::{Error, Result};
use crate::files::{self, Claim, MOST_TEXT, RunDir};
use crate::note;
use crate::recipe::{Inputs, Manifest, Recipe, content_sha256};
use crate::say;
use crate::warn;
use chain::Link;
use kept::Kept;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Options of `fusedpo run`.
#[derive(Clone, clap::Args)]
pub struct RunArgs {
    /// TOML file with a table of options for each stage: pack, sft, reference, dpo, eval, report, export, quantize
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Folder for the results and manifest.json; what is there of the same inputs is not made again
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Says that a folder is a recipe's, and is locked as long as one is at work in it.
const LOCK: &str = "recipe.lock";

/// Runs the command.
pub fn run(args: &RunArgs, flags: &Flags) -> Result<()> {
    out::refuse_stdout(&args.out)?;
    let text = files::read_text(&args.recipe, MOST_TEXT).map_err(|e| e.doing("read the recipe"))?;
    let recipe = Recipe::parse(&args.recipe, &text)?;
    let named = |e: Error| match e {
        Error::Usage(why) => Error::file(&args.recipe, flags.reason(&why)),
        e => e,
    };
    let links = chain::links(&recipe, &args.out).map_err(named)?;
    let _claim = claim(&args.out)?;
    signal::saves();
    let path = args.out.join("manifest.json");
    let mut kept = Kept::read(&path)?;
    let mut manifest = Manifest {
        version: Manifest::VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        recipe_sha256: content_sha256(&args.recipe)?,
        complete: false,
        stages: Vec::new(),
        earlier: BTreeMap::new(),
        stale: BTreeMap::new(),
    };
    let write = |manifest: &mut Manifest, kept: &Kept| {
        manifest.complete = manifest.stages.len() == links.len();
        (manifest.earlier, manifest.stale) = (kept.earlier(&manifest.stages), kept.stale());
        files::write(&path, manifest.json().as_bytes())
    };
    for link in &links {
        let outputs = match found(link, &kept)? {
            Found::There(outputs) => {
                say!("{}: {} is there", link.stage.kind, link.result.display());
                outputs
            }
            found => {
                // What comes to be there now is made from what is there now.
                if kept.renew(link) || matches!(found, Found::SetAside) {
                    write(&mut manifest, &kept)?;
                }
                made(args, link)?;
                link.outputs()?
            }
        };
        kept.add((link, &links), &outputs);
        manifest.stages.push(link.entry(outputs));
        write(&mut manifest, &kept)?;
    }
    say!("{}", path.display());
    Ok(())
}

/// What there is of a stage.
enum Found {
    /// Its result, with what it holds.
    There(Inputs),
    /// One that was damaged, and has another name now.
    SetAside,
    /// Nothing that is through.
    Nothing,
}

/// Looks for the result of a stage; one that is no longer as it was made is set aside, and told.
fn found(link: &Link, kept: &Kept) -> Result<Found> {
    let why = if stage::is_there(link) {
        let outputs = link.outputs()?;
        let Some(why) = kept.damage(link, &outputs) else { return Ok(Found::There(outputs)) };
        why
    } else {
        // A run that is half done would go on.
        let half_done = || link.result.symlink_metadata().is_ok() && !RunDir::is_taken(&link.result);
        let Some(why) = kept.staleness(link).filter(|_| half_done()) else { return Ok(Found::Nothing) };
        why
    };
    let aside = files::set_aside(&link.result)?;
    let (kind, result) = (link.stage.kind, link.result.display());
    warn!("{kind}: {result} {why}: it is made again, and what was there is kept as {}", aside.display());
    Ok(Found::SetAside)
}

fn made(args: &RunArgs, link: &Link) -> Result<()> {
    let kind = link.stage.kind;
    note!("{kind}: fusedpo {}", link.words.join(" "));
    let begun = std::time::Instant::now();
    match stage::make(link)? {
        stage::Made::Well => {
            say!("{kind}: {} in {:.1} s", link.result.display(), begun.elapsed().as_secs_f64());
            Ok(())
        }
        stage::Made::Stopped => Err(Error::stopped(format!(
            "stopped in [{kind}]; this goes on: fusedpo run {} --out {}",
            args.recipe.display(),
            args.out.display()
        ))),
        // What the user can mend has its own exit code.
        stage::Made::Badly(why) if why.starts_with("ended with exit code 2:") => {
            Err(Error::file(&args.recipe, format!("[{kind}]: {why}")))
        }
        stage::Made::Badly(why) => Err(Error::Training(format!("[{kind}]: {why}"))),
    }
}

/// Takes the folder: a new one, or a recipe's.
fn claim(out: &Path) -> Result<Claim> {
    files::own_folder(out, LOCK, b"")?
        .ok_or_else(|| Error::file(out, "another recipe is at work in it; wait for it, or name a new folder"))
}
