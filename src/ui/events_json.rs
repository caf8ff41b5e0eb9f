//! Running operations as JSON lines on stdout, one event a line; the format is in `docs/formats/operation.md`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::told::Live;
use super::{Ui, versioned};
use crate::engine::event::{Event, EventKind, EventStream};
use crate::engine::view::OperationView;

/// Prints the events of a stream to its end.
pub(super) async fn draw(ui: &mut Ui, mut stream: EventStream) {
    let mut live = Live::default();
    while let Some(event) = stream.next().await {
        if let Some(line) = live.fold(&event).map(|view| line(view, &event)) {
            ui.line(line);
        }
    }
}

/// Returns an event as one JSON object.
fn line(view: &OperationView, event: &Event) -> Value {
    let (message_type, said) = match &event.kind {
        EventKind::Begun(_) => {
            ("operation_begun".to_owned(), json!({"kind": view.kind, "stages": plan(view)}))
        }
        EventKind::Recorded(record) => {
            let mut said = fields(record);
            let name = said.shift_remove("event").and_then(|name| name.as_str().map(str::to_owned));
            (name.expect("a record serializes with its event"), Value::Object(said))
        }
        EventKind::Pausing { stage, step, pause } => {
            ("step_pausing".to_owned(), json!({"stage": stage, "step": step, "seconds": pause.as_secs_f64()}))
        }
        EventKind::Warning { text } => ("warning".to_owned(), json!({"text": text})),
        EventKind::Interrupted => ("interrupted".to_owned(), json!({})),
        EventKind::Progress { stage, step, progress } => {
            let said = json!({
                "stage": stage, "step": step, "done": progress.done, "total": progress.total, "unit": progress.unit
            });
            ("progress".to_owned(), said)
        }
    };
    let mut object = fields(&json!({
        "message_type": message_type,
        "seq": event.seq,
        "at": event.at,
        "operation": event.operation,
        "cluster": view.cluster,
    }));
    let said = fields(&said);
    let index =
        |name: &str| said.get(name).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    if let (Some(stage), Some(step)) = (index("stage"), index("step")) {
        object.insert("describe".to_owned(), view.stages[stage].steps[step].describe.clone().into());
    }
    object.extend(said);
    versioned(&object)
}

fn plan(view: &OperationView) -> Vec<Vec<&str>> {
    view.stages.iter().map(|stage| stage.steps.iter().map(|step| step.describe.as_str()).collect()).collect()
}

fn fields(body: &impl Serialize) -> Map<String, Value> {
    let value = serde_json::to_value(body).expect("records have text keys and no failing Serialize");
    let Value::Object(fields) = value else { unreachable!("records and what is said of them are objects") };
    fields
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::engine::journal;

    const DONE: &[u8] = include_bytes!("../../tests/golden/journal-v1-done.jsonl");

    #[test]
    fn each_event_is_one_object_with_its_type_and_step() {
        let content = journal::parse(Path::new("7f3a.jsonl"), DONE).unwrap().unwrap();
        let view = &content.view;
        let text = |kind| {
            let at = "2026-11-21T09:14:07.37Z".parse().unwrap();
            line(view, &Event { seq: 7, at, operation: view.id.clone(), kind }).to_string()
        };
        let record = Box::new(content.entries[1].record.clone());
        let head = |message_type: &str| {
            format!(
                r#"{{"format_version":"1.0","message_type":"{message_type}","seq":7,"at":"2026-11-21T09:14:07.37Z","operation":"7f3a","cluster":"inventory""#
            )
        };
        let started = r#","describe":"initdb inventory-a","stage":0,"step":0,"attempt":1}"#;
        assert_eq!(text(EventKind::Recorded(record)), head("step_started") + started);
        let begun = r#","kind":"apply","stages":[["initdb inventory-a","start inventory-b"],["open inventory"],["start pooler"]]}"#;
        assert_eq!(text(EventKind::Begun(Box::new(view.clone()))), head("operation_begun") + begun);
        let pausing = EventKind::Pausing { stage: 2, step: 0, pause: Duration::from_millis(500) };
        let paused = r#","describe":"start pooler","stage":2,"step":0,"seconds":0.5}"#;
        assert_eq!(text(pausing), head("step_pausing") + paused);
        assert_eq!(text(EventKind::Interrupted), head("interrupted") + "}");
    }
}
