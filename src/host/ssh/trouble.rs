//! What keeps a machine from being worked on, told so that it can be mended.
//!
//! Reads what ssh and sudo say. They have no other way to tell a changed host key from a refused login, and OpenSSH's messages are not
//! translated.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::facts::Facts;
use crate::error::{Error, ErrorKind};
use crate::units::human_duration;

/// One thing that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    kind: ErrorKind,
    /// A lowercase fact.
    what: String,
    /// Whole sentences.
    detail: String,
    hint: String,
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        Self::new(trouble.kind, trouble.what).detail(trouble.detail).hint(trouble.hint)
    }
}

/// Tells troubles in one fragment.
pub(super) fn told(troubles: &[Trouble]) -> String {
    let told: Vec<String> = troubles
        .iter()
        .map(|trouble| match trouble.detail.trim_end_matches('.') {
            "" => trouble.what.clone(),
            detail => format!("{}: {detail}", trouble.what),
        })
        .collect();
    told.join("; ")
}

pub(super) fn other(address: &str, why: &str) -> Trouble {
    Trouble {
        kind: ErrorKind::NotFound,
        what: format!("could not work on {address} through ssh"),
        detail: format!("{}.", why.trim_end_matches('.')),
        hint: format!("See what ssh says: ssh -v {}", plain_address(address)),
    }
}

pub(super) fn silent(address: &str, after: Duration) -> Trouble {
    Trouble {
        kind: ErrorKind::NotFound,
        what: format!("could not reach {address} through ssh"),
        detail: format!("It did not answer within {}.", human_duration(after)),
        hint: format!("See what ssh says: ssh -v {}", plain_address(address)),
    }
}

fn plain_address(address: &str) -> String {
    match address.split_once(" port ") {
        Some((host, port)) => format!("-p {port} {host}"),
        None => address.to_owned(),
    }
}

pub(super) fn is_about_host_key(stderr: &str) -> bool {
    stderr.contains("Host key verification failed")
        || stderr.contains("REMOTE HOST IDENTIFICATION HAS CHANGED")
}

/// Finds `Offending ED25519 key in FILE:LINE`.
pub(super) fn offending_line(stderr: &str) -> Option<(PathBuf, usize)> {
    let place =
        stderr.lines().find_map(|line| line.trim().strip_prefix("Offending ")?.split_once(" key in "))?.1;
    let (file, line) = place.trim_end().rsplit_once(':')?;
    Some((PathBuf::from(file), line.parse().ok()?))
}

/// Tells of a host key that is not the known one, or of one that is not known. `verbose` is what ssh said when it was asked to say more.
pub(super) fn host_key(
    address: &str,
    stderr: &str,
    verbose: &str,
    known: Option<&str>,
    host_keys: Option<&Path>,
) -> Trouble {
    let offered = offered(verbose).or_else(|| offered(stderr)).unwrap_or_else(|| "unknown".to_owned());
    let file = host_keys.map_or_else(|| "~/.ssh/known_hosts".to_owned(), |file| file.display().to_string());
    let place = offending_line(stderr);
    if place.is_some() || stderr.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        let at = place.map_or(file, |(file, line)| format!("{}:{line}", file.display()));
        return Trouble {
            kind: ErrorKind::Refused,
            what: format!("the host key of {address} has changed"),
            detail: format!(
                "It offers {offered}; {at} says {}. Either the machine was installed anew, or somebody stands between it and us. Nothing was sent.",
                known.unwrap_or("another key")
            ),
            hint: "Compare the fingerprint with that on the machine (ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub); if it is right, \
                   replace that line."
                .to_owned(),
        };
    }
    Trouble {
        kind: ErrorKind::Refused,
        what: format!("the host key of {address} is not known"),
        detail: format!("It offers {offered}; {file} has none for it. Nothing was sent."),
        hint: "Compare the fingerprint with that on the machine (ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub), then add the key to \
               that file."
            .to_owned(),
    }
}

