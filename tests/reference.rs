//! Whose log-probs a sidecar holds: one model's, computed one way; and what is missing, and nothing else, is computed.

mod cli_common;

use cli_common::*;
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::data::sidecar::{RefKey, Sidecars};

/// What `reference` says it did: responses, computed, found.
fn reference(cli: &Cli, args: &str) -> [u64; 3] {
    let said = cli.ok(&format!("reference --data d {args}")).out;
    let words: Vec<&str> = said.split_whitespace().collect();
    [words[0], words[2], words[4]].map(|w| w.parse().unwrap_or_else(|_| panic!("{said}")))
}

#[test]
fn another_precision_or_model_finds_nothing() {
    let cli = Cli::with_data();
    cli.model("other", "qwen3");
    let files = || cli.names("d", ".ref-").len();
    assert_eq!((reference(&cli, "--model m --device cpu --dtype f32"), files()), ([48, 48, 0], 2), "two splits");
    assert_eq!((reference(&cli, "--model m --device cpu --dtype f32"), files()), ([48, 0, 48], 2));
    assert_eq!((reference(&cli, "--model other --device cpu --dtype f32"), files()), ([48, 48, 0], 4));
    if cli.ok("doctor").out.contains("--dtype bf16: not here") {
        return println!("skipped: reference log-probs in bf16, on this machine");
    }
    assert_eq!((reference(&cli, "--model m --device cpu --dtype bf16"), files()), ([48, 48, 0], 6));
    for dtype in ["f32", "bf16"] {
        assert_eq!(
            reference(&cli, &format!("--model m --device cpu --dtype {dtype}")),
            [48, 0, 48],
            "each has its own"
        );
    }
}

/// A pass that another token budget had begun: micro-batches of which some responses are known and some are not.
#[test]
fn a_micro_batch_known_in_part_is_completed() {
    let cli = Cli::with_data();
    let options = "--model m --device cpu --dtype f32";
    reference(&cli, options);
    // The same file with every third value only.
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let name = cli.names("d", "train-00000.pref.ref-").remove(0);
    let header = cli.bytes(&format!("d/{name}"));
    let len = u32::from_le_bytes(header[36..40].try_into().unwrap()) as usize;
    let key = RefKey {
        model_sha256: header[72..104].try_into().unwrap(),
        fingerprint: String::from_utf8(header[104..104 + len].to_vec()).unwrap(),
    };
    let whole = Sidecars::open(&data, None, &key).unwrap();
    assert_eq!(whole.missing(), 0);
    std::fs::remove_file(cli.path(&format!("d/{name}"))).unwrap();
    let mut part = Sidecars::open(&data, None, &key).unwrap();
    (0..data.num_responses()).step_by(3).for_each(|id| part.set(id, whole.get(id).unwrap()));
    part.flush().unwrap();
    let missing = part.missing();
    assert!(missing > 0);

    let [all, computed, _] = reference(&cli, options);
    assert!(all == 48 && computed >= missing, "{computed} computed, {missing} missing");
    let again = Sidecars::open(&data, None, &key).unwrap();
    assert_eq!(again.missing(), 0);
    assert!((0..data.num_responses()).all(|id| again.get(id) == whole.get(id)), "the same values to the bit");
}
