//! What a config alone says about a job's cost, before its input is there.

use smelt_schemas::Estimate;

/// The estimate of a job whose model is its input `model`: `details` hold costs per parameter, and what the config says
/// about tokens. `flops_per_token` counts 2 per parameter that a token meets for a forward pass and 4 for a backward
/// pass.
pub fn before_the_checkpoint(
    bytes_per_parameter: f64,
    flops_per_token: f64,
    details: &[(&str, f64)],
    unknown: &[&str],
) -> Estimate {
    let own = [("bytes_per_parameter", bytes_per_parameter), ("flops_per_parameter_and_token", flops_per_token)];
    let details = own.iter().chain(details).map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let model = "the parameters come with the checkpoint: memory is `bytes_per_parameter` times their number and the \
                 activations of the tokens computed at once; FLOPs are `flops_per_parameter_and_token` times the \
                 parameters that a token meets and the tokens";
    let notes = std::iter::once(model).chain(unknown.iter().copied()).map(str::to_owned).collect();
    Estimate { details, notes, ..Estimate::default() }
}

/// The estimate of a job whose cost grows with the size of its input.
pub fn by_the_input() -> Estimate {
    let note = "memory and time follow the size of the input, which a config does not tell";
    Estimate { notes: vec![note.into()], ..Estimate::default() }
}
