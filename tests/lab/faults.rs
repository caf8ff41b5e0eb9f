//! Each fault, before it, while it lasts and after it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::lab::{Lab, STATION, eventually, told};

/// How long a packet within one machine may take at most.
const MOMENT: Duration = Duration::from_millis(500);

const POSTGRES: u16 = 5432;

#[test]
fn hosts_have_an_address_a_disk_a_name_a_systemd_and_an_sshd_of_their_own() {
    let Some(lab) = Lab::with_disks(&[("db1", 256), ("db2", 512)]) else { return };
    for (host, blocks) in [("db1", 200..256), ("db2", 400..512)] {
        let output = lab.ssh(host, "hostname && cat /proc/1/comm && df --output=size -BM / | tail -n 1");
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some(host), "{}", told(&output));
        assert_eq!(lines.next(), Some("systemd"));
        let size: u32 = lines.next().unwrap().trim().trim_end_matches('M').parse().unwrap();
        assert!(blocks.contains(&size), "{host} has {size} MiB");
        assert!(eventually(|| {
            let output = lab.console(host, &["systemctl", "is-system-running"]);
            String::from_utf8_lossy(&output.stdout).trim() == "running"
        }));
    }
    let found = lab.prints("db1", &["getent", "hosts", "db2"]);
    assert_eq!(found.split_whitespace().next(), Some(lab.address("db2").to_string().as_str()));
    lab.prints("db1", &["sh", "-c", "echo mine > /var/lib/mine"]);
    assert!(!lab.console("db2", &["test", "-e", "/var/lib/mine"]).status.success());
    assert!(!std::path::Path::new("/var/lib/mine").exists());
    let output = lab.ssh("postgres@db2", "id --user --name");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "postgres\n", "{}", told(&output));
}

#[test]
fn labs_stand_side_by_side_and_do_not_see_each_other() {
    let Some(one) = Lab::up(&["db1"]) else { return };
    let Some(other) = Lab::up(&["db1"]) else { return };
    assert_ne!(one.address("db1"), other.address("db1"));
    for lab in [&one, &other] {
        assert_eq!(lab.prints("db1", &["hostname"]), "db1");
        assert!(greets(None, lab, "db1"));
    }
    let there = SocketAddr::from((other.address("db1"), 22));
    let reached = one.network("db1", || TcpStream::connect_timeout(&there, MOMENT));
    assert_eq!(reached.unwrap_err().kind(), ErrorKind::NetworkUnreachable);
}

#[test]
fn a_host_that_is_cut_off_lives_but_reaches_nobody_and_is_reached_by_nobody() {
    let Some(lab) = Lab::up(&["db1", "db2"]) else { return };
    assert!(greets(None, &lab, "db1"));
    assert!(greets(Some("db2"), &lab, "db1"));
    lab.cut("db1");
    assert!(!greets(None, &lab, "db1"));
    assert!(!greets(Some("db2"), &lab, "db1"));
    assert!(!greets(Some("db1"), &lab, "db2"));
    assert!(greets(None, &lab, "db2"));
    assert_eq!(lab.ssh("db1", "true").status.code(), Some(255));
    assert_eq!(lab.prints("db1", &["systemctl", "is-active", "ssh.service"]), "active");
    lab.mend();
    assert!(eventually(|| greets(None, &lab, "db1")));
    assert!(eventually(|| greets(Some("db2"), &lab, "db1")));
}

#[test]
fn two_hosts_that_are_cut_off_from_each_other_are_reached_by_all_others() {
    let Some(lab) = Lab::up(&["db1", "db2", "db3"]) else { return };
    lab.cut_pair("db1", "db2");
    assert!(!greets(Some("db1"), &lab, "db2"));
    assert!(!greets(Some("db2"), &lab, "db1"));
    for host in ["db1", "db2"] {
        assert!(greets(Some("db3"), &lab, host));
        assert!(greets(Some(host), &lab, "db3"));
        assert!(greets(None, &lab, host));
    }
    lab.cut_pair("db3", STATION);
    assert!(!greets(None, &lab, "db3"));
    assert!(greets(Some("db1"), &lab, "db3"));
    lab.mend();
    assert!(eventually(|| greets(Some("db1"), &lab, "db2")));
    assert!(eventually(|| greets(None, &lab, "db3")));
}

#[test]
fn one_direction_is_cut_while_the_other_goes_through() {
    let Some(lab) = Lab::up(&["db1", "db2"]) else { return };
    let socket = |host: &str| {
        let address = (lab.address(host), POSTGRES);
        let socket = lab.network(host, || UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(MOMENT)).unwrap();
        socket
    };
    let (one, other) = (socket("db1"), socket("db2"));
    let arrives = |from: &UdpSocket, to: &UdpSocket| {
        from.send_to(b"word", to.local_addr().unwrap()).unwrap();
        let mut word = [0; 4];
        to.recv_from(&mut word).is_ok()
    };
    assert!(arrives(&one, &other));
    assert!(arrives(&other, &one));
    lab.cut_direction("db1", "db2");
    assert!(!arrives(&one, &other));
    assert!(arrives(&other, &one));
    lab.mend();
    assert!(arrives(&one, &other));
}

