//! Its memory is the host's: what ranks exchange goes as the contract has it.

use super::device::Cpu;
use super::real::Real;
use crate::backend::ops::ranks::RankOps;

impl<S: Real> RankOps for Cpu<S> {}
