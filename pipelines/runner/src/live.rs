//! How far a running job is, for people.

use crate::table::{duration, thousands};
use smelt_schemas::{Event, EventBody};

/// By its last events: `steps 412/800, loss 2.913, about 14 s left`.
pub(crate) fn words(events: &[Event]) -> String {
    progress(events).unwrap_or_else(|| "no progress told yet".into())
}

fn progress(events: &[Event]) -> Option<String> {
    let told: Vec<(f64, &EventBody)> = events
        .iter()
        .filter(|event| matches!(event.body, EventBody::Progress { .. }))
        .map(|event| (event.time, &event.body))
        .collect();
    let (time, EventBody::Progress { phase, done, total, unit, note }) = told.last()? else { return None };
    let mut text = match total {
        Some(total) => format!("{unit} {}/{}", thousands(*done), thousands(*total)),
        None => format!("{} {unit}", thousands(*done)),
    };
    if !note.is_empty() {
        text += &format!(", {note}");
    }
    // The rate of what these events cover.
    let first = told.iter().find_map(|(time, body)| match body {
        EventBody::Progress { phase: of, done: before, .. } if of == phase && before < done => Some((*time, *before)),
        _ => None,
    });
    if let (Some(total), Some((since, before))) = (total, first)
        && *time > since
        && total > done
    {
        let rate = (done - before) as f64 / (time - since);
        text += &format!(", about {} left", duration((total - done) as f64 / rate));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_with_what_is_left() {
        let event = |time: f64, done: u64, note: &str| Event {
            v: 1,
            time,
            seq: 0,
            rank: 0,
            body: EventBody::Progress {
                phase: "train".into(),
                done,
                total: Some(800),
                unit: "steps".into(),
                note: note.into(),
            },
        };
        assert_eq!(progress(&[]), None);
        assert_eq!(progress(&[event(10.0, 12, "")]).unwrap(), "steps 12/800");
        let told = [event(10.0, 12, ""), event(30.0, 412, "loss 2.913")];
        assert_eq!(progress(&told).unwrap(), "steps 412/800, loss 2.913, about 19 s left");
        assert_eq!(progress(&[event(10.0, 12, ""), event(30.0, 800, "")]).unwrap(), "steps 800/800");
    }
}
