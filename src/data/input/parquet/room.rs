//! What a row may take, and what may be wrong with it.

/// Why a value cannot be had.
pub enum Trouble {
    /// The file is damaged.
    Damaged(String),
    /// This column has no JSON value: what it is, as a noun.
    Strange(String),
    /// The row is too long.
    TooLong,
}

/// Memory that a row may still take.
pub struct Room(pub u64);

impl Room {
    pub fn take(&mut self, bytes: usize) -> Result<(), Trouble> {
        self.0 = self.0.checked_sub(bytes as u64).ok_or(Trouble::TooLong)?;
        Ok(())
    }
}