/// Finds the fingerprint of the key that the machine showed.
fn offered(said: &str) -> Option<String> {
    let of_debug = said.lines().find_map(|line| line.split_once("Server host key: ")).map(|(_, key)| key);
    let of_warning = said.lines().map(str::trim).find(|line| line.starts_with("SHA256:"));
    of_debug.or(of_warning).map(|key| key.trim().trim_end_matches('.').to_owned())
}

/// Tells why ssh did not get in.
pub(super) fn not_connected(address: &str, user: &str, stderr: &str) -> Trouble {
    let said: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = said.last().copied().unwrap_or("ssh gave no reason").trim_end_matches('.');
    if said.iter().any(|line| line.contains("Permission denied (")) {
        return Trouble {
            kind: ErrorKind::NotFound,
            what: format!("{address} does not let {user} in"),
            detail: format!("ssh says: {last}."),
            hint: format!(
                "Put a public key of yours into {user}'s ~/.ssh/authorized_keys there, or load its key into your agent."
            ),
        };
    }
    Trouble {
        kind: ErrorKind::NotFound,
        what: format!("could not reach {address} through ssh"),
        detail: format!("ssh says: {last}."),
        hint: format!("See what ssh says: ssh -v {}", plain_address(address)),
    }
}

/// Reads what the machine said of itself.
pub(super) fn read_look(address: &str, user: &str, os_user: &str, look: &str) -> Result<Facts, Vec<Trouble>> {
    let lines: Vec<&str> = look.lines().collect();
    if lines.first() != Some(&"pgherd-look 1") || lines.last() != Some(&"end") {
        let first: String = lines.first().unwrap_or(&"nothing").chars().take(80).collect();
        return Err(vec![Trouble {
            kind: ErrorKind::Refused,
            what: format!("the login shell of {user} on {address} does not only do what it is told"),
            detail: format!("The first line that came back is {first:?}."),
            hint: format!(
                "Have {user}'s shell profile print nothing where there is no terminal, and give that user a POSIX shell."
            ),
        }]);
    }
    let all = |key: &'static str| {
        lines.iter().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(' ')).map(str::trim)
    };
    let one = |key: &'static str| all(key).next().unwrap_or("");
    let uid: Option<u32> = one("login").split(' ').next().and_then(|number| number.parse().ok());
    let mut troubles = Vec::new();
    let missing: Vec<&str> = all("lacks").collect();
    if !missing.is_empty() {
        troubles.push(Trouble {
            kind: ErrorKind::NotFound,
            what: format!("{address} lacks programs that pgherd needs"),
            detail: format!("Missing: {}.", missing.join(", ")),
            hint: "Install coreutils, findutils and util-linux there.".to_owned(),
        });
    }
    let owner = passwd(one("os-user"));
    if owner.is_none() {
        troubles.push(Trouble {
            kind: ErrorKind::NotFound,
            what: format!("the user {os_user} does not exist on {address}"),
            detail: "It should own the data directories; PostgreSQL does not run as root.".to_owned(),
            hint: "Install PostgreSQL's package there, which makes the user postgres, or name another user with postgres.os-user."
                .to_owned(),
        });
    } else if let Some(said) = all("sudo-says").next() {
        troubles.push(Trouble {
            kind: ErrorKind::Refused,
            what: format!("{user} may not work as {os_user} on {address}"),
            detail: format!("\"sudo -n -u {os_user} true\" says: {}.", said.trim_end_matches('.')),
            hint: format!(
                "Add this line to /etc/sudoers.d/pgherd there (visudo -f /etc/sudoers.d/pgherd): {user} ALL=({os_user}) NOPASSWD: ALL"
            ),
        });
    }
    match (uid, owner, passwd(one("home"))) {
        (Some(uid), Some((os_uid, os_gid, os_home)), home) if troubles.is_empty() => Ok(Facts {
            uid,
            machine: one("machine").rsplit(' ').next().unwrap_or("").to_owned(),
            home: home.map_or_else(|| "/".to_owned(), |(_, _, home)| home),
            os_user: (os_uid, os_gid, os_home),
            may_be_root: uid == 0 || one("root") == "yes",
        }),
        _ if troubles.is_empty() => Err(vec![other(address, "what it says of itself cannot be read")]),
        _ => Err(troubles),
    }
}

