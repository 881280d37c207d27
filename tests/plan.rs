//! What `fusedpo plan` says of time, and the token budget that it recommends: the work that it counts, its output, `--fit`.

mod cli_common;
mod model_common;

use cli_common::{Cli, golden, rows};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::metered::{Metered, Work};
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{AdapterShape, Model, ModelConfig};
use fusedpo::train::engine::{Engine, Purpose};
use model_common::{Group, capacity, pack};
use serde_json::{Value, json};

/// Random batches of prompts with two responses.
fn batch(seed: u64) -> MicroBatch {
    let n = |i: u64, most: u64| {
        (seed.wrapping_mul(6364136223846793005).wrapping_add(i * 1442695040888963407) >> 33) % most + 1
    };
    let tokens = |i: u64, len: u64| (0..len).map(|t| ((t * 7 + i) % 90 + 3) as u32).collect::<Vec<u32>>();
    let group = |g: u64| Group {
        prompt: tokens(g, n(3 * g, 20)),
        responses: vec![tokens(g, n(3 * g + 1, 15)), tokens(g + 1, n(3 * g + 2, 15))],
        ..Group::default()
    };
    let groups: Vec<_> = (0..3 + seed % 3).map(group).collect();
    pack(&groups, 2)
}

/// All work of a training micro-batch of a model with `layers` layers.
fn asked(config: &ModelConfig, mb: &MicroBatch, purpose: Purpose) -> Vec<Work> {
    let cpu = Cpu::<f32>::new().unwrap();
    let be = Metered::new(&cpu);
    let model = Model::counted(&be, config, 64).unwrap();
    let mut engine = Engine::new(&be, model, capacity(std::slice::from_ref(mb)), purpose).unwrap();
    be.take();
    let late = match purpose {
        Purpose::Score => engine.start_score(mb).unwrap(),
        _ => engine.start(mb, &LossSpec::of(LossType::Sft), 1.0).unwrap(),
    };
    engine.collect_score(late).unwrap();
    be.take()
}

fn sum(work: &[Work], of: impl Fn(&Work) -> f64) -> f64 {
    work.iter().map(of).sum()
}

/// Products and attention by the formulas that everybody uses, for what a pass computes: all rows up to the last layer's attention,
/// and the rows that predict something from there on.
#[test]
fn work_is_that_of_the_formulas() {
    for name in ["llama", "qwen2", "qwen3"] {
        let config = ModelConfig::load(&golden(name)).unwrap();
        for seed in 0..4 {
            let mb = batch(seed);
            let (rows, n) = (mb.used() as f64, mb.predictions().len() as f64);
            let [h, f, v, layers] =
                [config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers]
                    .map(|n| n as f64);
            let a = config.attn_shape();
            let (q, qkv) = (a.q_width() as f64, a.qkv_width() as f64);
            let above = q * h + 3.0 * h * f;
            let body = 2.0 * (layers * rows * h * qkv + ((layers - 1.0) * rows + n) * above);
            let head = 2.0 * n * v * h;
            let mut scores = 0.0;
            for s in mb.segments() {
                scores += (0..s.len).map(|i| f64::from(s.prefix_len + i + 1)).sum::<f64>();
            }
            let near = |got: f64, want: f64, what: &str| {
                assert!((got - want).abs() <= 1e-9 * want, "{name}, {seed}, {what}: {got}, not {want}");
            };
            let forward = asked(&config, &mb, Purpose::Score);
            near(sum(&forward, |w| w.product), body + head, "forward");
            near(sum(&forward, |w| w.attention), 4.0 * scores * q * layers, "attention forward");
            let train = asked(&config, &mb, Purpose::Train);
            near(sum(&train, |w| w.product), 3.0 * (body + head), "training");
            near(sum(&train, |w| w.attention), 14.0 * scores * q * layers, "attention");
            assert!(train.iter().all(|w| w.amount() > 0.0 || w.op == "clear"), "{train:?}");
            // What is computed again is a forward pass of every layer but for the last one's output.
            let again = asked(&config, &mb, Purpose::Recompute);
            let [more, less] = [&again, &train].map(|all| sum(all, |w| w.product));
            assert!(more > less && more < less + body, "{name}, {seed}: {more}, {less} and {body}");
            let kept = asked(&config, &mb, Purpose::TrainInFull);
            near(sum(&kept, |w| w.product), sum(&train, |w| w.product), "kept");
            assert!(sum(&kept, |w| w.stream) < sum(&train, |w| w.stream), "what is left behind is written");
        }
    }
}

