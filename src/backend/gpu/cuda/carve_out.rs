//! How a multiprocessor's memory is shared between L1 and blocks.

/// Registers of a multiprocessor: of every supported one.
const REGISTERS: usize = 64 << 10;
/// Threads that a multiprocessor holds, at most.
const THREADS: usize = 2048;
/// Bytes that the system takes of every block's shared memory (CUDA programming guide, "Shared Memory" of each compute capability).
pub(super) const RESERVED: usize = 1 << 10;
/// Bytes of dynamic shared memory from which a block's number is not left to the driver.
pub(super) const PLENTY: usize = 16 << 10;

/// What a launch takes of a multiprocessor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Registers a thread.
    pub registers: usize,
    /// Threads.
    pub threads: usize,
    /// Bytes of shared memory, dynamic and static.
    pub shared: usize,
}

impl Block {
    /// Per cent of the memory of a multiprocessor that should be shared memory, so that as many blocks fit as its registers
    /// allow and no more of L1 is taken; `max_shared`: bytes that one block may have.
    pub(super) fn carve_out(self, max_shared: usize) -> i32 {
        let threads = self.threads.next_multiple_of(32);
        let of_registers = REGISTERS / (self.registers.max(1).next_multiple_of(8) * threads);
        let blocks = of_registers.min(THREADS / threads).max(1);
        let (wanted, all) = (blocks * (self.shared + RESERVED), max_shared + RESERVED);
        (100 * wanted).div_ceil(all).min(100) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_blocks_as_registers_allow() {
        let (h100, a100, rtx) = (227 << 10, 163 << 10, 99 << 10);
        let of = |registers, threads, shared, max| Block { registers, threads, shared }.carve_out(max);
        // Keys' and values' gradients of 64-wide heads: two blocks of 65 KiB, and three of 51,200 bytes as it was with 168 registers.
        assert_eq!(of(255, 128, 66_560, h100), 58); // 135,168 of 233,472 bytes
        assert_eq!(of(168, 128, 51_200, h100), 68);
        assert_eq!(of(255, 128, 66_560, a100), 81);
        assert_eq!(of(255, 128, 66_560, rtx), 100); // only one fits
        // The head: a block an SM, whose loads come through what is left.
        assert_eq!(of(55, 1024, (192 << 10) + 640, h100), 85);
        // As many as threads allow, or one, whatever it takes.
        assert_eq!(of(16, 1024, 16 << 10, h100), 15);
        assert_eq!(of(255, 1024, 16 << 10, h100), 8);
        assert_eq!(of(0, 33, 0, h100), 15);
    }
}
