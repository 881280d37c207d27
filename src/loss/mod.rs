//! The loss table: one file a loss, each a formula with its derivative and source, evaluated in f64.
//!
//! A loss sees sums of token log-probs and gives `dL/dlogp` per response, which the head applies to every token of the
//! response. What a loss must have seen before it can do so is its [`Rule`]. The kernel's device function of the same name
//! is in `kernels/losses.cuh`; a loss is one file here, one function there, and a line in each table.
//!
//! ```
//! use fusedpo::loss::{LossSpec, LossType, Pair, Rule};
//!
//! let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
//! spec.check()?;
//! // The policy likes the chosen response 2 nats more than the reference does, and the rejected one 1 nat less.
//! let p = Pair {
//!     chosen: -40.0, rejected: -52.0, ref_chosen: -42.0, ref_rejected: -51.0, chosen_len: 20.0, rejected_len: 25.0,
//!     ..Pair::ZERO
//! };
//! let term = &spec.terms()[0];
//! let Rule::Pair(f) = term.def().rule else { panic!("a loss of pairs") };
//! let loss = spec.pair(term, f, &p);
//! assert!((loss.loss - (1.0 + (-0.3_f64).exp()).ln()).abs() < 1e-12); // -log sigmoid(0.1 * 3)
//! assert!(loss.d_chosen < 0.0 && loss.d_rejected == -loss.d_chosen);
//! # Ok::<(), fusedpo::Error>(())
//! ```

mod divergence;
mod explain;
mod losses;
pub mod math;
mod pair;
mod params;
mod spec;
mod step;
mod table;

mod alphapo;
mod aot;
mod aot_unpaired;
mod apo_down;
mod apo_zero;
mod bco_pair;
mod beta_dpo;
mod cpo;
mod discopop;
mod dpop;
mod exo_pair;
mod hinge;
mod ipo;
mod ipo_sum;
mod kto;
mod nca_pair;
mod odpo;
mod orpo;
mod plackett_luce;
mod rdpo;
mod robust;
mod rpo;
mod sft;
mod sigmoid;
mod sigmoid_norm;
mod simpo;
mod slic;
mod soft_label;
mod sppo_hard;
mod unlikelihood;

pub use divergence::Divergence;
pub use explain::{Explained, Given, NOTATION, explain, notation};
pub use losses::{LOSSES, LossType};
pub use pair::{Pair, PairLoss};
pub use params::{PARAMS, Param, Params};
pub use spec::{LossSpec, MOST_TERMS, Scales, Term};
pub use step::{Judged, Running, StepPairs};
pub use table::{Lengths, LossDef, MOST_PARAMS, Rule, Scope};
