//! Damaged shards and sidecars.

use super::bench::{Bench, key};
use super::{Rng, Verdict, bytes, refused};
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::format::{HEADER_LEN, Header};
use fusedpo::data::shard::{Dataset, InspectOptions, Split, inspect};
use fusedpo::data::sidecar::{self, Sidecars};
use sha2::Digest;

/// Any bytes under a good shard's name: refused, or what was there before.
pub fn shard(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = rng.pick(&b.shards);
    let bad = bytes(rng, good, HEADER_LEN);
    b.write("s.pref", &bad);
    let opened = Dataset::open(&b.path("s.pref"), Split::Train);
    // `inspect` reads records without verifying them.
    let shown = inspect(&b.path("s.pref"), &InspectOptions { show: 3, verify: false });
    if let (Ok(_), Err(e)) = (&opened, &shown) {
        refused(e)?;
    }
    match opened.and_then(|d| d.verify()) {
        Err(e) => refused(&e),
        Ok(()) if bad == *good => Ok(true),
        Ok(()) => Err("a damaged shard was accepted".into()),
    }
}

/// Damage by someone who repairs every checksum: refused, or records that every later step can rely on.
pub fn forged_shard(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = rng.pick(&b.shards);
    let mut bad = bytes(rng, good, HEADER_LEN);
    if bad.len() < HEADER_LEN {
        return shard(b, rng);
    }
    let mut header: Header = bytemuck::pod_read_unaligned(&bad[..HEADER_LEN]);
    let mut sha = sha2::Sha256::new();
    for s in &mut header.sections {
        let end = s.offset.checked_add(s.length).and_then(|e| usize::try_from(e).ok());
        if let Some(part) = end.and_then(|e| bad.get(s.offset as usize..e)) {
            s.crc32 = crc32fast::hash(part);
            sha.update(part);
        }
    }
    sha.update(&bytemuck::bytes_of(&header)[..fusedpo::data::shard::format::IDENTITY_LEN]);
    header.content_sha256 = sha.finalize().into();
    header.seal();
    bad[..HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&header));
    b.write("s.pref", &bad);
    let data = match Dataset::open(&b.path("s.pref"), Split::Train).and_then(|d| d.verify().map(|()| d)) {
        Err(e) => return refused(&e),
        Ok(data) => data,
    };
    plan_all(&data)?;
    Ok(true)
}

/// Every step of every objective.
pub fn plan_all(data: &Dataset) -> Result<(), String> {
    for objective in [Objective::Preference, Objective::Sft, Objective::Score] {
        let o = PlanOptions { objective, batch_size: 2, token_budget: None, seed: 1, shuffle: true };
        match Planner::new(data, &o) {
            Err(e) => drop(refused(&e)?),
            Ok(plan) => (0..plan.steps_in_epoch(0)).for_each(|s| drop(plan.step(0, s).unwrap())),
        }
    }
    Ok(())
}

/// A sidecar with other bytes: refused, told to be another's, or what was there before.
pub fn reference(b: &Bench, rng: &mut Rng) -> Verdict {
    let data = Dataset::open(&b.path("d"), Split::Train).map_err(|e| e.to_string())?;
    let bad = bytes(rng, &b.sidecar, HEADER_LEN);
    std::fs::write(sidecar::path(&data.shards()[0], None, &key()), &bad).unwrap();
    match Sidecars::open(&data, None, &key()) {
        Err(e) => refused(&e),
        Ok(_) if bad == b.sidecar => Ok(true),
        Ok(_) => Err("a damaged sidecar was accepted".into()),
    }
}
