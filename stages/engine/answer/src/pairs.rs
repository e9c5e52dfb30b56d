//! Pairs of a right solution and one that is spoilt on purpose.

use crate::{Unusable, Verdict};
use smelt_checkpoint::fault;
use smelt_stage::Error;
use smelt_stage::kinds::{Preference, Prompt};
use smelt_verify::chain::Chain;
use smelt_verify::corrupt::{Corruption, corrupt};
use smelt_verify::{Rng, Verifier};

/// The pair at place `place` of a mix that goes through the ways to spoil a solution; its draws are a function of seed,
/// stream and index. None when this problem cannot be spoilt in this way; an objection when the prompt's problem is no
/// chain of operations, whose solutions alone can be spoilt.
pub fn spoil(
    row: &Prompt,
    place: usize,
    seed: u64,
    stream: &str,
    index: u64,
) -> Result<Result<Option<Preference>, Unusable>, Error> {
    if let Some(objection) = Verdict::objection(row) {
        return Ok(Err(objection));
    }
    let Verifier::Chain { problem } = row.verifier.parse().map_err(fault)? else {
        let detail = "solutions of its family cannot be spoilt: only those of `chain` can";
        return Ok(Err(Unusable::new(&row.id, "cannot_be_spoilt", detail)));
    };
    let Some(chain) = Chain::parse(&problem) else {
        return Ok(Err(Unusable::new(&row.id, "unscorable", format!("`{problem}` is no chain"))));
    };
    let way = Corruption::MIX[place % Corruption::MIX.len()];
    let rejected = corrupt(&chain, way, &mut Rng::of(seed, stream, index));
    Ok(Ok(rejected.map(|rejected| Preference {
        id: format!("{}/{}", row.id, way.name()),
        messages: row.messages.clone(),
        chosen: chain.solution(),
        rejected,
        margin: None,
        fault: Some(way.name().into()),
    })))
}
