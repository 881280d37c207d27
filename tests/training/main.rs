//! Engine, losses and runs. One program, as each costs its linking.

mod closed_form;
mod engine;
mod every_loss;
mod judged;
mod kl;
mod loss_explain;
mod optimizer;
mod resumed;
mod runs;
mod state;
mod step_losses;
mod synced;
mod totals;
