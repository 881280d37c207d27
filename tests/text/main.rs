//! Templates and tokenizers. One program, as each costs its linking.

#[path = "../cli_common/mod.rs"]
mod cli_common;
#[path = "../pack_common/mod.rs"]
mod pack_common;

mod render;
mod strangers;
mod strangers_files;
mod templates;
mod tokenization;
mod tokenizer_folders;
mod tokenizer_identity;
mod tokenizers_hostile;
