//! Alert rules and a dashboard for those who read our metrics elsewhere; printed as they are.

/// For `rule_files` of Prometheus.
pub const RULES: &str = include_str!("../../templates/prometheus-rules.yml");
/// For Grafana's import.
pub const DASHBOARD: &str = include_str!("../../templates/grafana-dashboard.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::ui::prometheus::families;

    /// The names of metrics in a text.
    fn metrics(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("pgherd_")).collect()
    }

    #[test]
    fn every_metric_that_an_alert_or_a_panel_names_is_one_that_is_written() {
        let families = families();
        for (what, text) in [("rules", RULES), ("dashboard", DASHBOARD)] {
            let named = metrics(text);
            assert!(named.len() > 3, "{what}: {named:?}");
            for metric in named {
                assert!(families.contains(metric), "{what} name {metric}, which nobody writes");
            }
        }
    }

    /// What Grafana's JSON model asks of a dashboard (grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model).
    #[test]
    fn the_dashboard_is_one_that_grafana_imports() {
        let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
        assert!(dashboard["id"].is_null() && dashboard["uid"].is_string() && dashboard["title"].is_string());
        assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
        assert!(dashboard["time"]["from"].is_string() && dashboard["templating"]["list"].is_array());
        let mut variables: BTreeSet<&str> = BTreeSet::new();
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            variables.insert(variable["name"].as_str().unwrap());
        }
        let panels = dashboard["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len());
        let mut taken: Vec<[u64; 4]> = Vec::new();
        for panel in panels {
            let title = panel["title"].as_str().unwrap();
            assert!(panel["type"].is_string(), "{title}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            assert!(w > 0 && h > 0 && x + w <= 24, "{title} is outside of the grid");
            let beside =
                |[x2, y2, w2, h2]: [u64; 4]| x + w <= x2 || x2 + w2 <= x || y + h <= y2 || y2 + h2 <= y;
            assert!(taken.iter().copied().all(beside), "{title} lies over another panel");
            taken.push([x, y, w, h]);
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{title} shows nothing");
            for target in targets {
                let expr = target["expr"].as_str().unwrap();
                assert!(target["refId"].is_string() && !metrics(expr).is_empty(), "{title}");
                let used = expr.split('$').skip(1).map(|rest| {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
                    &rest[..end]
                });
                assert!(used.clone().all(|name| variables.contains(name)), "{title}: {expr}");
            }
        }
    }
}
