//! The step by arithmetic: FLOPs, bytes and launches of a DPO step by shape and lengths, and what a GPU of given ceilings
//! would need for them. `--model` prints it as docs/step-model.md.

use crate::moved::Moved;
use crate::shapes::{LONGEST, MIXES, Mix, SHAPES, Shape, data};
use fusedpo::batch::MicroBatch;
use fusedpo::data::plan::{Objective, PlanOptions, Planner};

/// What decides the cost of micro-batches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub pairs: f64,
    /// Live rows: prompts once.
    pub rows: f64,
    /// Rows with every prompt repeated for each of its responses.
    pub repeated: f64,
    pub predictions: f64,
    /// Query-key products under the mask, of one head.
    pub scores: f64,
}

impl Work {
    pub fn of<'a>(batches: impl IntoIterator<Item = &'a MicroBatch>) -> Work {
        let mut w = Work::default();
        for mb in batches {
            w.pairs += mb.pairs().len() as f64;
            w.rows += mb.used() as f64;
            w.predictions += mb.predictions().len() as f64;
            for s in mb.segments() {
                let (n, prefix) = (f64::from(s.len), f64::from(s.prefix_len));
                w.scores += n * (n + 1.0) / 2.0 + n * prefix;
                // A prompt by itself is repeated with its responses.
                w.repeated += if s.prefix_start == s.start { 0.0 } else { n + prefix };
            }
        }
        w
    }
}

/// FLOPs that a step cannot do without, by family: twice the multiplications of the three products of every weight
/// (forward, gradient of the input, of the weight), and of the seven of attention.
pub struct Flops {
    pub body: f64,
    pub head: f64,
    pub attention: f64,
}

impl Flops {
    pub fn of(shape: &Shape, w: &Work) -> Flops {
        let ((body, embedding), c) = (shape.weights(), shape.config());
        let width = (c.num_attention_heads * c.head_dim * c.num_hidden_layers) as f64;
        Flops { body: 6.0 * body * w.rows, head: 6.0 * embedding * w.predictions, attention: 14.0 * width * w.scores }
    }
    pub fn total(&self) -> f64 {
        self.body + self.head + self.attention
    }
}

/// Launches of one micro-batch with one chunk of the head: ops and what each is made of (src/backend/gpu), products too.
fn launches(shape: &Shape) -> usize {
    let c = shape.config();
    let sums = usize::from(c.qkv_bias) + usize::from(c.qk_norm);
    // norm, qkv, rotation with bias or norm, attention, o, norm, gates and ups, SwiGLU, down.
    let forward = 9;
    // down (2), SwiGLU's gradient, gates and ups (2), norm's gradient (2), o (2), attention's gradient (4), rotation, qkv (2),
    // norm's gradient (2); the sum of the gradient of a bias or of the norm of queries and keys.
    let backward = 18 + sums;
    // Embedding (2), gather (2), scatter (2), final norm (3); head: product and statistics, scaling, two products, scaling; loss.
    c.num_hidden_layers * (forward + backward) + 9 + 6 + 1
}

/// What a GPU can do at most, and what share of it is assumed.
pub struct Gpu {
    pub gemm: f64,
    pub attention: f64,
    pub bandwidth: f64,
}

/// Published ceilings of an H100 SXM: large bf16 products, attention at head width 64, a copy.
pub const H100: Gpu = Gpu { gemm: 790e12, attention: 250e12, bandwidth: 3.0e12 };
/// Dense bf16 by its data sheet: what MFU is a share of.
pub const SHEET: f64 = 989e12;

/// Seconds: body, head products, attention, elementwise, head statistics, optimiser.
fn seconds(shape: &Shape, w: &Work, gpu: &Gpu, steps: f64) -> [f64; 6] {
    let (f, moved) = (Flops::of(shape, w), Moved::of(shape, w, 2.0, true, steps));
    [
        f.body / gpu.gemm,
        f.head / gpu.gemm,
        f.attention / gpu.attention,
        moved.layers() / gpu.bandwidth,
        moved.logits / gpu.bandwidth,
        moved.optimizer / gpu.bandwidth,
    ]
}

