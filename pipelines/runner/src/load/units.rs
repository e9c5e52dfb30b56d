//! Times as people write them.

/// Seconds of `90s`, `30m`, `2h`, `1d`.
pub(crate) fn seconds(text: &str) -> Option<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let factor = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    number.trim().parse::<f64>().ok().filter(|n| *n > 0.0).map(|n| n * factor)
}
