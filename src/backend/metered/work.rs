//! What an op asks of a device.

use std::marker::PhantomData;

/// What one call of an op asks of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// The op, as the backend has it.
    pub op: &'static str,
    /// Twice the multiplications of its dense products.
    pub product: f64,
    /// Bytes of these products' operands and results.
    pub operands: f64,
    /// Numbers of the result that such a product is cut by among what computes at a time; 0 where it is cut by its sums too.
    pub results: f64,
    /// Twice the multiplications of its attention: four a query, key it sees and channel forward, ten backward.
    pub attention: f64,
    /// Bytes read and written beside.
    pub stream: f64,
}

impl Work {
    /// What calls of the same op differ in most: the multiplications, or of an op without any the bytes.
    pub fn amount(&self) -> f64 {
        let flops = self.product + self.attention;
        if flops > 0.0 { flops } else { self.stream }
    }
}

/// A buffer, or a part of one: how long it is, and nothing else.
#[derive(Debug)]
pub struct Extent<T> {
    /// Elements.
    pub len: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Extent<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Extent<T> {}

impl<T> Extent<T> {
    /// Of `len` elements.
    pub fn new(len: usize) -> Self {
        Self { len, of: PhantomData }
    }

    /// Bytes of it.
    pub fn bytes(&self) -> f64 {
        (self.len * size_of::<T>()) as f64
    }
}
