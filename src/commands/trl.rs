//! Configurations as TRL's users have them: what means the same here is taken, what means something else or nothing is answered
//! with what there is instead.

use super::trl_keys::{ALWAYS, BATCH, ELSEWHERE, RENAMED};
use crate::choice::Choice;
use crate::train::options::Stage;
use crate::train::report_options::ReportTo;
use toml::{Table, Value};

/// A configuration by our names.
#[derive(Debug, Default, PartialEq)]
pub struct Translated {
    /// Options.
    pub table: Table,
    /// Defaults of TRL's that are other ones here and were taken from there, or could not be, with the key of each.
    pub defaults: Vec<(&'static str, String)>,
    /// About every key that means something else here: what to write.
    pub answers: Vec<String>,
}

/// `table`, of a run of `stage`, by our names, where `typed` is beside it.
pub fn translated(table: Table, stage: Stage, typed: &Table) -> Translated {
    let mut t = Translated { table, ..Translated::default() };
    let is_trls = RENAMED.iter().any(|(theirs, _)| t.table.contains_key(*theirs)) || t.table.contains_key("use_peft");
    let is_peft = t.table.get("use_peft").and_then(Value::as_bool) == Some(true);
    // A rank that is typed puts a new adapter in the place of the file's.
    let is_loaded = typed.contains_key("adapter") || (t.table.contains_key("adapter") && !typed.contains_key("lora_r"));
    t.answers.extend(batch(&mut t.table));
    for (theirs, ours) in RENAMED {
        if let Some(value) = t.table.remove(*theirs) {
            if t.table.contains_key(*ours) {
                t.answers.push(format!("`{theirs}` and `{ours}` are the same; leave one of them out"));
            } else {
                t.table.insert((*ours).into(), value);
            }
        }
    }
    for (key, is, why) in ALWAYS {
        if let Some(value) = t.table.remove(*key).map(|value| value.to_string())
            && !is.contains(&value.as_str())
        {
            t.answers.push(format!("`{key}` {value}: {why}; leave it out"));
        }
    }
    for (key, why) in ELSEWHERE {
        if t.table.remove(*key).is_some() {
            t.answers.push(format!("`{key}`: {why}"));
        }
    }
    for more in [
        peft(&mut t, is_trls, is_loaded),
        dropout(&mut t, stage, is_peft, is_loaded),
        quantized(&mut t.table),
        saved(&mut t.table),
        warm_up(&mut t.table),
        reported(&mut t.table),
    ] {
        t.answers.extend(more.err());
    }
    t.answers.extend(values(&mut t.table).err());
    if is_trls && !["num_train_epochs", "max_steps"].iter().any(|key| t.table.contains_key(*key)) {
        t.table.insert("num_train_epochs".into(), 3.0.into());
        t.defaults.push(("num_train_epochs", "`num_train_epochs` 3, as in TRL".into()));
    }
    t
}

fn batch(table: &mut Table) -> Option<String> {
    let (key, _) = BATCH.iter().find(|(key, _)| table.contains_key(*key))?;
    let mut of = |(key, default): (&str, i64)| table.remove(key).and_then(|n| n.as_integer()).unwrap_or(default);
    let pairs = BATCH.map(&mut of).into_iter().fold(1, i64::saturating_mul);
    Some(format!(
        "`{key}`: fusedpo has `batch_size`, pairs a step over all devices and micro-batches, which `token_budget` cuts: write \
         `batch_size: {pairs}` in place of {} and {} (on one device)",
        BATCH[0].0, BATCH[1].0
    ))
}

/// TRL trains an adapter where `use_peft` says so, and reads its options nowhere else. What it leaves to PEFT is, for every family
/// that is read here, on the queries and values. An adapter that is loaded has its own.
fn peft(t: &mut Translated, is_trls: bool, is_loaded: bool) -> Result<(), String> {
    let of_adapter = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora"];
    let said = t.table.remove("use_peft");
    match said.as_ref().map(Value::as_bool) {
        Some(None) => return Err("`use_peft`: is true or false".into()),
        Some(Some(true)) if is_loaded => {}
        Some(Some(true)) => {
            let modules: Vec<Value> = vec!["q_proj".into(), "v_proj".into()];
            for (key, value, shown) in [
                ("lora_r", Value::Integer(16), "16"),
                ("lora_alpha", Value::Integer(32), "32"),
                ("lora_target_modules", modules.into(), "q_proj, v_proj"),
            ] {
                if !t.table.contains_key(key) {
                    t.table.insert(key.into(), value);
                    t.defaults.push((key, format!("`{key}` {shown}, as in TRL")));
                }
            }
        }
        _ if is_trls => {
            if let Some(key) = of_adapter.iter().find(|key| t.table.contains_key(**key)) {
                return Err(format!("`{key}`: TRL reads it where `use_peft` is true; write that, or leave it out"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// What drops out. In DPO and where nothing else is said, TRL turns off what `lora_dropout` says with the model's own; of an adapter
/// that is loaded, what its files say too.
fn dropout(t: &mut Translated, stage: Stage, is_peft: bool, is_loaded: bool) -> Result<(), String> {
    let said = match t.table.remove("disable_dropout") {
        None => None,
        Some(Value::Boolean(yes)) => Some(yes),
        Some(other) => return Err(format!("`disable_dropout` {other}: is true or false")),
    };
    let given = t.table.get("lora_dropout").cloned();
    let nothing = |p: &Value| p.as_float() == Some(0.0) || p.as_integer() == Some(0);
    match said.unwrap_or(is_peft && stage == Stage::Dpo) {
        true => {
            if let Some(p) = given.as_ref().filter(|p| !is_peft && !nothing(p)) {
                return Err(format!(
                    "`disable_dropout` true and `lora_dropout` {p} contradict each other; leave one of them out"
                ));
            }
            match is_loaded {
                true => drop(t.table.insert("lora_dropout".into(), 0.0.into())),
                false => drop(t.table.remove("lora_dropout")),
            }
            if said.is_none() && !given.as_ref().is_some_and(nothing) {
                let why = "`disable_dropout` true, as in TRL, so that `lora_dropout` is 0";
                t.defaults.push(("lora_dropout", why.into()));
            }
        }
        false if is_peft && !is_loaded && given.is_none() => {
            t.table.insert("lora_dropout".into(), 0.05.into());
            t.defaults.push(("lora_dropout", "`lora_dropout` 0.05, as in TRL".into()));
        }
        false => {}
    }
    Ok(())
}

fn quantized(table: &mut Table) -> Result<(), String> {
    let kind = table.remove("bnb_4bit_quant_type");
    if let Some(kind) = kind.filter(|kind| kind.as_str() != Some("nf4")) {
        return Err(format!("`bnb_4bit_quant_type` {kind}: four bits are nf4; leave it out"));
    }
    for (theirs, ours, yes, no) in [
        ("load_in_4bit", "quantize", Value::from("nf4"), None),
        ("use_bnb_nested_quant", "double_quant", Value::from(true), Some(Value::from(false))),
    ] {
        let said = match table.remove(theirs) {
            None => continue,
            Some(Value::Boolean(true)) => Some(yes),
            Some(Value::Boolean(false)) => no,
            Some(other) => return Err(format!("`{theirs}` {other}: is true or false")),
        };
        match table.get(ours) {
            Some(given) if Some(given) != said.as_ref() => {
                return Err(format!("`{theirs}` and `{ours}` {given} contradict each other; leave one of them out"));
            }
            None if said == Some(Value::Boolean(true)) || ours == "quantize" => {
                table.extend(said.map(|value| (ours.to_owned(), value)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// When checkpoints are written.
fn saved(table: &mut Table) -> Result<(), String> {
    let Some(strategy) = table.remove("save_strategy") else { return Ok(()) };
    let never = strategy.as_str() == Some("no") || strategy.as_bool() == Some(false);
    match table.get("save_steps") {
        None if never => drop(table.insert("save_steps".into(), 0.into())),
        // TRL's default.
        None if strategy.as_str() == Some("steps") => drop(table.insert("save_steps".into(), 500.into())),
        Some(steps) if never && steps.as_integer() == Some(0) => {}
        Some(steps) if never => {
            return Err(format!("`save_strategy` {strategy} and `save_steps` {steps}: leave one of them out"));
        }
        Some(_) if strategy.as_str() == Some("steps") => {}
        _ => {
            let why = "fusedpo has `save_steps`: 0 saves only where a run is stopped; leave it out";
            return Err(format!("`save_strategy` {strategy}: {why}"));
        }
    }
    Ok(())
}

/// A share of the steps in the place of a number, as transformers 5 writes it.
fn warm_up(table: &mut Table) -> Result<(), String> {
    let Some(x) = table.get("warmup_steps").and_then(Value::as_float) else { return Ok(()) };
    if 0.0 < x && x < 1.0 {
        if let Some(ratio) = table.get("warmup_ratio")
            && ratio.as_float() != Some(0.0)
            && ratio.as_integer() != Some(0)
        {
            return Err(format!(
                "`warmup_steps` {x} and `warmup_ratio` {ratio}: both are the share of the steps; leave one of them out"
            ));
        }
        table.remove("warmup_steps");
        table.insert("warmup_ratio".into(), x.into());
    } else if x.fract() == 0.0 && (0.0..1e15).contains(&x) {
        table.insert("warmup_steps".into(), Value::Integer(x as i64));
    }
    Ok(())
}

/// A list of one is that one, and an empty one nobody.
fn reported(table: &mut Table) -> Result<(), String> {
    let Some(value) = table.get("report_to") else { return Ok(()) };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let names: Vec<String> = value.as_array().map_or_else(|| vec![text(value)], |all| all.iter().map(text).collect());
    let to = match &names[..] {
        [] => ReportTo::None,
        [name] => ReportTo::named(name).ok_or_else(|| format!("`report_to` {}", ReportTo::elsewhere(name)))?,
        all => return Err(format!("`report_to` {}", ReportTo::elsewhere(&all.join(", ")))),
    };
    table.insert("report_to".into(), to.name().into());
    Ok(())
}

/// Values that are written in another way.
fn values(table: &mut Table) -> Result<(), String> {
    // By epochs.
    if table.get("max_steps").and_then(Value::as_integer) == Some(-1) {
        table.remove("max_steps");
    }
    if let Some(Value::String(names)) = table.get("lora_target_modules") {
        let names: Vec<Value> = names.split(',').map(|name| name.trim().into()).collect();
        table.insert("lora_target_modules".into(), names.into());
    }
    // An unquoted `no` is a boolean to some writers.
    if table.get("eval_strategy").and_then(Value::as_bool) == Some(false) {
        table.insert("eval_strategy".into(), "no".into());
    }
    match table.get("resume").and_then(Value::as_bool) {
        Some(true) => drop(table.insert("resume".into(), "auto".into())),
        Some(false) => drop(table.remove("resume")),
        None => {}
    }
    match table.remove("bf16") {
        None => Ok(()),
        Some(Value::Boolean(yes)) if !table.contains_key("dtype") => {
            table.insert("dtype".into(), if yes { "bf16" } else { "f32" }.into());
            Ok(())
        }
        Some(other) => Err(format!("`bf16` {other}: fusedpo has `dtype`: write `dtype: bf16` or f32")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::trl_keys::TAKEN;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn what_means_the_same_is_taken() {
        let theirs = "model_name_or_path = 'm'\noutput_dir = 'o'\nuse_peft = true\nlora_target_modules = 'q_proj, v_proj'\nmax_steps = -1\n\
                      bf16 = true\nload_in_4bit = true\nuse_bnb_nested_quant = true\nprecompute_ref_log_probs = true\nfp16 = false\n\
                      warmup_steps = 0.1\neval_strategy = false\nbeta = 0.2";
        let ours = "model = 'm'\nout = 'o'\nlora_r = 16\nlora_alpha = 32\nlora_target_modules = ['q_proj', 'v_proj']\ndtype = 'bf16'\n\
                    num_train_epochs = 3.0\n                    quantize = 'nf4'\ndouble_quant = true\nwarmup_ratio = 0.1\neval_strategy = 'no'\nbeta = 0.2";
        let of = |text: &str| translated(table(text), Stage::Dpo, &Table::new());
        let t = of(theirs);
        assert_eq!((t.table, t.answers), (table(ours), vec![]));
        let said: Vec<&str> = t.defaults.iter().map(|(_, said)| said.as_str()).collect();
        let epochs = "`num_train_epochs` 3, as in TRL";
        let defaults = [
            "`lora_r` 16, as in TRL",
            "`lora_alpha` 32, as in TRL",
            "`disable_dropout` true, as in TRL, so that `lora_dropout` is 0",
            epochs,
        ];
        assert_eq!(said, defaults);
        // Our own names need no translation, an adapter's neither, and our defaults are ours.
        let ours = table("model = 'm'\nlora_r = 8\nlora_target_modules = ['q_proj']\nwarmup_steps = 10");
        assert_eq!(
            translated(ours.clone(), Stage::Dpo, &Table::new()),
            Translated { table: ours, ..Translated::default() }
        );
        let t = of("use_peft = true\nlora_r = 2\nlora_alpha = 4\nlora_dropout = 0.0\nmax_steps = 5");
        assert_eq!(t.table["lora_target_modules"].to_string(), "[\"q_proj\", \"v_proj\"]");
        assert_eq!(t.defaults, [("lora_target_modules", "`lora_target_modules` q_proj, v_proj, as in TRL".to_owned())]);
        // What drops out: nothing in DPO unless it is said twice, and in SFT what is said, or TRL's default.
        let full = "use_peft = true\nlora_r = 2\nlora_alpha = 4\nlora_target_modules = ['q_proj']\nmax_steps = 5\n";
        for (stage, text, want, said) in [
            (Stage::Dpo, "", None, 1),
            (Stage::Dpo, "lora_dropout = 0.1", None, 1),
            (Stage::Dpo, "disable_dropout = true\nlora_dropout = 0.1", None, 0),
            (Stage::Dpo, "disable_dropout = false\nlora_dropout = 0.1", Some(0.1), 0),
            (Stage::Dpo, "disable_dropout = false", Some(0.05), 1),
            (Stage::Sft, "", Some(0.05), 1),
            (Stage::Sft, "lora_dropout = 0.1", Some(0.1), 0),
            (Stage::Sft, "lora_dropout = 0", Some(0.0), 0),
        ] {
            let t = translated(table(&format!("{full}{text}")), stage, &Table::new());
            let got = t.table.get("lora_dropout").and_then(|p| p.as_float().or(p.as_integer().map(|p| p as f64)));
            assert_eq!((got, t.defaults.len(), t.answers), (want, said, vec![]), "{stage} {text}");
        }
        // A loaded adapter has what its files say, unless it is said what drops; one of a rank that is typed is new.
        let [adapter, rank] = ["adapter = 'a'", "lora_r = 2"];
        for (stage, text, typed, want, said) in [
            (Stage::Sft, "use_peft = true", adapter, "", 0),
            (Stage::Sft, "use_peft = true\nadapter = 'a'", "", "adapter = 'a'", 0),
            (Stage::Sft, "use_peft = true\nlora_dropout = 0.1", adapter, "lora_dropout = 0.1", 0),
            (Stage::Sft, "use_peft = true\ndisable_dropout = true", adapter, "lora_dropout = 0.0", 0),
            (Stage::Dpo, "use_peft = true", adapter, "lora_dropout = 0.0", 1),
            (Stage::Dpo, "use_peft = true\nlora_dropout = 0.1", adapter, "lora_dropout = 0.0", 1),
            (Stage::Dpo, "use_peft = true\ndisable_dropout = false", adapter, "", 0),
            (Stage::Dpo, "disable_dropout = true", adapter, "lora_dropout = 0.0", 0),
            (Stage::Dpo, "disable_dropout = true\nadapter = 'a'", "", "adapter = 'a'\nlora_dropout = 0.0", 0),
            (Stage::Dpo, "disable_dropout = true\nadapter = 'a'", rank, "adapter = 'a'", 0),
            (Stage::Dpo, "disable_dropout = true", "", "", 0),
            (Stage::Dpo, "disable_dropout = true\nlora_dropout = 0", "", "", 0),
            (Stage::Dpo, "use_peft = false", adapter, "", 0),
        ] {
            let t = translated(table(&format!("max_steps = 5\n{text}")), stage, &table(typed));
            let want = table(&format!("max_steps = 5\n{want}"));
            assert_eq!((t.table, t.defaults.len(), t.answers), (want, said, vec![]), "{stage} {text} {typed}");
        }
        let t = translated(table("use_peft = true\nadapter = 'a'\nmax_steps = 1"), Stage::Sft, &table(rank));
        assert!(["lora_alpha", "lora_target_modules", "lora_dropout"].iter().all(|key| t.table.contains_key(*key)));
        // What says what is always so.
        let always = "push_to_hub = false\nuse_dora = false\nuse_liger_kernel = false\nbf16_full_eval = false\ncompletion_only_loss = true\n\
                      padding_free = false\nresume = false\nwarmup_steps = 0.0\nsave_strategy = 'no'\nreport_to = 'none'\nfsdp = ''\n\
                      bnb_4bit_quant_type = 'nf4'\nload_in_4bit = true\nquantize = 'nf4'\nuse_bnb_nested_quant = false";
        let t = of(always);
        let ours = "warmup_steps = 0\nsave_steps = 0\nquantize = 'nf4'\nreport_to = 'none'";
        assert_eq!((t.table, t.answers), (table(ours), vec![]));
        for (theirs, ours) in [("['tensorboard']", "tensorboard"), ("[]", "none"), ("'tensorboard'", "tensorboard")] {
            assert_eq!(of(&format!("report_to = {theirs}")).table["report_to"].as_str(), Some(ours));
        }
        assert_eq!(
            of("warmup_steps = 12.0\nsave_strategy = 'steps'").table,
            table("warmup_steps = 12\nsave_steps = 500")
        );
        assert_eq!(of("warmup_steps = 0.1\nwarmup_ratio = 0").table, table("warmup_ratio = 0.1"));
    }

    #[test]
    fn what_means_something_else_is_answered() {
        for (theirs, want) in [
            (
                "per_device_train_batch_size = 4\ngradient_accumulation_steps = 8",
                "`per_device_train_batch_size`: fusedpo has `batch_size`, pairs a step over all devices and micro-batches, which \
                 `token_budget` cuts: write `batch_size: 32` in place of per_device_train_batch_size and gradient_accumulation_steps (on one device)",
            ),
            (
                "report_to = 'wandb'",
                "`report_to` wandb: event files for TensorBoard are all that a run writes; scripts/log_to.py",
            ),
            ("report_to = ['tensorboard', 'all']", "`report_to` tensorboard, all: event files"),
            ("gradient_accumulation_steps = 2", "`gradient_accumulation_steps`: fusedpo has `batch_size`"),
            (
                "precompute_ref_log_probs = false",
                "`precompute_ref_log_probs` false: the reference's log-probs are always computed before; leave it out",
            ),
            ("fp16 = true", "`fp16` true: there is no fp16"),
            ("dataset_name = 'trl-lib/x'", "`dataset_name`: fusedpo trains on shards: pack the rows"),
            (
                "max_length = 512",
                "`max_length`: rows are cut when they are packed: `fusedpo pack --max-length N`; leave it out",
            ),
            (
                "model_name_or_path = 'm'\nlora_r = 8",
                "`lora_r`: TRL reads it where `use_peft` is true; write that, or leave it out",
            ),
            ("use_peft = false\nlora_alpha = 8", "`lora_alpha`: TRL reads it"),
            (
                "model = 'a'\nmodel_name_or_path = 'b'",
                "`model_name_or_path` and `model` are the same; leave one of them out",
            ),
            ("use_peft = 1", "`use_peft`: is true or false"),
            ("disable_dropout = 1", "`disable_dropout` 1: is true or false"),
            (
                "lora_r = 2\ndisable_dropout = true\nlora_dropout = 0.1",
                "`disable_dropout` true and `lora_dropout` 0.1 contradict",
            ),
            ("load_in_4bit = 'yes'", "`load_in_4bit` \"yes\": is true or false"),
            ("bf16 = true\ndtype = 'f32'", "`bf16` true: fusedpo has `dtype`"),
            (
                "warmup_steps = 0.1\nwarmup_ratio = 0.5",
                "`warmup_steps` 0.1 and `warmup_ratio` 0.5: both are the share of the steps; leave one of them out",
            ),
            ("load_in_4bit = false\nquantize = 'nf4'", "`load_in_4bit` and `quantize` \"nf4\" contradict each other"),
            (
                "use_bnb_nested_quant = true\ndouble_quant = false",
                "`use_bnb_nested_quant` and `double_quant` false contradict",
            ),
            (
                "save_strategy = 'no'\nsave_steps = 5",
                "`save_strategy` \"no\" and `save_steps` 5: leave one of them out",
            ),
            ("save_strategy = 'epoch'", "`save_strategy` \"epoch\": fusedpo has `save_steps`"),
            ("push_to_hub = true", "`push_to_hub` true: nothing is sent anywhere; leave it out"),
            (
                "model_revision = 'main'",
                "`model_revision`: it stands behind the model's name: write `model: ORG/NAME@REVISION`",
            ),
            ("bnb_4bit_quant_type = 'fp4'", "`bnb_4bit_quant_type` \"fp4\": four bits are nf4; leave it out"),
        ] {
            let answers = translated(table(theirs), Stage::Dpo, &Table::new()).answers;
            assert!(answers.len() == 1 && answers[0].starts_with(want), "{theirs}: {answers:?}");
        }
        // All at once.
        let all = "max_length = 8\nfp16 = true\nuse_peft = 1\nbf16 = 'yes'\ngradient_accumulation_steps = 2\nwarmup_steps = 0.1\nwarmup_ratio = 1";
        assert_eq!(translated(table(all), Stage::Dpo, &Table::new()).answers.len(), 6);
        let (elsewhere, always) = (ELSEWHERE.iter().chain(TAKEN), ALWAYS.iter().map(|(key, ..)| *key));
        let mut all: Vec<&str> = elsewhere.map(|(key, _)| *key).chain(always).collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n, "a key is answered once");
    }
}