/// Reads user number, group number and home of a line of passwd(5).
fn passwd(line: &str) -> Option<(u32, u32, String)> {
    let mut fields = line.split(':').skip(2);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((uid, gid, fields.nth(1)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: &str = "pgherd-look 1\nlogin 1000 dba\nmachine Linux x86_64\nhome dba:x:1000:1000::/home/dba:/bin/sh\n\
                        os-user postgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash\nend\n";

    #[test]
    fn a_machine_that_lacks_nothing_is_known() {
        let facts = read_look("db1", "dba", "postgres", LOOK).unwrap();
        assert_eq!((facts.uid, facts.machine.as_str(), facts.may_be_root), (1000, "x86_64", false));
        assert_eq!(facts.os_user, (101, 104, "/var/lib/postgresql".to_owned()));
        assert!(
            read_look("db1", "dba", "postgres", &LOOK.replace("end", "root yes\nend")).unwrap().may_be_root
        );
    }

    #[test]
    fn everything_that_is_missing_is_told_at_once_with_the_line_to_add() {
        let look =
            LOOK.replace("end", "lacks setpriv\nlacks find\nsudo-says sudo: a password is required\nend");
        let troubles = read_look("db1", "dba", "postgres", &look).unwrap_err();
        assert_eq!(troubles.len(), 2);
        assert_eq!(troubles[0].detail, "Missing: setpriv, find.");
        assert!(troubles[1].hint.ends_with(": dba ALL=(postgres) NOPASSWD: ALL"), "{}", troubles[1].hint);
    }

    #[test]
    fn a_chatty_login_shell_is_refused() {
        let troubles = read_look("db1", "dba", "postgres", &format!("Welcome!\n{LOOK}")).unwrap_err();
        assert!(troubles[0].detail.contains("Welcome!"));
        assert!(read_look("db1", "dba", "postgres", LOOK.trim_end_matches("end\n")).is_err());
    }

    #[test]
    fn a_changed_host_key_is_told_with_both_fingerprints() {
        let stderr = "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nThe fingerprint for the ED25519 key sent by the remote host is\n\
                      SHA256:new.\nOffending ED25519 key in /home/dba/known hosts:7\nHost key verification failed.\n";
        assert_eq!(offending_line(stderr), Some((PathBuf::from("/home/dba/known hosts"), 7)));
        let trouble = host_key("db1", stderr, "", Some("SHA256:old"), None);
        assert_eq!(trouble.what, "the host key of db1 has changed");
        assert!(
            trouble.detail.contains("It offers SHA256:new; /home/dba/known hosts:7 says SHA256:old."),
            "{}",
            trouble.detail
        );
    }

    #[test]
    fn an_unknown_host_key_is_told_with_its_fingerprint() {
        let verbose = "debug1: Server host key: ssh-ed25519 SHA256:abc\nHost key verification failed.\n";
        let trouble =
            host_key("db1", "Host key verification failed.\n", verbose, None, Some(Path::new("/k")));
        assert_eq!(trouble.detail, "It offers ssh-ed25519 SHA256:abc; /k has none for it. Nothing was sent.");
    }

    #[test]
    fn a_refused_login_and_a_refused_connection_differ() {
        let denied = not_connected("db1", "dba", "dba@db1: Permission denied (publickey).\n");
        assert_eq!(denied.what, "db1 does not let dba in");
        let refused =
            not_connected("db1 port 2222", "dba", "ssh: connect to host db1 port 2222: Connection refused\n");
        assert_eq!(refused.what, "could not reach db1 port 2222 through ssh");
        assert_eq!(refused.hint, "See what ssh says: ssh -v -p 2222 db1");
    }
}