/// An adapter's model asks for no product of the gradients of other weights.
#[test]
fn an_adapter_asks_for_less() {
    let config = ModelConfig::load(&golden("llama")).unwrap();
    let with = ModelConfig { adapter: Some(AdapterShape::new(2, 4.0).unwrap()), ..config.clone() };
    let (mb, count) = (batch(5), |work: &[Work], op: &str| work.iter().filter(|w| w.op == op).count());
    let (all, some) = (asked(&config, &mb, Purpose::Train), asked(&with, &mb, Purpose::Train));
    assert!(count(&some, "adapter_fwd") > 0 && count(&all, "adapter_fwd") == 0);
    let dense = |work: &[Work]| sum(work, |w| if w.op == "linear_bwd_weight" { w.product } else { 0.0 });
    assert!(dense(&some) < 0.5 * dense(&all), "{} of {}", dense(&some), dense(&all));
}

const TIMES: &str = "time_basis calibration_seconds gpu product_flops_per_second moved_bytes_per_second step_seconds tokens_per_second \
                     units_per_second steps steps_seconds reference_seconds evaluations evaluation_seconds total_seconds recommended";

fn number(plan: &Value, key: &str) -> f64 {
    plan[key].as_f64().unwrap_or_else(|| panic!("{key}: {plan}"))
}

/// On a CPU times are measured; they belong together, and the words say what the numbers say.
#[test]
fn a_cpu_is_calibrated() {
    let cli = Cli::with_data();
    for more in ["", "--lora-r 2 --quantize nf4", "--sync-ref-model", "--loss-type kto", "--loss-type aot"] {
        let args =
            format!("plan --model m --data d --device cpu --batch-size 4 --eval-steps 2 --num-train-epochs 3 {more}");
        let plan = cli.ok(&format!("{args} --json")).json();
        TIMES.split_whitespace().for_each(|key| assert!(plan.get(key).is_some(), "{more}: {key}"));
        assert_eq!((&plan["time_basis"], &plan["gpu"]), (&json!("measured"), &Value::Null), "{more}");
        let of = |key: &str| number(&plan, key);
        assert!(
            of("step_seconds") > 0.0 && of("tokens_per_second") > 0.0 && of("units_per_second") > 0.0,
            "{more}: {plan}"
        );
        assert!(of("calibration_seconds") > 0.0 && of("product_flops_per_second") > 1e6, "{more}: {plan}");
        let reference = plan["reference_seconds"].as_f64();
        assert_eq!(reference.is_some(), more != "--sync-ref-model", "{more}: {plan}");
        let all = of("steps_seconds") + reference.unwrap_or(0.0) + of("evaluations") * of("evaluation_seconds");
        assert!((of("total_seconds") / all - 1.0).abs() < 1e-9, "{more}: {plan}");
        assert!((of("steps_seconds") / (of("steps") * of("step_seconds")) - 1.0).abs() < 1e-9, "{more}: {plan}");
        assert_eq!(of("evaluations"), 2.0 + ((of("steps") - 1.0) / 2.0).floor(), "{more}: {plan}");
        let text = cli.ok(&args).out;
        for want in
            ["calibrated on this device in ", "a step takes about ", "tokens/s", "recommended: --token-budget 512 "]
        {
            assert!(text.contains(want), "{more}: {want:?} is not in {text}");
        }
    }
    // The same run counts the same steps.
    let plan = cli.ok("plan --model m --data d --device cpu --max-steps 7 --json --stage sft").json();
    assert_eq!((plan["steps"].as_u64(), &plan["reference_seconds"]), (Some(7), &Value::Null));
}

