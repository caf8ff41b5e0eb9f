//! Notifications of role changes, to a small HTTP server that takes them, fails, or says nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::herd::{Herd, PAIR, newest_or_15};

/// What the server answers, one after the other; the last one again and again. `None` is nothing at all.
type Answers = Arc<Mutex<Vec<Option<u16>>>>;

/// An address on a port of its own. Ends with the process.
struct Address {
    url: String,
    taken: Arc<Mutex<Vec<(u16, Value)>>>,
    answers: Answers,
}

impl Address {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/services/T0/known-to-the-operator", listener.local_addr().unwrap());
        let (taken, answers) = (Arc::<Mutex<Vec<(u16, Value)>>>::default(), Answers::default());
        let (log, script) = (Arc::clone(&taken), Arc::clone(&answers));
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut bytes = Vec::new();
                let body = loop {
                    let mut chunk = [0; 4096];
                    let read = stream.read(&mut chunk).unwrap();
                    assert!(read > 0, "a request ends with its body");
                    bytes.extend_from_slice(&chunk[..read]);
                    if let Some(body) = body_of(&bytes) {
                        break body;
                    }
                };
                let answer = {
                    let mut script = script.lock().unwrap();
                    if script.len() > 1 { script.remove(0) } else { script[0] }
                };
                let Some(status) = answer else {
                    silent.push(stream);
                    continue;
                };
                log.lock().unwrap().push((status, body));
                write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .unwrap();
            }
        });
        Self { url, taken, answers }
    }

    fn answers(&self, answers: &[Option<u16>]) {
        *self.answers.lock().unwrap() = answers.to_vec();
    }

    fn taken(&self) -> Vec<(u16, Value)> {
        std::mem::take(&mut self.taken.lock().unwrap())
    }
}

/// Returns the document of a request that is there as a whole.
fn body_of(request: &[u8]) -> Option<Value> {
    let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(request[..end].to_vec()).unwrap();
    assert!(head.starts_with("POST /services/T0/known-to-the-operator HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let body = request[end..].get(..length.parse().unwrap())?;
    Some(serde_json::from_slice(body).unwrap())
}

#[test]
fn role_changes_are_told_and_nobody_waits_for_an_address_that_fails_or_is_silent() {
    let address = Address::open();
    let mut herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.edit("    schemas:\n", "    notify: {url: {env: NOTIFY_URL}}\n    schemas:\n");
    herd.variable("NOTIFY_URL", Some(&address.url));

    // One that fails once is asked again.
    address.answers(&[Some(500), Some(204)]);
    let told = herd.run(&["switchover", "--to", "b", "--yes"]).ends_with(0);
    assert!(
        !told.stderr.contains("WARNING") && !told.stderr.contains("known-to-the-operator"),
        "{}",
        told.stderr
    );
    let taken = address.taken();
    let seen: Vec<(u16, &str, &str)> = taken
        .iter()
        .map(|(status, body)| (*status, body["event"].as_str().unwrap(), body["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(seen, [(500, "started", "running"), (204, "started", "running"), (204, "done", "done")]);
    let done = &taken[2].1;
    for (key, value) in [
        ("herd", "shop"),
        ("cluster", "inventory"),
        ("kind", "switchover"),
        ("old_primary", "inventory-a"),
        ("new_primary", "inventory-b"),
    ] {
        assert_eq!(done[key], value, "{done}");
    }
    let text = done["text"].as_str().unwrap();
    assert!(
        text.starts_with("shop/inventory: switchover from inventory-a to inventory-b is done (operation "),
        "{text}"
    );

    // One that says nothing holds up neither the operation nor, for long, the command.
    address.answers(&[None]);
    let told = herd.run(&["switchover", "--to", "a", "--yes"]).ends_with(0);
    told.clone()
        .says(&["inventory-a is primary (timeline 3)"])
        .tells(&["WARNING: nobody took the notification"]);
    assert!(told.took < Duration::from_secs(40), "{:?}", told.took);
    assert_eq!(address.taken(), []);

    // What was taken back is told with its reason; without an address there is a warning and nothing else.
    herd.edit("    schemas:\n", "    hooks: {before-switchover: [/bin/false]}\n    schemas:\n");
    address.answers(&[Some(200)]);
    herd.run(&["switchover", "--to", "b", "--yes"]).ends_with(1);
    let taken = address.taken();
    assert_eq!((&taken[1].1["event"], &taken[1].1["outcome"]), (&"done".into(), &"undone".into()));
    assert_eq!(taken[1].1["why"]["what"], "the hook before-switchover, /bin/false, ended with status 1");
    herd.variable("NOTIFY_URL", None);
    let told = herd.run(&["switchover", "--to", "b", "--yes"]).ends_with(1);
    told.tells(&["WARNING: nobody was told \"done\": ", "environment variable NOTIFY_URL is not set"]);
    assert_eq!(herd.primaries(), ["a"]);

    // A fence, a failover and the way back are told alike.
    herd.edit("    hooks: {before-switchover: [/bin/false]}\n", "");
    herd.variable("NOTIFY_URL", Some(&address.url));
    address.answers(&[Some(200)]);
    let told = |of: &[&str]| {
        herd.run(of).ends_with(0);
        let taken = address.taken();
        let told = taken.iter().map(|(_, body)| {
            let word = |key: &str| body[key].as_str().unwrap_or("-").to_owned();
            [word("kind"), word("outcome"), word("old_primary"), word("new_primary")].join(" ")
        });
        told.collect::<Vec<String>>()
    };
    let fenced = told(&["fence", "a", "--yes", "--reason", "it is ill"]);
    assert_eq!(fenced, ["fence running - -", "fence done - -"]);
    let failed_over = told(&["failover", "--yes"]);
    let roles = "inventory-a inventory-b";
    assert_eq!(failed_over, [format!("failover running {roles}"), format!("failover done {roles}")]);
    let rejoined = told(&["rejoin", "a", "--yes"]);
    assert_eq!(rejoined.len(), 2, "{rejoined:?}");
    assert!(
        rejoined[0].starts_with("rejoin running ") && rejoined[1].starts_with("rejoin done "),
        "{rejoined:?}"
    );
}
