//! Templates and tokenizers. One program, as each costs its linking.

mod render;
mod strangers;
mod strangers_files;
mod templates;
mod tokenization;
mod tokenizer_folders;
mod tokenizer_identity;
mod tokenizers_hostile;