/// Times of a GPU come from its sheet, the same each time, and order what they should order.
#[test]
fn a_gpu_has_a_sheet() {
    let cli = Cli::new();
    cli.write(
        "q.json",
        json!({
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936,
            "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": true,
        })
        .to_string(),
    );
    let plan = |more: &str| cli.ok(&format!("plan --model q.json --lengths ultrafeedback --json {more}"));
    let h100 = plan("--gpu h100 --token-budget 8192");
    assert_eq!(plan("--gpu h100 --token-budget 8192").out, h100.out, "not the same twice");
    let of = |more: &str| number(&plan(more).json(), "step_seconds");
    let base = number(&h100.json(), "step_seconds");
    assert!(of("--gpu h200 --token-budget 8192") < base && of("--gpu l40s --token-budget 8192") > 1.5 * base);
    assert!(of("--gpu h100 --token-budget 8192 --batch-size 64") > 5.0 * base);
    assert!(of("--gpu h100 --token-budget 8192 --gradient-checkpointing") > 1.1 * base);
    assert!(of("--gpu h100 --token-budget 8192 --dtype f32") > 4.0 * base);
    let told = h100.json();
    assert_eq!(
        (&told["time_basis"], &told["gpu"], &told["steps"]),
        (&json!("sheet"), &json!("H100 SXM"), &Value::Null)
    );
    assert!(told["calibration_seconds"].is_null() && told["total_seconds"].is_null(), "lengths have no end: {told}");
    let some = plan("--gpu h100 --token-budget 8192 --max-steps 100").json();
    assert!((number(&some, "steps_seconds") / (100.0 * number(&some, "step_seconds")) - 1.0).abs() < 1e-9, "{some}");
    // Of a GPU by its memory alone no time is known, but all that its memory says.
    let unknown = plan("--device-memory 80GB").json();
    assert!(
        unknown["step_seconds"].is_null() && unknown["recommended"]["token_budget"].as_u64().is_some(),
        "{unknown}"
    );
    let words = cli.ok("plan --model q.json --lengths ultrafeedback --gpu h100").out;
    assert!(words.contains("predicted and not measured: H100 SXM by its sheet (989 TFLOP/s"), "{words}");
    assert!(cli.ok("plan --model q.json --lengths ultrafeedback --device-memory 80GB").out.contains("--gpu NAME says"));
    for (args, want) in [
        ("--gpu h1000", "h1000"),
        ("--gpu h100 --device cpu", "--gpu names one, and --device cpu asks for none"),
        ("--gpu h100 --device cuda:1", "--device cuda:1 is a GPU of this machine, and --gpu and --device-memory say"),
        ("--device-memory 80GB --device cuda:0", "--device cuda:0 is a GPU of this machine"),
        ("--device cuda", "--gpu, or --device-memory: which GPU is to be planned for?"),
        ("--gpu h100 --fit --token-budget 4096", "--fit and --token-budget 4096"),
    ] {
        let ran = cli.run(&format!("plan --model q.json --lengths hh {args}"));
        // A machine with a GPU plans for it.
        if args == "--device cuda" && ran.code == 0 {
            continue;
        }
        assert!(ran.code == 2 && ran.err.contains(want) && ran.out.is_empty(), "{args}: {ran:?}");
    }
}

