//! Pairs of a right solution and one that is spoilt on purpose.

use smelt_checkpoint::fault;
use smelt_stage::Error;
use smelt_stage::kinds::{Preference, Prompt};
use smelt_verify::chain::Chain;
use smelt_verify::corrupt::{Corruption, corrupt};
use smelt_verify::{Rng, Verifier};

/// Whether the prompt is of a family whose solutions can be spoilt: chains of operations.
pub fn can_be_spoilt(row: &Prompt) -> Result<bool, Error> {
    Ok(matches!(row.verifier.parse().map_err(fault)?, Verifier::Chain { .. }))
}

/// The pair at place `place` of a mix that goes through the ways to spoil a solution; its draws are a function of seed,
/// stream and index. None when this problem cannot be spoilt in this way.
///
/// # Errors
/// When the prompt's problem is no chain.
pub fn spoil(row: &Prompt, place: usize, seed: u64, stream: &str, index: u64) -> Result<Option<Preference>, Error> {
    let Verifier::Chain { problem } = row.verifier.parse().map_err(fault)? else {
        return Err(Error::data(format!("prompt `{}` is of a family whose solutions cannot be spoilt", row.id)));
    };
    let Some(chain) = Chain::parse(&problem) else {
        return Err(Error::data(format!("prompt `{}` holds no chain: `{problem}`", row.id)));
    };
    let way = Corruption::MIX[place % Corruption::MIX.len()];
    let rejected = corrupt(&chain, way, &mut Rng::of(seed, stream, index));
    Ok(rejected.map(|rejected| Preference {
        id: format!("{}/{}", row.id, way.name()),
        messages: row.messages.clone(),
        chosen: chain.solution(),
        rejected,
        margin: None,
        fault: Some(way.name().into()),
    }))
}
