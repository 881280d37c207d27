//! The command line: what it prints, refuses and leaves behind. One program, as each costs its linking.

#[path = "../cli_common/mod.rs"]
mod cli_common;

mod analyze;
mod cli;
mod cli_bad;
mod cli_bad_files;
mod cli_card;
mod cli_config;
mod cli_docs;
mod cli_effect;
mod cli_eval;
mod cli_help;
mod cli_json;
mod cli_out;
mod cli_say;
mod cli_streams;
mod cli_tokens;
mod evaluations;
mod evaluations_fail;
mod hub;
mod hub_data;
mod hub_fails;
mod hub_server;
mod messages;
mod options;
mod recipe;
mod recipe_damaged;
mod recipe_killed;
mod recipe_stages;
mod replay;
mod replay_record;
mod report;
mod sweep;
mod sweep_again;
mod sweep_checks;
mod sweep_killed;
mod tensorboard;
mod watch;
