//! `fusedpo demo`: the method's pipeline in one command, on data that the program makes itself.
//!
//! It is the controlled-sentiment experiment of the DPO paper (section 6.1) with a grammar in place of film reviews and
//! of the sentiment classifier, so that the reward is known exactly:
//! 1. write reviews ([`grammar`]) and train a small Llama from scratch on them (SFT),
//! 2. let it continue prompts, several times each, and score what it wrote,
//! 3. train on the resulting preferences (DPO), the SFT model being the reference,
//! 4. compare both models on prompts that DPO did not see ([`report`]).
//!
//! Every stage runs the same functions as the ordinary commands ([`stages`]) and leaves its files behind. What is
//! printed on stdout is the same in every run; what takes time is told on stderr.

pub mod folder;
pub mod grammar;
pub mod report;
pub mod samples;
mod sizes;
pub mod stages;
pub mod tokenizer;
pub mod words;

use crate::backend::Backend;
use crate::device::{self, Task};
use crate::error::Result;
use crate::observe::{Event, Observe};
use crate::say;
use crate::train::choices::{DeviceChoice, DtypeChoice, LogitsChoice};
use folder::Folder;
use grammar::{Draws, Grammar};
use report::Report;
use samples::Judge;
pub use sizes::Sizes;
use stages::{Stages, go_on};
use std::path::PathBuf;
use std::time::Instant;
use words::join;

/// What a demo can be asked.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Folder for data and models; what an earlier demo left there is replaced.
    pub out: PathBuf,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Steps of SFT.
    pub steps: u64,
    /// Prompts, those held out among them; `None`: as many as suit the steps.
    pub prompts: Option<usize>,
}

/// Runs the command.
pub fn run(options: &DemoOptions, observe: &mut dyn Observe) -> Result<()> {
    let folder = Folder::create(&options.out)?;
    device::dispatch(options.device, (DtypeChoice::Auto, LogitsChoice::F32), Demo { options, folder, observe })
}

struct Demo<'a> {
    options: &'a DemoOptions,
    folder: Folder,
    observe: &'a mut dyn Observe,
}

impl Task for Demo<'_> {
    type Out = ();

    fn run<B: Backend>(self, be: &B) -> Result<()> {
        let begun = Instant::now();
        let (o, observe) = (self.options, self.observe);
        let (seed, sizes) = (o.seed, Sizes::new(o.steps, o.prompts));
        let grammar = Grammar::reviews();
        let stages = Stages { be, dir: self.folder.path(), sizes, seed, device: o.device };

        title(1, "Write reviews, and train a small Llama on them from scratch");
        let reviews: Vec<_> = (0..sizes.reviews).map(|i| grammar.generate(&mut Draws::new(seed, i as u64))).collect();
        say!("{} reviews from a grammar of {} words, for example:", reviews.len(), grammar.vocabulary().len());
        for r in &reviews[..3] {
            say!("    {:+.2}  {}", grammar.reward(&r.words), join(&r.words));
        }
        say!("The number is a text's reward: the mean score of its opinions, from -1 to 1. Training does not see it.");
        stages.init(&grammar.vocabulary())?;
        stages.sft(&reviews, observe)?;
        go_on(observe)?;

        title(2, "Let the model write, and score what it wrote");
        let judge = Judge::new(&grammar, &self.folder.path().join("init"))?;
        let prompts = samples::prompts(&grammar, sizes.prompts, seed);
        let before = stages.generate("sft", &prompts, &judge, observe)?;
        let held_out = stages.preferences(&prompts, &before, observe)?;
        go_on(observe)?;

        title(3, "Direct Preference Optimization, with the SFT model as reference");
        let accuracy = stages.dpo(observe)?;
        go_on(observe)?;

        title(4, "What it changed, on prompts that DPO did not see");
        let prompts: Vec<_> = held_out.iter().map(|&i| prompts[i].clone()).collect();
        let before: Vec<_> = held_out.iter().map(|&i| before[i].clone()).collect();
        let after = stages.generate("dpo", &prompts, &judge, observe)?;
        let kl = stages.kl(observe)?;
        Report { grammar: &grammar, prompts: &prompts, before: &before, after: &after, kl, accuracy }.print();
        say!("");
        report::print_next(self.folder.path());
        observe.tell(&Event::Note(&format!("the demo took {:.0} s", begun.elapsed().as_secs_f64())))?;
        Ok(())
    }
}

fn title(n: usize, text: &str) {
    say!("{}{n}. {text}", if n == 1 { "" } else { "\n" });
}
