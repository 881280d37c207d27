//! A linear layer's products with its weight, wherever that is: dense, laid out for few rows, or in four bits. (What an
//! adapter adds is in [`super::low_rank`].)

use super::load::Model;
use super::nf4::Dense;
use super::params::Param;
use crate::backend::{Act, ActMut, Backend, LinearBwdInput, LinearFwd, LinearPacked, Write};
use crate::error::{Error, Result};

/// A weight laid out for few rows; nothing where the device reads it fastest as it lies.
pub(super) type Laid<B> = Option<<B as crate::backend::DecodeOps>::Packed>;

/// How a product is computed.
pub(super) enum Product<'a, B: Backend> {
    /// Of many rows.
    Many,
    /// Of the few of generation, by the weight as it was laid out where that is to be used.
    Few(Option<&'a B::Packed>),
}

/// A weight of a model, and scratch.
pub(super) struct Linear<'a, B: Backend> {
    pub model: &'a Model<B>,
    pub param: &'a Param,
    pub dense: &'a mut Dense<B>,
}

impl<'a, B: Backend> Linear<'a, B> {
    /// `y {=,+=,= plus +} x w^T`, `x` having `inp` columns.
    pub fn forward(
        self,
        be: &B,
        product: Product<'a, B>,
        (y, x): (ActMut<'a, B>, Act<'a, B>),
        (out, inp): (usize, usize),
        write: Write<Act<'a, B>>,
    ) -> Result<()> {
        if let Product::Few(Some(w)) = product {
            return be.linear_packed(LinearPacked { y, x, w, write });
        }
        let w = weight(be, self.model, self.param, self.dense)?;
        let op = LinearFwd { y, x, w, out, inp, write };
        match product {
            Product::Many => be.linear_fwd(op),
            Product::Few(_) => be.linear_few(op),
        }
    }

    /// `dx = dy w`.
    pub fn input(self, be: &B, (dx, dy): (ActMut<'a, B>, Act<'a, B>), (out, inp): (usize, usize)) -> Result<()> {
        let w = weight(be, self.model, self.param, self.dense)?;
        be.linear_bwd_input(LinearBwdInput { dx, dy, w, out, inp, write: Write::Set })
    }

    /// Lays the weight out for few rows, where there is room for that and it has the layout.
    pub fn pack(self, be: &B, to: &mut Laid<B>) -> Result<()> {
        if let Some(room) = to {
            let fits = be.pack_weight(room, weight(be, self.model, self.param, self.dense)?)?;
            *to = to.take().filter(|_| fits);
        }
        Ok(())
    }
}

/// The elements of the weight `p`, made dense in `dense` where it is in four bits.
pub(super) fn weight<'a, B: Backend>(
    be: &B,
    model: &'a Model<B>,
    p: &Param,
    dense: &'a mut Dense<B>,
) -> Result<B::View<'a, B::Act>> {
    if p.nf4.is_empty() {
        return Ok(be.view(&model.weights, p.at.clone()));
    }
    let (Some(all), Some(dense)) = (&model.nf4, dense) else {
        return Err(Error::usage("the workspace was made for a model without weights in four bits"));
    };
    for i in p.nf4.clone() {
        let tensor = &model.table.nf4[i];
        all.dequantize(be, (i, tensor), be.view_mut(dense, tensor.start..tensor.start + tensor.len))?;
    }
    for (start, at) in &p.dense {
        be.copy(be.view_mut(dense, *start..start + at.len()), be.view(&model.weights, at.clone()))?;
    }
    Ok(be.view(dense, p.at.clone()))
}
