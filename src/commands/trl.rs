//! Configurations as TRL's users have them: what means the same here is taken, what means something else or nothing is answered
//! with what there is instead.

use toml::{Table, Value};

/// TRL's names for what has another one here.
const RENAMED: &[(&str, &str)] =
    &[("model_name_or_path", "model"), ("output_dir", "out"), ("resume_from_checkpoint", "resume")];

/// Keys that say nothing but what is always so here, with the value that says it.
const ALWAYS: &[(&str, &str, &str)] = &[
    ("precompute_ref_log_probs", "true", "the reference's log-probs are always computed before"),
    ("disable_dropout", "true", "nothing drops out"),
    ("fp16", "false", "there is no fp16; bf16 is `dtype`"),
    ("load_in_8bit", "false", "there are no weights in 8 bits; 4 are `quantize`"),
    ("padding_free", "true", "nothing is padded"),
    ("do_train", "true", "a run trains"),
    ("overwrite_output_dir", "false", "a run never writes over another"),
    ("load_best_model_at_end", "false", "the last model is kept"),
    ("group_by_length", "false", "nothing is padded"),
    ("trust_remote_code", "false", "no code of a model is run"),
];

/// Keys without a meaning here, and what there is instead.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "dataset_name",
        "fusedpo trains on shards: pack the rows (`fusedpo pack --input FILE --out DATA`) and write `data: DATA`",
    ),
    ("dataset_config", "rows are chosen when they are packed (`fusedpo pack`); leave it out"),
    ("dataset_train_split", "splits are made when rows are packed (`fusedpo pack --eval-fraction`); leave it out"),
    ("dataset_test_split", "splits are made when rows are packed (`fusedpo pack --eval-fraction`); leave it out"),
    ("dataset_num_proc", "rows are packed by `fusedpo pack`, with `--threads`; leave it out"),
    ("max_length", "rows are cut when they are packed: `fusedpo pack --max-length N`; leave it out"),
    (
        "max_prompt_length",
        "rows are cut when they are packed: `fusedpo pack --max-length N --truncation prompt-left`; leave it out",
    ),
    ("max_completion_length", "rows are cut when they are packed: `fusedpo pack --max-length N`; leave it out"),
    ("truncation_mode", "rows are cut when they are packed: `fusedpo pack --truncation`; leave it out"),
    ("packing", "prompts and responses are always packed; leave it out"),
    ("chat_template_path", "templates are for packing: `fusedpo pack --chat-template FILE`; leave it out"),
    ("eos_token", "it is for packing: `fusedpo pack --eos-token TEXT`; leave it out"),
    ("per_device_eval_batch_size", "an evaluation takes micro-batches of `token_budget` slots; leave it out"),
    ("logging_steps", "metrics.jsonl has every step; leave it out"),
    ("logging_strategy", "metrics.jsonl has every step; leave it out"),
    ("logging_first_step", "metrics.jsonl has every step; leave it out"),
    ("logging_dir", "a run's log and metrics are in its folder; leave it out"),
    ("report_to", "metrics are in metrics.jsonl, under TRL's names; leave it out"),
    ("run_name", "a run's name is its folder's; leave it out"),
    ("push_to_hub", "nothing is sent anywhere; leave it out"),
    ("hub_model_id", "nothing is sent anywhere; leave it out"),
    ("hub_strategy", "nothing is sent anywhere; leave it out"),
    ("save_strategy", "fusedpo has `save_steps`: 0 saves only where a run is stopped; leave it out"),
    ("gradient_checkpointing_kwargs", "layers are computed again to the same bits, whatever they say; leave it out"),
    ("attn_implementation", "attention is fusedpo's own; leave it out"),
    ("model_revision", "it stands behind the model's name: write `model: ORG/NAME@REVISION`"),
    ("lr_scheduler_kwargs", "schedules have no further options; leave it out"),
    (
        "torch_dtype",
        "fusedpo has `dtype`, the precision of products beside master weights in f32: write `dtype: bf16` or f32",
    ),
    ("bf16_full_eval", "an evaluation has the run's `dtype`; leave it out"),
    ("use_liger_kernel", "kernels are fusedpo's own; leave it out"),
    ("deepspeed", "a run is on one device; leave it out"),
    ("fsdp", "a run is on one device; leave it out"),
    ("bnb_4bit_quant_type", "`quantize` names it: write `quantize: nf4`"),
    ("lora_task_type", "an adapter is of a causal language model; leave it out"),
    ("use_dora", "there is no DoRA; leave it out"),
    ("assistant_only_loss", "it is for packing: `fusedpo pack --assistant-turns`; leave it out"),
    ("completion_only_loss", "prompts are never learned; leave it out"),
    ("dataset_streaming", "rows are packed once, and shards are mapped, not loaded; leave it out"),
    ("dataset_text_field", "columns are named when rows are packed: `fusedpo pack --map text=COLUMN`; leave it out"),
    ("max_seq_length", "rows are cut when they are packed: `fusedpo pack --max-length N`; leave it out"),
    ("shuffle_dataset", "the order of the rows is drawn from `seed`; leave it out"),
    ("remove_unused_columns", "columns that no shape has are not packed; leave it out"),
    ("dataloader_num_workers", "shards are mapped; leave it out"),
    ("pad_token", "nothing is padded; leave it out"),
    ("precompute_ref_batch_size", "the reference takes micro-batches of `token_budget` slots; leave it out"),
    ("reference_free", "a loss without a reference is named in `loss_type` (simpo, cpo, orpo, slic); leave it out"),
    ("generate_during_eval", "`fusedpo eval` and `fusedpo generate` sample from a trained model; leave it out"),
    ("eval_on_start", "what is held out is evaluated before the first step; leave it out"),
    ("metric_for_best_model", "the last model is kept; leave it out"),
    ("auto_find_batch_size", "memory depends on `token_budget`, and is planned before the run; leave it out"),
    ("activation_offloading", "nothing is offloaded; `gradient_checkpointing: true` saves memory"),
    ("torch_compile", "kernels are fusedpo's own; leave it out"),
    ("tf32", "`dtype` says how products are computed: f32 or bf16; leave it out"),
    ("ddp_find_unused_parameters", "a run is on one device; leave it out"),
    ("router_aux_loss_coef", "there are no mixtures of experts; leave it out"),
    ("neftune_noise_alpha", "there is no noise on embeddings; leave it out"),
    ("lora_modules_to_save", "an adapter is on linear layers alone; leave it out"),
];

