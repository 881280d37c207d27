//! What TRL's keys are here: tables, which `docs/from-trl.md` shows, and what is said of a key that a configuration has.

/// TRL's names for what has another one here.
pub(super) const RENAMED: &[(&str, &str)] =
    &[("model_name_or_path", "model"), ("output_dir", "out"), ("resume_from_checkpoint", "resume")];

/// Keys that say nothing but what is always so here, with the values that say it.
pub(super) const ALWAYS: &[(&str, &[&str], &str)] = &[
    ("precompute_ref_log_probs", &["true"], "the reference's log-probs are always computed before"),
    ("fp16", &["false"], "there is no fp16; bf16 is `dtype`"),
    ("load_in_8bit", &["false"], "there are no weights in 8 bits; 4 are `quantize`"),
    ("padding_free", &["true", "false"], "nothing is padded"),
    ("do_train", &["true"], "a run trains"),
    ("overwrite_output_dir", &["false"], "a run never writes over another"),
    ("group_by_length", &["false"], "nothing is padded"),
    ("trust_remote_code", &["false"], "no code of a model is run"),
    ("push_to_hub", &["false"], "nothing is sent anywhere"),
    ("use_dora", &["false"], "there is no DoRA"),
    ("use_liger_kernel", &["false"], "kernels are fusedpo's own"),
    ("bf16_full_eval", &["false"], "an evaluation has the run's `dtype`"),
    ("completion_only_loss", &["true"], "prompts are never learned"),
    ("assistant_only_loss", &["false"], "it is for packing: `fusedpo pack --assistant-turns`"),
    ("packing", &["false"], "prompts and responses are always packed, and `batch_size` counts them one by one"),
    ("logging_steps", &["1"], "metrics.jsonl has every step"),
    ("logging_first_step", &["true"], "metrics.jsonl has every step"),
    ("deepspeed", &["\"\"", "false"], "a run is on one device"),
    ("fsdp", &["\"\"", "[]", "false"], "a run is on one device"),
    ("dataset_streaming", &["false"], "rows are packed once, and shards are mapped, not loaded"),
    ("reference_free", &["false"], "a loss without a reference is named in `loss_type` (simpo, cpo, orpo, slic)"),
    ("generate_during_eval", &["false"], "`sample_prompts: N` continues N held-out prompts at each evaluation"),
    ("eval_on_start", &["true", "false"], "what is held out is evaluated before the first step"),
    (
        "auto_find_batch_size",
        &["false"],
        "memory depends on `token_budget`, and is planned before the run; `fit` chooses it",
    ),
    ("activation_offloading", &["false"], "nothing is offloaded; `gradient_checkpointing: true` saves memory"),
    ("torch_compile", &["false"], "kernels are fusedpo's own"),
    ("lora_task_type", &["\"CAUSAL_LM\""], "an adapter is of a causal language model"),
];

/// Keys without a meaning here, and what there is instead.
pub(super) const ELSEWHERE: &[(&str, &str)] = &[
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
    ("chat_template_path", "templates are for packing: `fusedpo pack --chat-template FILE`; leave it out"),
    ("eos_token", "it is for packing: `fusedpo pack --eos-token TEXT`; leave it out"),
    ("per_device_eval_batch_size", "an evaluation takes micro-batches of `token_budget` slots; leave it out"),
    ("logging_strategy", "metrics.jsonl has every step; leave it out"),
    ("logging_dir", "a run's log, metrics and event file are in its folder; leave it out"),
    ("run_name", "a run's name is its folder's; leave it out"),
    ("hub_model_id", "nothing is sent anywhere; leave it out"),
    ("hub_strategy", "nothing is sent anywhere; leave it out"),
    ("gradient_checkpointing_kwargs", "layers are computed again to the same bits, whatever they say; leave it out"),
    ("attn_implementation", "attention is fusedpo's own; leave it out"),
    ("model_revision", "it stands behind the model's name: write `model: ORG/NAME@REVISION`"),
    ("lr_scheduler_kwargs", "schedules have no further options; leave it out"),
    (
        "torch_dtype",
        "fusedpo has `dtype`, the precision of products beside master weights in f32: write `dtype: bf16` or f32",
    ),
    ("dataset_text_field", "columns are named when rows are packed: `fusedpo pack --map text=COLUMN`; leave it out"),
    ("max_seq_length", "rows are cut when they are packed: `fusedpo pack --max-length N`; leave it out"),
    ("shuffle_dataset", "the order of the rows is drawn from `seed`; leave it out"),
    ("remove_unused_columns", "columns that no shape has are not packed; leave it out"),
    ("dataloader_num_workers", "shards are mapped; leave it out"),
    ("pad_token", "nothing is padded; leave it out"),
    ("precompute_ref_batch_size", "the reference takes micro-batches of `token_budget` slots; leave it out"),
    ("tf32", "`dtype` says how products are computed: f32 or bf16; leave it out"),
    ("ddp_find_unused_parameters", "a run is on one device; leave it out"),
    ("router_aux_loss_coef", "there are no mixtures of experts; leave it out"),
    ("neftune_noise_alpha", "there is no noise on embeddings; leave it out"),
    ("lora_modules_to_save", "an adapter is on linear layers alone; leave it out"),
];