/// The recommended budget fits, is the same each time, shrinks with the memory, and a larger one is hardly faster.
#[test]
fn the_recommended_budget_fits_and_is_fast() {
    let cli = Cli::new();
    let config = json!({
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "tie_word_embeddings": true,
    });
    cli.write("l.json", config.to_string());
    let plan = |more: &str| {
        cli.ok(&format!("plan --model l.json --lengths ultrafeedback --batch-size 64 --json {more}")).json()
    };
    let mut before = u64::MAX;
    for memory in ["141GB", "80GB", "40GB", "30GB"] {
        let of = format!("--gpu h100 --device-memory {memory}");
        let free = plan(&of);
        let best = free["recommended"]["token_budget"].as_u64().unwrap();
        let largest = free["largest"]["token_budget"].as_u64().unwrap();
        assert!(best <= largest && best <= before, "{memory}: {best} of {largest}, {before}");
        before = best;
        let fitted = plan(&format!("{of} --fit"));
        assert_eq!((fitted["at"]["token_budget"].as_u64(), &fitted["fits"]), (Some(best), &json!(true)), "{memory}");
        assert_eq!(fitted["step_seconds"], free["recommended"]["step_seconds"], "{memory}");
        let larger = (8 * best).min(largest / 64 * 64);
        let more = plan(&format!("{of} --token-budget {larger}"));
        let gain = number(&more, "tokens_per_second") / number(&fitted, "tokens_per_second");
        assert!(gain < 1.1, "{memory}: {larger} in place of {best} is {gain} times as fast");
    }
    let words = cli.ok("plan --model l.json --lengths hh --lora-r 8 --gpu h100 --fit --batch-size 4").out;
    let line = words.lines().last().unwrap();
    assert!(
        line.starts_with("fusedpo dpo --batch-size 4 --data DATA --lora-r 8 --model l.json")
            && line.contains(" --token-budget "),
        "{line}"
    );
    assert!(!line.contains("--fit") && line.contains("--out RUN"), "{line}");
}

/// `--fit` trains as the budget by its number does, to the bit; what was chosen is in the record; who goes on keeps it.
#[test]
fn a_run_that_fits_itself() {
    let cli = Cli::with_data();
    let base = "dpo --model m --data d --device cpu --batch-size 3 --learning-rate 1e-3 --lr-scheduler-type constant";
    let err = cli.ok(&format!("{base} --fit --out fit")).err;
    assert!(err.contains("token budget 512, as --fit asks"), "{err}");
    cli.ok(&format!("{base} --token-budget 512 --out by-number"));
    assert_eq!(cli.bytes("fit/model.safetensors"), cli.bytes("by-number/model.safetensors"));
    assert_eq!(rows(&cli, "fit"), rows(&cli, "by-number"));
    let config = String::from_utf8(cli.bytes("fit/config.toml")).unwrap();
    assert!(config.contains("token_budget = 512") && !config.contains("\nfit"), "{config}");
    let record: Value = serde_json::from_slice(&cli.bytes("fit/run.json")).unwrap();
    assert_eq!(record["options"]["token_budget"], 512, "{record}");
    // A checkpoint of another budget keeps its own.
    cli.ok(&format!("{base} --token-budget 100 --max-steps 2 --save-steps 1 --out on"));
    cli.ok(&format!("{base} --fit --max-steps 4 --resume auto --out on"));
    cli.ok(&format!("{base} --token-budget 100 --max-steps 4 --out whole"));
    assert_eq!(cli.bytes("on/model.safetensors"), cli.bytes("whole/model.safetensors"));
    // What a file says gives way to what is typed, either way; typed twice over it is an error.
    let ran = cli.ok("dpo --config fit/config.toml --fit --max-steps 1 --out again");
    assert!(ran.err.contains("`token_budget` left out: --fit was typed"), "{ran:?}");
    cli.write("fit.toml", "fit = true\nmodel = 'm'\ndata = 'd'\ndevice = 'cpu'\n");
    let ran = cli.ok("dpo --config fit.toml --token-budget 64 --max-steps 1 --out third");
    assert!(ran.err.contains("`fit` left out: --token-budget was typed"), "{ran:?}");
    let before = cli.tree();
    let ran = cli.run(&format!("{base} --fit --token-budget 64 --out no"));
    assert!(ran.code == 2 && ran.err.contains("--fit and --token-budget 64"), "{ran:?}");
    assert_eq!(cli.tree(), before);
}