#[test]
fn one_port_is_cut_while_the_others_answer() {
    let Some(lab) = Lab::up(&["db1", "db2"]) else { return };
    let server = lab.network("db1", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, POSTGRES))).unwrap();
    let there = server.local_addr().map(|_| SocketAddr::from((lab.address("db1"), POSTGRES))).unwrap();
    let connects = || lab.network("db2", || TcpStream::connect_timeout(&there, MOMENT)).is_ok();
    assert!(connects());
    lab.cut_port("db1", POSTGRES);
    assert!(!connects());
    assert!(TcpStream::connect_timeout(&there, MOMENT).is_err());
    assert!(greets(Some("db2"), &lab, "db1"));
    lab.mend();
    assert!(connects());
}

#[test]
fn a_slow_link_lets_through_what_it_was_told_to() {
    let Some(lab) = Lab::up(&["db1", "db2"]) else { return };
    let takes = |from: &str, to: &str| {
        let server = lab.network(to, || TcpListener::bind((lab.address(to), 0))).unwrap();
        let there = server.local_addr().unwrap();
        let sent = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut stream = lab.network(from, || TcpStream::connect_timeout(&there, MOMENT)).unwrap();
                stream.write_all(&sent).unwrap();
            });
            let (mut stream, _) = server.accept().unwrap();
            let began = Instant::now();
            let mut arrived = Vec::new();
            stream.read_to_end(&mut arrived).unwrap();
            sender.join().unwrap();
            assert_eq!(arrived.len(), sent.len());
            began.elapsed()
        })
    };
    let before = takes("db1", "db2");
    assert!(before < MOMENT, "{before:?}");
    // One MiB is 8.4 megabits.
    lab.slow("db1", 8_000);
    let (there, back) = (takes("db1", "db2"), takes("db2", "db1"));
    for slow in [there, back] {
        assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&slow), "{slow:?}");
    }
    lab.mend();
    assert!(takes("db1", "db2") < MOMENT);
}

#[test]
fn a_full_disk_is_full_for_that_host_only() {
    let Some(lab) = Lab::with_disks(&[("db1", 128), ("db2", 128)]) else { return };
    let write =
        |host: &str| lab.console(host, &["dd", "if=/dev/zero", "of=/var/lib/page", "bs=8192", "count=1"]);
    assert!(write("db1").status.success());
    lab.prints("db1", &["rm", "/var/lib/page"]);
    lab.fill_disk("db1");
    let refused = write("db1");
    assert!(told(&refused).contains("No space left on device"), "{}", told(&refused));
    assert!(write("db2").status.success());
    lab.free_disk("db1");
    assert!(write("db1").status.success());
}

#[test]
fn a_host_that_loses_its_power_keeps_its_disk_and_nothing_else() {
    let Some(lab) = Lab::up(&["db1", "db2"]) else { return };
    lab.prints("db1", &["sh", "-c", "echo kept > /var/lib/kept; echo lost > /run/lost"]);
    lab.prints("db1", &["systemd-run", "--unit=runs", "--quiet", "sleep", "infinity"]);
    let first = lab.init("db1").unwrap();
    lab.power_off("db1");
    assert!(!std::path::Path::new(&format!("/proc/{first}")).exists());
    assert!(!greets(Some("db2"), &lab, "db1"));
    assert_eq!(lab.ssh("db1", "true").status.code(), Some(255));
    lab.power_on("db1");
    assert_ne!(lab.init("db1"), Some(first));
    assert_eq!(lab.prints("db1", &["cat", "/var/lib/kept"]), "kept");
    assert!(!lab.console("db1", &["test", "-e", "/run/lost"]).status.success());
    let unit = lab.console("db1", &["systemctl", "is-active", "runs"]);
    assert_eq!(String::from_utf8_lossy(&unit.stdout), "inactive\n");
    assert!(greets(Some("db2"), &lab, "db1"));
    let output = lab.ssh("db1", "hostname");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "db1\n", "{}", told(&output));
}

/// Whether the sshd of a host greets another host, or the station.
fn greets(from: Option<&str>, lab: &Lab, to: &str) -> bool {
    let there = SocketAddr::from((lab.address(to), 22));
    let connect = || TcpStream::connect_timeout(&there, MOMENT);
    let connected = match from {
        Some(host) => lab.network(host, connect),
        None => connect(),
    };
    let Ok(mut stream) = connected else { return false };
    stream.set_read_timeout(Some(MOMENT)).unwrap();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"SSH-"
}
