//! Whether TCP sockets of this network namespace still have something to deliver.
//!
//! The kernel goes on delivering data after the process that sent it has ended, from a socket without a process.
//! /proc/net/tcp (proc_net_tcp.rst in the kernel's documentation) lists those sockets as well.

use std::{fs, io};

use crate::Error;

const TCP: &str = "/proc/thread-self/net/tcp";
const TCP6: &str = "/proc/thread-self/net/tcp6";

/// Whether the calling thread's network namespace has a socket whose last byte may not have been acknowledged. Every
/// state except the [`SETTLED`] ones counts.
pub(crate) fn any() -> Result<bool, Error> {
    let refused = |path, error| {
        Error::new(format!("read {path}"), error).with_remedy("mount /proc inside, see namespace::mount_proc")
    };
    let tcp = fs::read_to_string(TCP).map_err(|error| refused(TCP, error))?;
    let tcp6 = match fs::read_to_string(TCP6) {
        Ok(table) => table,
        // The kernel has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(refused(TCP6, error)),
    };
    Ok(is_any_in(&tcp) || is_any_in(&tcp6))
}

fn is_any_in(table: &str) -> bool {
    table.lines().skip(1).filter_map(state).any(|state| !SETTLED.contains(&state))
}

/// The column `st`. `None` for a line without one.
fn state(line: &str) -> Option<u8> {
    u8::from_str_radix(line.split_ascii_whitespace().nth(3)?, 16).ok()
}

/// The states in which all sent bytes are acknowledged (include/net/tcp_states.h). In FIN_WAIT2 only the peer may go on
/// sending.
const SETTLED: [u8; 4] = [FIN_WAIT2, TIME_WAIT, CLOSE, LISTEN];
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn table(states: &[&str]) -> String {
        states.iter().enumerate().fold(HEADING.to_owned(), |table, (line, state)| {
            table
                + &format!(
                    "   {line}: 6402630A:9C40 0200630A:0050 {state} 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000000000000 20 0 0 10 -1\n"
                )
        })
    }

    #[test]
    fn settled_sockets_have_nothing_to_deliver() {
        assert!(!is_any_in(&table(&[])));
        assert!(!is_any_in(&table(&["0A", "06", "07", "05"])));
    }

    #[test]
    fn every_other_state_may_have() {
        for state in ["01", "02", "03", "04", "08", "09", "0B", "0C"] {
            assert!(is_any_in(&table(&["0A", state, "06"])), "{state}");
        }
    }

    #[test]
    fn ipv6_addresses_do_not_shift_the_columns() {
        let line = "   0: 000000FD000000000000000000010000:9C40 000000FD000000000000000002000000:0050 04 00000001:00000000";
        assert!(is_any_in(&format!("{HEADING}{line}\n")));
    }

    #[test]
    fn lines_without_a_state_are_passed_over() {
        for garbage in
            ["", "\n\n\n", "01 01 01 01", "heading\n\nshort line\n a b c zz d\n a b c 1FF\n a b c é\n"]
        {
            assert!(!is_any_in(garbage), "{garbage:?}");
        }
        assert!(is_any_in(&format!("{}garbage\n{}", HEADING, &table(&["04"])[HEADING.len()..])));
    }

    #[test]
    fn running_kernel_is_understood() {
        any().unwrap();
    }
}
