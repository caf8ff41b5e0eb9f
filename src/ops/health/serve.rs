//! What `health serve` answers: metrics for a scrape, yes or no for a load balancer. Pure: it reads the last look and asks nobody.
//!
//! What is not known is no. So is what was looked at too long ago: a node may have lost its role since.

use std::time::{Duration, Instant};

use super::routes::{NodeRoute, Routes};
use crate::net::http::{Answer, Asked, TEXT};
use crate::units::parse_duration;

/// What Prometheus reads.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// The last look, as it is served.
#[derive(Debug, Clone)]
pub struct Board {
    /// In Prometheus' text format.
    pub metrics: String,
    /// The judgement as JSON.
    pub judgement: String,
    pub critical: bool,
    pub routes: Vec<Routes>,
    pub at: Instant,
    /// From which age on nothing is believed any more.
    pub stale: Duration,
}

const PATHS: &str = "\
/metrics                                    Prometheus
/health                                     200 unless something is critical
/clusters/NAME/read-write                   200 while there is a primary; says which
/clusters/NAME/read-only                    200 while a standby streams; says which
/clusters/NAME/nodes/NODE/read-write        200 if it is the primary; also .../primary
/clusters/NAME/nodes/NODE/read-only         200 if it is a standby that streams; also .../replica, ...?max-lag=5s
";

/// Which clients a path is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clients {
    Writing,
    Reading { max_lag: Option<Duration> },
}

/// Answers what was asked, given the last look, if there was one.
pub fn answer(board: Option<&Board>, now: Instant, asked: &Asked) -> Answer {
    let parts: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
    let (cluster, node, word) = match parts.as_slice() {
        [""] => return text(200, PATHS),
        ["metrics"] => return metrics(board, now),
        ["health"] => return health(board, now),
        ["clusters", cluster, word] => (*cluster, None, *word),
        ["clusters", cluster, "nodes", node, word] => (*cluster, Some(*node), *word),
        _ => return text(404, format!("there is no such path\n{PATHS}")),
    };
    let clients = match word {
        "read-write" | "primary" => Clients::Writing,
        "read-only" | "replica" => match max_lag(asked.query.as_deref()) {
            Ok(max_lag) => Clients::Reading { max_lag },
            Err(why) => return text(400, why),
        },
        _ => return text(404, format!("there is no such path\n{PATHS}")),
    };
    let board = match believed(board, now) {
        Ok(board) => board,
        Err(why) => return text(503, why),
    };
    let Some(routes) = board.routes.iter().find(|routes| routes.cluster == cluster) else {
        return text(404, format!("there is no cluster {cluster}"));
    };
    match node {
        Some(name) => match routes.nodes.iter().find(|route| route.node == name) {
            None => text(404, format!("there is no node {name} in {cluster}")),
            Some(route) => match takes(route, clients) {
                Ok(()) => text(200, name),
                Err(why) => text(503, format!("{name}: {why}")),
            },
        },
        None => of_cluster(routes, clients),
    }
}

fn of_cluster(routes: &Routes, clients: Clients) -> Answer {
    let taken: Vec<(&str, Result<(), String>)> =
        routes.nodes.iter().map(|route| (route.node.as_str(), takes(route, clients))).collect();
    let yes: Vec<&str> = taken.iter().filter(|(_, takes)| takes.is_ok()).map(|(name, _)| *name).collect();
    if yes.is_empty() {
        let no =
            |(name, takes): &(&str, Result<(), String>)| Some(format!("{name}: {}", takes.as_ref().err()?));
        text(503, taken.iter().filter_map(no).collect::<Vec<_>>().join("\n"))
    } else {
        text(200, yes.join("\n"))
    }
}

fn takes(route: &NodeRoute, clients: Clients) -> Result<(), String> {
    match clients {
        Clients::Writing => route.takes_writes(),
        Clients::Reading { max_lag } => route.takes_reads(max_lag),
    }
}

fn max_lag(query: Option<&str>) -> Result<Option<Duration>, String> {
    let Some(query) = query else { return Ok(None) };
    match query.split_once('=') {
        // A load balancer that writes its query itself writes no space.
        Some(("max-lag", value)) => match parse_duration(value) {
            Ok(span) => Ok(Some(span)),
            Err(error) => Err(format!("max-lag: {error}")),
        },
        Some(_) | None => Err(format!("unknown query {query}, expected max-lag=TIME")),
    }
}

/// Returns the last look while it says something about now.
fn believed(board: Option<&Board>, now: Instant) -> Result<&Board, String> {
    let Some(board) = board else { return Err("not known: the first look is not over".to_owned()) };
    let age = now.saturating_duration_since(board.at);
    if age > board.stale {
        return Err(format!("not known: the last look is {} s old", age.as_secs()));
    }
    Ok(board)
}

/// A look that is stuck never holds a scrape up: the last one is served, with its age.
fn metrics(board: Option<&Board>, now: Instant) -> Answer {
    let Some(board) = board else { return text(503, "not known: the first look is not over") };
    let age = now.saturating_duration_since(board.at).as_secs_f64();
    let name = "pgherd_look_age_seconds";
    let body = format!(
        "{}# HELP {name} How long ago the last look ended.\n# TYPE {name} gauge\n{name} {age:.3}\n",
        board.metrics
    );
    Answer { status: 200, content_type: METRICS, body }
}

