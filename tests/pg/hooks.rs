//! The examples of hooks, run as they are: against a small name server, and in a network of their own.

use std::net::UdpSocket;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

fn example(name: &str) -> String {
    format!("{}/examples/hooks/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn well(output: &Output) -> String {
    let (said, told) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{said}{told}");
    said.into_owned()
}

/// A name server for db.example that takes every update (RFC 2136) and hands it out. Ends with its process.
fn name_server() -> (u16, Receiver<Vec<u8>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let (updates, received) = channel();
    std::thread::spawn(move || {
        let mut packet = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let asked = packet[..length].to_vec();
            let opcode = asked[2] >> 3 & 0xf;
            // QR and AA, no error; the question is repeated.
            let mut answer = vec![asked[0], asked[1], 0x84 | opcode << 3, 0];
            answer.extend([0, 1, 0, 0, 0, u8::from(opcode == 0), 0, 0]);
            let name = asked[12..].iter().position(|byte| *byte == 0).unwrap();
            answer.extend(&asked[12..12 + name + 5]);
            if opcode == 0 {
                // Whose zone it is: nsupdate asks for the SOA of the name, and finds that of db.example beside the answer.
                answer.extend(b"\x02db\x07example\0\0\x06\0\x01\0\0\0\x05\0\x16\0\0");
                answer.extend([0, 0, 0, 1].repeat(5));
            } else {
                updates.send(asked).unwrap();
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    (port, received)
}

fn holds(packet: &[u8], bytes: &[u8]) -> bool {
    packet.windows(bytes.len()).any(|window| window == bytes)
}

#[test]
fn the_example_for_dns_replaces_the_record_of_a_name() {
    let (port, updates) = name_server();
    let run = || {
        Command::new(example("dns-nsupdate"))
            .args(["inventory.db.example", &format!("127.0.0.1#{port}")])
            .env("PGHERD_NEW_PRIMARY_ADDRESS", "10.0.1.12")
            .env("PGHERD_NEW_PRIMARY", "inventory-b")
            .env("PGHERD_OPERATION", "7f3a")
            .output()
            .unwrap()
    };
    // Twice, as after a crash.
    for _ in 0..2 {
        let said = well(&run());
        assert_eq!(said, "inventory.db.example leads to 10.0.1.12 (inventory-b, operation 7f3a)\n");
        let update = updates.recv_timeout(Duration::from_secs(10)).unwrap();
        // Two changes: no A record any more (class ANY, no data), and this one for 5 s.
        assert_eq!(update[8..10], [0, 2]);
        assert!(holds(&update, b"\0\x01\0\xff\0\0\0\0\0\0"), "{update:?}");
        assert!(holds(&update, b"\0\x01\0\x01\0\0\0\x05\0\x04\x0a\0\x01\x0c"), "{update:?}");
    }
    // One that is called by hand is told what it lacks.
    let alone = Command::new(example("dns-nsupdate")).args(["x", "y"]).output().unwrap();
    assert!(!alone.status.success());
    assert!(String::from_utf8_lossy(&alone.stderr).contains("this is a hook of pgherd"));
}

#[test]
fn the_example_for_an_address_takes_it_and_gives_it_up_and_may_be_run_twice() {
    let script = format!(
        "set -e; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up; hook={}\n\
         $hook take 10.9.9.9/24 v0; $hook take 10.9.9.9/24 v0; ip -brief address show dev v0 to 10.9.9.9 | grep -o 10.9.9.9/24\n\
         $hook give-up 10.9.9.9/24 v0; $hook give-up 10.9.9.9/24 v0; ip -brief address show dev v0 to 10.9.9.9",
        example("move-address")
    );
    let said = well(
        &Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "bash", "-c", &script])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap(),
    );
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (on, off) = (format!("10.9.9.9 is on v0 of {host}\n"), format!("10.9.9.9 is not on v0 of {host}\n"));
    assert_eq!(said, format!("{on}{on}10.9.9.9/24\n{off}{off}"));
}
