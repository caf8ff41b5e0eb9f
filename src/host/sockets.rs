//! Who listens on a machine, by the kernel's own tables.

use std::net::IpAddr;
use std::path::Path;

use super::{Host, HostError};

/// Tells whether something on `host` takes TCP connections to this address of it.
///
/// # Errors
/// When the host cannot tell.
pub async fn listens(host: &dyn Host, address: IpAddr, port: u16) -> Result<bool, HostError> {
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let sockets = host.read(Path::new(table)).await?.unwrap_or_default();
        if in_table(&String::from_utf8_lossy(&sockets), address, port) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tells whether a table of the kernel (`/proc/net/tcp`, `tcp6`) has a listener that takes connections to this address.
fn in_table(table: &str, address: IpAddr, port: u16) -> bool {
    const LISTEN: &str = "0A";
    const ANY: [&str; 2] = ["00000000", "00000000000000000000000000000000"];
    let own = match address {
        IpAddr::V4(address) => {
            let number = format!("{:08X}", u32::from_ne_bytes(address.octets()));
            [number.clone(), format!("0000000000000000FFFF0000{number}")]
        }
        IpAddr::V6(address) => {
            let words = address.octets();
            let words =
                words.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            let number: String = words.map(|word| format!("{word:08X}")).collect();
            [number.clone(), number]
        }
    };
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (Some(local), Some(state)) = (words.next(), words.nth(1)) else { return false };
        let Some((at, on)) = local.split_once(':') else { return false };
        state == LISTEN
            && u16::from_str_radix(on, 16) == Ok(port)
            && (ANY.contains(&at) || own.iter().any(|own| own == at))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use super::*;

    #[test]
    fn sees_who_listens_in_the_kernels_own_tables() {
        let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = loopback.local_addr().unwrap().port();
        let v4 = || std::fs::read_to_string("/proc/net/tcp").unwrap();
        let v6 = || std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
        assert!(in_table(&v4(), Ipv4Addr::LOCALHOST.into(), port));
        assert!(!in_table(&v4(), Ipv4Addr::new(127, 0, 0, 2).into(), port));
        assert!(!in_table(&v6(), Ipv4Addr::LOCALHOST.into(), port));
        drop(loopback);
        let any = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = any.local_addr().unwrap().port();
        assert!(in_table(&v4(), Ipv4Addr::new(127, 0, 0, 2).into(), port));
    }

    #[test]
    fn a_connection_is_not_a_listener() {
        let table = "  sl  local_address rem_address   st
   0: 0100007F:1929 0100007F:D431 01 00000000:00000000";
        assert!(!in_table(table, Ipv4Addr::LOCALHOST.into(), 6441));
        let v6 = "  sl  local_address rem_address st
   0: 00000000000000000000000001000000:1929 00000000000000000000000000000000:0000 0A 0";
        assert!(in_table(v6, Ipv6Addr::LOCALHOST.into(), 6441));
    }
}
