//! Options of what is trained: some parameters, an adapter, or everything.

use super::group::{Group, options};
use super::trained::Trained;
use crate::error::{Error, Result};
use crate::model::adapter::{MODULES, targets};
use crate::model::{AdapterInit, AdapterShape, Quantize, Quantized};
use std::path::PathBuf;

/// `lora_target_modules` for every linear layer of a block.
const ALL: &str = "all-linear";
/// vLLM's `--max-lora-rank`, where nobody says otherwise.
const VLLM_RANK: usize = 16;

options! {
    /// What is trained.
    pub struct TrainedOptions {
        /// `all`, `adapters`, or a regular expression of the names of the parameters that train, the others being frozen;
        /// `None`: the adapter where there is one, else all.
        train: Option<String> = None;
        /// Folder of an adapter in PEFT's form to start from.
        adapter: Option<PathBuf> = None;
        /// Rank of a new adapter; `None`: no new adapter.
        lora_r: Option<usize> = None, in rank, "1 or more, and at most 65536";
        /// Its alpha; `None`: twice the rank.
        lora_alpha: Option<f64> = None, in given_above_0, "a finite number greater than 0";
        /// Share of the adapter's input that is dropped while it trains; `None`: none of a new one's, of a loaded one's what its
        /// files say.
        lora_dropout: Option<f64> = None, in given_below_1, "from 0 on, and below 1";
        /// Modules that have one, by PEFT's names; `None`: every linear layer of a block.
        lora_target_modules: Option<Vec<String>> = None;
        /// Whether it is scaled by `alpha / sqrt(r)`.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        use_rslora: bool = false;
        /// What its A is drawn from; `None`: PEFT's default.
        lora_init: Option<AdapterInit> = None;
        /// What the linear weights of blocks are held in, beside an adapter; `None`: as they are stored.
        quantize: Option<Quantize> = None;
        /// Whether the magnitudes of its blocks are quantized too; `None`: not, where they are quantized.
        double_quant: Option<bool> = None;
    }
}

fn rank(r: &Option<usize>) -> bool {
    r.is_none_or(|r| (1..=crate::model::adapter::MOST_RANK).contains(&r))
}

fn given_above_0(x: &Option<f64>) -> bool {
    x.is_none_or(|x| x.is_finite() && x > 0.0)
}

fn given_below_1(x: &Option<f64>) -> bool {
    x.is_none_or(|x| (0.0..1.0).contains(&x))
}

impl TrainedOptions {
    /// Whether an adapter is trained, new or loaded.
    pub fn has_adapter(&self) -> bool {
        self.lora_r.is_some() || self.adapter.is_some()
    }

    /// Fills in what depends on others. Errors: what has no meaning together, what is not supported.
    pub fn resolve(&mut self) -> Result<()> {
        self.check()?;
        let given = [
            ("lora_alpha", self.lora_alpha.is_some()),
            ("lora_target_modules", self.lora_target_modules.is_some()),
            ("use_rslora", self.use_rslora),
            ("lora_init", self.lora_init.is_some()),
        ];
        let ignored = given.into_iter().find(|(_, given)| *given && self.lora_r.is_none());
        if let Some((name, _)) = ignored {
            let why = match self.adapter.is_some() {
                true => "an adapter that is loaded (`adapter`) has its own",
                false => "only a new adapter has it; give `lora_r` too",
            };
            return Err(Error::usage(format!("`{name}`: {why}")));
        }
        if self.lora_dropout.is_some() && !self.has_adapter() {
            return Err(Error::usage("`lora_dropout`: only an adapter has it; give `lora_r` or `adapter` too"));
        }
        if self.lora_r.is_some() && self.adapter.is_some() {
            return Err(Error::usage(
                "`lora_r`: an adapter that is loaded (`adapter`) has its own; leave one of them out",
            ));
        }
        match (self.train.as_deref(), self.has_adapter()) {
            (Some("adapters"), false) => {
                return Err(Error::usage("`train` adapters: there is no adapter; give `lora_r` or `adapter`"));
            }
            (Some("adapters"), true) | (Some("all"), false) => self.train = None,
            (Some(other), true) => {
                return Err(Error::usage(format!(
                    "`train` {other}: with an adapter the adapter alone is trained; leave it out, or merge the adapter first"
                )));
            }
            _ => {}
        }
        self.resolve_quantized()?;
        Trained::of(self.train.as_deref())?;
        if let Some(r) = self.lora_r {
            self.lora_alpha.get_or_insert(2.0 * r as f64);
            self.lora_dropout = self.lora_dropout.filter(|p| *p != 0.0);
            self.lora_init.get_or_insert_default();
            let all = || MODULES.iter().map(|(name, _)| (*name).to_owned()).collect();
            let names = self.lora_target_modules.get_or_insert_with(all);
            if *names == [ALL] {
                *names = all();
            }
            let known = targets(names.iter().map(String::as_str)).map_err(|name| {
                let all = MODULES.map(|(name, _)| name).join(", ");
                Error::usage(format!("`lora_target_modules` {name}: an adapter can be on {all}, or on {ALL}"))
            })?;
            // In one order, and once each: a run that goes on compares them.
            *names = MODULES.iter().zip(known).filter(|(_, on)| *on).map(|((name, _), _)| (*name).to_owned()).collect();
            if names.is_empty() {
                return Err(Error::usage(format!("`lora_target_modules` names nothing; leave it out for {ALL}")));
            }
        }
        Ok(())
    }

    /// Refuses weights in four bits that nothing trains beside.
    fn resolve_quantized(&mut self) -> Result<()> {
        match (self.quantize, self.double_quant) {
            (None, Some(_)) => Err(Error::usage(
                "`double_quant`: only weights that are quantized have it; give `quantize` too, or leave it out",
            )),
            (Some(quantize), _) if !self.has_adapter() => Err(Error::usage(format!(
                "`quantize` {quantize}: weights in four bits do not train; give `lora_r` to train an adapter beside them, or leave it out"
            ))),
            (Some(_), double) => {
                self.double_quant = Some(double.unwrap_or_default());
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    /// How weights are held in four bits, where that was asked for.
    pub fn quantized(&self) -> Option<Quantized> {
        Some(self.quantize?.with(self.double_quant))
    }

    /// The new adapter, where there is one, once the options are resolved.
    pub fn new_adapter(&self) -> Option<(AdapterShape, AdapterInit)> {
        let (r, alpha) = (self.lora_r?, self.lora_alpha?);
        let targets = targets(self.lora_target_modules.iter().flatten().map(String::as_str)).ok()?;
        let dropout = self.lora_dropout.unwrap_or_default();
        let shape = AdapterShape { r, alpha, rslora: self.use_rslora, targets, dropout };
        Some((shape, self.lora_init.unwrap_or_default()))
    }
}

/// What others would refuse or scale wrongly, each with the choice that works everywhere.
pub fn warnings(shape: &AdapterShape) -> Vec<String> {
    let mut all = Vec::new();
    if shape.rslora {
        let (root, alpha) = ((shape.r as f64).sqrt(), shape.alpha * (shape.r as f64).sqrt());
        all.push(format!(
            "llama.cpp scales an adapter by alpha / r, so this one (`options.use_rslora`) would be {root:.3} times too weak there: \
             the same without it is `options.lora_alpha` {alpha:.6}"
        ));
    }
    if shape.r > VLLM_RANK {
        let r = shape.r;
        all.push(format!(
            "vLLM refuses an adapter of rank {r} unless it is started with a max_lora_rank of that much; up to {VLLM_RANK} it takes as it is"
        ));
    }
    all
}