const STEP_PAIRS: usize = 64;
const SLOTS: usize = 16384;

fn work(shape: &Shape, mix: &Mix) -> (Work, usize) {
    let (_dir, data) = data(mix, 512, shape.config().vocab_size);
    let options = PlanOptions {
        objective: Objective::Preference,
        batch_size: STEP_PAIRS,
        token_budget: Some(SLOTS),
        seed: 0,
        shuffle: false,
    };
    let plan = Planner::new(&data, &options).expect("a plan");
    let batches: Vec<MicroBatch> = (0..plan.steps_in_epoch(0)).flat_map(|s| plan.step(0, s).expect("a step")).collect();
    (Work::of(&batches), batches.len())
}

/// The page.
pub fn print() {
    println!("{}", include_str!("predict.md").trim_end());
    println!(
        "\n## Lengths\n\n| mix | prompt, median | response, median | where from | rows a pair | with the prompt repeated | predictions a pair |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for mix in &MIXES {
        let (w, _) = work(&SHAPES[1], mix);
        println!(
            "| {} | {} | {} | {} | {:.0} | {:.0} | {:.0} |",
            mix.name,
            mix.prompt.0,
            mix.response.0,
            mix.source,
            w.rows / w.pairs,
            w.repeated / w.pairs,
            w.predictions / w.pairs
        );
    }
    println!("\nLog-normal, 512 pairs, at most {LONGEST} tokens a row.");
    println!("\n## Steps of {STEP_PAIRS} pairs in micro-batches of {SLOTS} slots\n");
    println!(
        "| shape | mix | TFLOP a pair | of them attention | GB moved a pair | launches a micro-batch | body / head / attention / elementwise / statistics / optimiser, % of the time | MFU at most | pairs/s at most |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for shape in &SHAPES[1..] {
        for mix in &MIXES {
            let (w, _) = work(shape, mix);
            let steps = (w.pairs / STEP_PAIRS as f64).ceil();
            let (f, moved) = (Flops::of(shape, &w), Moved::of(shape, &w, 2.0, true, steps));
            let parts = seconds(shape, &w, &H100, steps);
            let total: f64 = parts.iter().sum();
            let shares: Vec<String> = parts.iter().map(|p| format!("{:.0}", 100.0 * p / total)).collect();
            println!(
                "| {} ({}) | {} | {:.2} | {:.0} % | {:.2} | {} | {} | {:.0} % | {:.0} |",
                shape.name,
                shape.of,
                mix.name,
                f.total() / w.pairs / 1e12,
                100.0 * f.attention / f.total(),
                (moved.layers() + moved.logits) / w.pairs / 1e9,
                launches(shape),
                shares.join(" / "),
                100.0 * f.total() / total / SHEET,
                w.pairs / total
            );
        }
    }
    moved();
}

/// What is moved, by family.
fn moved() {
    println!("\n## MB moved a pair, by family\n");
    println!(
        "Outputs of norms and SwiGLU kept; in brackets: left behind by the backward pass, where they do not fit.\n"
    );
    println!("| shape | mix | norms | rotation | SwiGLU | delta | rows | logits | all without the optimiser |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for shape in &SHAPES[1..] {
        for mix in &MIXES {
            let (w, _) = work(shape, mix);
            let of = |kept| Moved::of(shape, &w, 2.0, kept, 0.0);
            let mb = |bytes: f64| format!("{:.0}", bytes / w.pairs / 1e6);
            let (kept, left) = (of(true), of(false));
            let all = |m: Moved| m.layers() + m.logits;
            let cells = kept.families().into_iter().zip(left.families()).take(6).map(|((_, kept), (_, left))| {
                if kept == left { mb(kept) } else { format!("{} ({})", mb(kept), mb(left)) }
            });
            let cells: Vec<String> = cells.collect();
            println!(
                "| {} | {} | {} | {} ({}) |",
                shape.name,
                mix.name,
                cells.join(" | "),
                mb(all(kept)),
                mb(all(left))
            );
        }
    }
}