/// Pairs a step are these two multiplied, over all devices.
const BATCH: [(&str, i64); 2] = [("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1)];

/// `table` by our names. Errors: a key that means something else here, in one line with what to write.
pub fn translated(mut table: Table) -> Result<Table, String> {
    let is_trls = RENAMED.iter().any(|(theirs, _)| table.contains_key(*theirs)) || table.contains_key("use_peft");
    batch(&table)?;
    for (theirs, ours) in RENAMED {
        if let Some(value) = table.remove(*theirs) {
            if table.contains_key(*ours) {
                return Err(format!("`{theirs}` and `{ours}` are the same; leave one of them out"));
            }
            table.insert((*ours).into(), value);
        }
    }
    for (key, is, why) in ALWAYS {
        match table.remove(*key) {
            Some(value) if value.to_string() != *is => return Err(format!("`{key}` {value}: {why}; leave it out")),
            _ => {}
        }
    }
    if let Some((key, why)) = ELSEWHERE.iter().find(|(key, _)| table.contains_key(*key)) {
        return Err(format!("`{key}`: {why}"));
    }
    peft(&mut table, is_trls)?;
    quantized(&mut table)?;
    values(&mut table)?;
    Ok(table)
}

/// What `docs/from-trl.md` has of the tables above, as the rows of its tables: what is renamed, what is always so, and the answers.
pub fn rows() -> [Vec<Vec<String>>; 3] {
    let code = |text: &str| format!("`{text}`");
    let renamed = RENAMED.iter().map(|(theirs, ours)| vec![code(theirs), code(ours)]);
    let always = ALWAYS.iter().map(|(key, is, why)| vec![code(key), code(is), (*why).to_owned()]);
    let elsewhere = ELSEWHERE.iter().map(|(key, why)| vec![code(key), (*why).to_owned()]);
    [renamed.collect(), always.collect(), elsewhere.collect()]
}

/// What there is here in place of `key`, where that is one of TRL's.
pub fn answer(key: &str) -> Option<String> {
    let renamed = RENAMED.iter().find(|(theirs, _)| *theirs == key).map(|(_, ours)| format!("here it is `{ours}`"));
    let elsewhere = || ELSEWHERE.iter().find(|(theirs, _)| *theirs == key).map(|(_, why)| (*why).to_owned());
    let batch =
        || BATCH.iter().any(|(theirs, _)| *theirs == key).then(|| "here it is `batch_size`, pairs a step".to_owned());
    let why = renamed.or_else(elsewhere).or_else(batch)?;
    Some(format!("`{key}`: {why}"))
}

fn batch(table: &Table) -> Result<(), String> {
    let Some((key, _)) = BATCH.iter().find(|(key, _)| table.contains_key(*key)) else { return Ok(()) };
    let of = |(key, default): (&str, i64)| table.get(key).and_then(Value::as_integer).unwrap_or(default);
    let pairs = BATCH.map(of).into_iter().fold(1, i64::saturating_mul);
    Err(format!(
        "`{key}`: fusedpo has `batch_size`, pairs a step over all devices and micro-batches, which `token_budget` cuts: write \
         `batch_size: {pairs}` in place of {} and {} (on one device)",
        BATCH[0].0, BATCH[1].0
    ))
}

/// TRL trains an adapter where `use_peft` says so, and reads its options nowhere else.
fn peft(table: &mut Table, is_trls: bool) -> Result<(), String> {
    let of_adapter = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora"];
    let said = table.remove("use_peft");
    match said.as_ref().map(Value::as_bool) {
        Some(None) => return Err("`use_peft`: is true or false".into()),
        Some(Some(true)) => {
            table.entry("lora_r").or_insert(Value::Integer(16));
            table.entry("lora_alpha").or_insert(Value::Integer(32));
        }
        _ if is_trls => {
            if let Some(key) = of_adapter.iter().find(|key| table.contains_key(**key)) {
                return Err(format!("`{key}`: TRL reads it where `use_peft` is true; write that, or leave it out"));
            }
        }
        _ => {}
    }
    Ok(())
}

fn quantized(table: &mut Table) -> Result<(), String> {
    for (theirs, ours, yes) in
        [("load_in_4bit", "quantize", Value::from("nf4")), ("use_bnb_nested_quant", "double_quant", Value::from(true))]
    {
        match table.remove(theirs) {
            Some(Value::Boolean(true)) => drop(table.entry(ours).or_insert(yes)),
            None | Some(Value::Boolean(false)) => {}
            Some(other) => return Err(format!("`{theirs}` {other}: is true or false")),
        }
    }
    Ok(())
}

/// Values that are written in another way.
fn values(table: &mut Table) -> Result<(), String> {
    // By epochs.
    if table.get("max_steps").and_then(Value::as_integer) == Some(-1) {
        table.remove("max_steps");
    }
    match table.remove("bf16") {
        None => {}
        Some(Value::Boolean(yes)) if !table.contains_key("dtype") => {
            table.insert("dtype".into(), if yes { "bf16" } else { "f32" }.into());
        }
        Some(other) => return Err(format!("`bf16` {other}: fusedpo has `dtype`: write `dtype: bf16` or f32")),
    }
    // A share of the steps, as transformers 5 writes it.
    if let Some(share) = table.get("warmup_steps").and_then(Value::as_float).filter(|x| 0.0 < *x && *x < 1.0) {
        table.remove("warmup_steps");
        table.insert("warmup_ratio".into(), share.into());
    }
    if let Some(Value::String(names)) = table.get("lora_target_modules") {
        let names: Vec<Value> = names.split(',').map(|name| name.trim().into()).collect();
        table.insert("lora_target_modules".into(), names.into());
    }
    // An unquoted `no` is a boolean to some writers.
    if table.get("eval_strategy").and_then(Value::as_bool) == Some(false) {
        table.insert("eval_strategy".into(), "no".into());
    }
    if table.get("resume").and_then(Value::as_bool) == Some(true) {
        table.insert("resume".into(), "auto".into());
    }
    Ok(())
}

/// Of `known` names the one that `key` most likely means; `None` where none is near.
pub fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|name| (strsim::normalized_damerau_levenshtein(key, name), *name));
    near.filter(|(likeness, _)| *likeness >= 0.6).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn what_means_the_same_is_taken() {
        let theirs = "model_name_or_path = 'm'\noutput_dir = 'o'\nuse_peft = true\nlora_target_modules = 'q_proj, v_proj'\nmax_steps = -1\n\
                      bf16 = true\nload_in_4bit = true\nuse_bnb_nested_quant = true\nprecompute_ref_log_probs = true\nfp16 = false\n\
                      warmup_steps = 0.1\neval_strategy = false\nbeta = 0.2";
        let ours = "model = 'm'\nout = 'o'\nlora_r = 16\nlora_alpha = 32\nlora_target_modules = ['q_proj', 'v_proj']\ndtype = 'bf16'\n\
                    quantize = 'nf4'\ndouble_quant = true\nwarmup_ratio = 0.1\neval_strategy = 'no'\nbeta = 0.2";
        assert_eq!(translated(table(theirs)), Ok(table(ours)));
        // Our own names need no translation, an adapter's neither.
        let ours = table("model = 'm'\nlora_r = 8\nlora_target_modules = ['q_proj']\nwarmup_steps = 10\nmax_steps = 5");
        assert_eq!(translated(ours.clone()), Ok(ours));
    }

    #[test]
    fn what_means_something_else_is_answered() {
        for (theirs, want) in [
            (
                "per_device_train_batch_size = 4\ngradient_accumulation_steps = 8",
                "`per_device_train_batch_size`: fusedpo has `batch_size`, pairs a step over all devices and micro-batches, which \
                 `token_budget` cuts: write `batch_size: 32` in place of per_device_train_batch_size and gradient_accumulation_steps (on one device)",
            ),
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
            ("load_in_4bit = 'yes'", "`load_in_4bit` \"yes\": is true or false"),
            ("bf16 = true\ndtype = 'f32'", "`bf16` true: fusedpo has `dtype`"),
        ] {
            let why = translated(table(theirs)).unwrap_err();
            assert!(why.starts_with(want), "{theirs}: {why}");
        }
        let mut all: Vec<&str> =
            ELSEWHERE.iter().map(|(key, _)| *key).chain(ALWAYS.iter().map(|(key, ..)| *key)).collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n, "a key is answered once");
    }

    #[test]
    fn the_nearest_name() {
        let known = ["learning_rate", "beta", "label_smoothing", "data"];
        let of = |key| nearest(key, &known);
        assert_eq!(
            [of("lerning_rate"), of("learning-rate"), of("labelsmoothing"), of("gamma"), of("x")],
            [Some("learning_rate"), Some("learning_rate"), Some("label_smoothing"), None, None]
        );
    }
}
