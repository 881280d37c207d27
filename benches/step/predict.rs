//! The step by arithmetic: FLOPs, bytes and launches of a DPO step by shape and lengths, and what a GPU of given ceilings
//! would need for them. `--model` prints it as docs/step-model.md.

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

/// Bytes that everything but products and attention moves in bf16, each operand once: per row and layer, and per
/// prediction of the head's statistics (f32 logits: written, read, written as gradient, read by two products).
fn bytes(shape: &Shape, w: &Work) -> (f64, f64) {
    let c = shape.config();
    let a = c.attn_shape();
    let [hidden, qk, ffn, q] =
        [c.hidden_size, a.q_width() + a.kv_width(), c.intermediate_size, a.q_width()].map(|n| n as f64);
    // Forward: two norms (read x, write y) and two residual sums; rotation in place; gates and ups in, product out.
    let forward = 8.0 * hidden + 2.0 * qk + 3.0 * ffn;
    // Backward: norms again and their gradients; rotation; product again, gates and ups into their gradients; attention's delta.
    let backward = 12.0 * hidden + 2.0 * qk + 8.0 * ffn + 2.0 * q;
    let layers = 2.0 * (forward + backward) * c.num_hidden_layers as f64 * w.rows;
    (layers, 20.0 * c.vocab_size as f64 * w.predictions)
}

/// Launches of one micro-batch with one chunk of the head: ops and what each is made of (src/backend/gpu), products too.
fn launches(shape: &Shape) -> usize {
    let c = shape.config();
    let bias = usize::from(c.qkv_bias);
    // norm, qkv, rotation, attention, o, norm, gates and ups, SwiGLU, down.
    let forward = 9 + bias;
    // SwiGLU again, down (2), SwiGLU's gradient, norm again, gates and ups (2), norm's gradient (2), o (2), attention's
    // gradient (3), rotation, norm again, qkv (2), norm's gradient (2); a bias's gradient is two.
    let backward = 20 + 2 * bias;
    // Embedding (2), gather, scatter, final norm (3); head: product and statistics, scaling, two products, scaling; loss.
    c.num_hidden_layers * (forward + backward) + 7 + 6 + 1
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
    let (f, (layers, head)) = (Flops::of(shape, w), bytes(shape, w));
    let (body, embedding) = shape.weights();
    let weights = body + embedding * if shape.config().tie_word_embeddings { 1.0 } else { 2.0 };
    // AdamW reads and writes master weights and moments, reads gradients, writes bf16 weights; gradients are also cleared
    // and read for their norm.
    let optimizer = weights * 38.0 * steps / gpu.bandwidth;
    [
        f.body / gpu.gemm,
        f.head / gpu.gemm,
        f.attention / gpu.attention,
        layers / gpu.bandwidth,
        head / gpu.bandwidth,
        optimizer,
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
            let (f, (layers, head)) = (Flops::of(shape, &w), bytes(shape, &w));
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
                (layers + head) / w.pairs / 1e9,
                launches(shape),
                shares.join(" / "),
                100.0 * f.total() / total / SHEET,
                w.pairs / total
            );
        }
    }
}
