//! Curves as pictures: SVG that needs nothing else, in the reader's light or dark colours.
//!
//! - [`Series`]: values over steps in a fixed amount of memory, however many there are: neighbours share a bucket that keeps
//!   their mean and both extremes.
//! - [`Scale`]: where a value lies, and the ticks that a person would choose.
//! - [`Chart`]: a panel with the raw values faint behind their smoothed line, and [`stacked`]: several in one file.
//!
//! A colour is a run's ([`COLOURS`] of them, which colour-blind people can tell apart; the runs after them have the same ones,
//! dashed), a shape of points is a held-out set's.

mod panel;
mod path;
mod scale;
mod series;

pub use panel::{BOX, Chart, Drawn, HEIGHT, Line, WIDTH, stacked, usual};
pub use path::{COLOURS, SHAPES, STYLE, class, marker, swatch};
pub use scale::{Scale, short};
pub use series::{Bucket, Series, smoothed};
