//! Engine, losses and runs. One program, as each costs its linking.

#[path = "../cli_common/mod.rs"]
mod cli_common;
#[path = "../common/host.rs"]
mod host;
#[path = "../model_common/mod.rs"]
mod model_common;

mod adapters;
mod best;
mod closed_form;
mod engine;
mod every_loss;
mod judged;
mod kl;
mod ledger;
mod loss_explain;
mod narrow;
mod optimizer;
mod qlora;
mod resumed;
mod runs;
mod state;
mod step_losses;
mod synced;
mod totals;
mod trained;