/// Pairs a step are these two multiplied, over all devices.
pub(super) const BATCH: [(&str, i64); 2] = [("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1)];

/// Keys that are taken from YAML alone, and what they are here.
pub(super) const TAKEN: &[(&str, &str)] = &[
    ("use_peft", "here `lora_r` says it"),
    ("disable_dropout", "here `lora_dropout` says what drops out, and nothing else does"),
    ("load_in_4bit", "here it is `quantize`"),
    ("use_bnb_nested_quant", "here it is `double_quant`"),
    ("bnb_4bit_quant_type", "here it is `quantize`"),
    ("bf16", "here it is `dtype`"),
    ("save_strategy", "fusedpo has `save_steps`: 0 saves only where a run is stopped; leave it out"),
];

/// Whether `key` has a meaning, or an answer, where a configuration is by TRL's names.
pub fn knows(key: &str) -> bool {
    ALWAYS.iter().any(|(theirs, ..)| *theirs == key) || answer(key).is_some()
}

/// What `docs/from-trl.md` has of the tables above, as the rows of its tables: what is renamed, what is always so, and the answers.
pub fn rows() -> [Vec<Vec<String>>; 3] {
    let code = |text: &str| format!("`{text}`");
    let renamed = RENAMED.iter().map(|(theirs, ours)| vec![code(theirs), code(ours)]);
    let always = ALWAYS.iter().map(|(key, is, why)| {
        vec![code(key), is.iter().map(|is| code(is)).collect::<Vec<_>>().join(" or "), (*why).to_owned()]
    });
    let elsewhere = ELSEWHERE.iter().map(|(key, why)| vec![code(key), (*why).to_owned()]);
    [renamed.collect(), always.collect(), elsewhere.collect()]
}

/// What there is here in place of `key`, where that is one of TRL's.
pub fn answer(key: &str) -> Option<String> {
    let renamed = RENAMED.iter().find(|(theirs, _)| *theirs == key).map(|(_, ours)| format!("here it is `{ours}`"));
    let mut elsewhere = ELSEWHERE.iter().chain(TAKEN);
    let elsewhere = || elsewhere.find(|(theirs, _)| *theirs == key).map(|(_, why)| (*why).to_owned());
    let always = || ALWAYS.iter().find(|(theirs, ..)| *theirs == key).map(|(_, _, why)| format!("{why}; leave it out"));
    let batch =
        || BATCH.iter().any(|(theirs, _)| *theirs == key).then(|| "here it is `batch_size`, pairs a step".to_owned());
    let why = renamed.or_else(elsewhere).or_else(always).or_else(batch)?;
    Some(format!("`{key}`: {why}"))
}

/// Of `known` names the one that `key` most likely means; `None` where none is near.
pub fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|name| (strsim::normalized_damerau_levenshtein(key, name), *name));
    near.filter(|(likeness, _)| *likeness >= 0.6).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

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
