//! What a sidecar is kept under.

/// What reference log-probs depend on besides the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefKey {
    /// Identity of the weights.
    pub model_sha256: [u8; 32],
    /// Identity of the arithmetic: backend, dtype, SIMD level or GPU, plans, token budget. At most 256 bytes of UTF-8.
    pub fingerprint: String,
}
