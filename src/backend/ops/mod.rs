//! The contracts: what every op computes, on what shapes, from which source. A family of ops a file, under the name that it
//! has in `backend/cpu/`, `backend/gpu/` and `kernels/` too; an op is a method, and a struct of arguments that says what it is.

pub mod adapter;
pub mod attention;
pub mod decode;
pub mod device;
pub mod dropout;
pub mod element;
pub mod embed;
pub mod head;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod optim;
pub mod quant;
pub mod ranks;
pub mod rope;
pub mod rows;
pub mod small_state;
pub mod swiglu;

pub use adapter::{AdapterBwdLow, AdapterBwdWeight, AdapterFwd, AdapterOps, AdapterParts};
pub use attention::{AttentionBwd, AttentionFwd, AttentionOps};
pub use decode::{AttentionDecode, DecodeOps, KvStore, Layout, LinearPacked, LogitsPacked};
pub use device::{Acc, AccMut, Act, ActMut, AttnShape, Device, DeviceMemory, Mark, Write};
pub use dropout::{Dropout, DropoutBwd, DropoutFwd, DropoutOps};
pub use element::{Float, Gradient, Storage};
pub use embed::{EmbedBwd, EmbedFwd, EmbedOps};
pub use head::{HeadBwd, HeadFwd, HeadMode, HeadOps, Logits};
pub use linear::{BiasBwd, BiasFwd, LinearBwdInput, LinearBwdPart, LinearBwdWeight, LinearFwd, LinearOps};
pub use loss::{Loss, LossOps, PAIR_STATS, RESPONSE_STATS, pair as loss_pair, pair_weight};
pub use norm::{NormOps, QkNormBwd, QkNormFwd, RmsNormBwd, RmsNormFwd};
pub use optim::{Add, GradNorm, GradNormNarrow, Mix, OptimOps, Root, Rule, Squares, Update};
pub use quant::{DequantizeNf4, Nf4Absmax, QuantOps};
pub use ranks::{Exchange, RankOps};
pub use rope::{RopeBwd, RopeFwd, RopeOps};
pub use rows::{GatherRows, RowOps, ScatterRows};
pub use small_state::{SmallStateOps, Update8bit, UpdateBf16};
pub use swiglu::{SwigluBwd, SwigluFwd, SwigluOps};
