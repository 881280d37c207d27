//! A step without finite numbers: rank 0 keeps its batch with the tokens and the references of all ranks, as one process does.

use crate::abreast::{abreast, pairs};
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
    for (i, args) in kinds.iter().enumerate() {
        let ran = cli.run(&format!("{args} {RUN} --out one-{i}"));
        assert!(!kept(&cli, &format!("one-{i}")).is_empty(), "{args}: {ran:?}");
    }
    let kinds: Vec<(usize, &str)> = kinds.into_iter().enumerate().collect();
    abreast(4, &pairs(&kinds, &pairs(&all, &[2, 4])), |((i, args), (mpirun, ranks))| {
        let out = format!("{}-{ranks}-{i}", mpirun.name);
        let ran = with(mpirun, &cli, *ranks, &format!("{args} {RUN} --out {out}"));
        let text = said(&ran);
        assert!(text.contains("no finite gradient in 3 steps in a row"), "{args}, {ranks} ranks: {text}");
        let same = kept(&cli, &out) == kept(&cli, &format!("one-{i}"));
        assert!(same, "{args}, {}, {ranks} ranks: {text}", mpirun.name);
    });
}