fn health(board: Option<&Board>, now: Instant) -> Answer {
    match believed(board, now) {
        Ok(board) => Answer {
            status: if board.critical { 503 } else { 200 },
            content_type: JSON,
            body: board.judgement.clone(),
        },
        Err(why) => {
            let document = serde_json::json!({
                "format_version": "1.0", "status": "unknown", "error": {"what": why, "detail": null, "hint": null}
            });
            Answer { status: 503, content_type: JSON, body: format!("{document:#}\n") }
        }
    }
}

fn text(status: u16, body: impl Into<String>) -> Answer {
    let mut body = body.into();
    if !body.ends_with('\n') {
        body.push('\n');
    }
    Answer { status, content_type: TEXT, body }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::health::Serves;

    fn board(now: Instant) -> Board {
        let node = |node: &str, serves| NodeRoute { node: node.to_owned(), serves };
        let nodes = vec![
            node("a", Serves::Writes),
            node("b", Serves::Reads { lag: Some(Duration::from_secs(3)), late: false }),
            node("c", Serves::Nobody { why: "its server does not answer".to_owned() }),
        ];
        let split = |name: &str| {
            node(name, Serves::Nobody { why: "x and y are primaries at the same time".to_owned() })
        };
        Board {
            metrics: "# HELP x y\n# TYPE x gauge\nx 1\n".to_owned(),
            judgement: "{}\n".to_owned(),
            critical: false,
            routes: vec![
                Routes { cluster: "orders".to_owned(), nodes },
                Routes { cluster: "split".to_owned(), nodes: vec![split("x"), split("y")] },
            ],
            at: now,
            stale: Duration::from_secs(30),
        }
    }

    fn ask(board: Option<&Board>, now: Instant, path: &str) -> (u16, String) {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let asked = Asked { path: path.to_owned(), query: query.map(str::to_owned) };
        let Answer { status, body, .. } = answer(board, now, &asked);
        (status, body.trim_end().to_owned())
    }

    #[test]
    fn only_the_live_primary_takes_writes_and_only_a_streaming_standby_reads() {
        let now = Instant::now();
        let board = board(now);
        let status = |path: &str| ask(Some(&board), now, path).0;
        assert_eq!(status("/clusters/orders/nodes/a/read-write"), 200);
        assert_eq!(status("/clusters/orders/nodes/a/primary"), 200);
        assert_eq!(status("/clusters/orders/nodes/a/read-only"), 503);
        assert_eq!(status("/clusters/orders/nodes/b/read-write"), 503);
        assert_eq!(status("/clusters/orders/nodes/b/replica"), 200);
        assert_eq!(status("/clusters/orders/nodes/b/read-only?max-lag=5s"), 200);
        assert_eq!(status("/clusters/orders/nodes/b/read-only?max-lag=2s"), 503);
        assert_eq!(status("/clusters/orders/nodes/b/read-only?max-lag=soon"), 400);
        assert_eq!(status("/clusters/orders/nodes/b/read-only?lag=2s"), 400);
        for word in ["read-write", "read-only"] {
            assert_eq!(status(&format!("/clusters/orders/nodes/c/{word}")), 503);
            for path in ["split", "split/nodes/x", "split/nodes/y"] {
                assert_eq!(status(&format!("/clusters/{path}/{word}")), 503, "{path}");
            }
        }
        assert_eq!(ask(Some(&board), now, "/clusters/orders/read-write"), (200, "a".to_owned()));
        assert_eq!(ask(Some(&board), now, "/clusters/orders/read-only"), (200, "b".to_owned()));
        for path in
            ["/clusters/no/read-write", "/clusters/orders/nodes/no/read-write", "/no", "/clusters/orders/no"]
        {
            assert_eq!(status(path), 404, "{path}");
        }
        assert_eq!(status("/"), 200);
    }

    #[test]
    fn an_old_look_still_has_its_metrics_and_believes_in_nobody() {
        let now = Instant::now();
        let board = board(now);
        assert_eq!(ask(Some(&board), now, "/health").0, 200);
        let later = now + Duration::from_secs(31);
        let (status, metrics) = ask(Some(&board), later, "/metrics");
        assert_eq!(status, 200);
        assert!(metrics.ends_with("pgherd_look_age_seconds 31.000"), "{metrics}");
        assert_eq!(
            ask(Some(&board), later, "/clusters/orders/nodes/a/read-write"),
            (503, "not known: the last look is 31 s old".to_owned())
        );
        assert_eq!(ask(Some(&board), later, "/health").0, 503);
        for path in ["/metrics", "/health", "/clusters/orders/read-write"] {
            assert_eq!(ask(None, now, path).0, 503, "{path}");
        }
    }

    #[test]
    fn what_is_critical_is_not_healthy() {
        let now = Instant::now();
        let board = Board { critical: true, ..board(now) };
        assert_eq!(ask(Some(&board), now, "/health"), (503, "{}".to_owned()));
    }
}
