//! A step without finite numbers: rank 0 keeps its batch with the tokens and the references of all ranks, as one process does.

use crate::cli_common::Cli;
use crate::mpirun::{Mpirun, said};
use crate::training::with;

const RUN: &str = "--model m --data d --device cpu --learning-rate 1e30 --batch-size 5 --token-budget 96 --lanes 4 --max-steps 9 \
                   --eval-strategy no --quiet";

/// What runs keep, by name.
fn kept(cli: &Cli, out: &str) -> Vec<(String, Vec<u8>)> {
    let folder = format!("{out}/non-finite");
    cli.names(&folder, "").into_iter().map(|name| (name.clone(), cli.bytes(&format!("{folder}/{name}")))).collect()
}

#[test]
fn the_batch_of_a_step_is_kept_whole() {
    let all = Mpirun::all();
    let cli = Cli::with_data();
    let kinds = [
        "sft",
        "dpo --ledger off",
        "dpo --loss-type bco_pair",
        "dpo --loss-type kto",
        "dpo --ledger off --sync-ref-model --ref-model-sync-steps 1",
    ];
    for (i, args) in kinds.into_iter().enumerate() {
        let one = format!("one-{i}");
        let ran = cli.run(&format!("{args} {RUN} --out {one}"));
        let want = kept(&cli, &one);
        assert!(!want.is_empty(), "{args}: {ran:?}");
        for mpirun in &all {
            for ranks in [2, 4] {
                let out = format!("{}-{ranks}-{i}", mpirun.name);
                let ran = with(mpirun, &cli, ranks, &format!("{args} {RUN} --out {out}"));
                let text = said(&ran);
                assert!(text.contains("no finite gradient in 3 steps in a row"), "{args}, {ranks} ranks: {text}");
                assert!(kept(&cli, &out) == want, "{args}, {}, {ranks} ranks: {text}", mpirun.name);
            }
        }
    }
}
