//! An operation while it runs.
use super::Ui;
use crate::engine::event::{EventKind, EventStream};
use crate::topology::model::Cluster;
use crate::units::human_duration;
use std::time::Duration;
pub async fn draw(ui: &Ui, mut stream: EventStream) {
    while let Some(event) = stream.next().await {
        if let EventKind::Recorded(record) = event.kind {
            ui.note(format!("{record:?}").chars().take(200).collect::<String>());
        }
    }
}
pub fn print_up(ui: &mut Ui, herd: &str, cluster: &Cluster, nodes: &[String], seen: Duration) {
    ui.remark(format!(
        "{herd}/{} is up   write seen on {} after {}",
        cluster.name,
        nodes.join(", "),
        human_duration(seen)
    ));
}
