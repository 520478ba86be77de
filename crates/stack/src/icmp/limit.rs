//! How many errors the gateway sends (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f). Pure.

use std::time::{Duration, Instant};

/// A token for every error: as many as come at once when a program with a thousand connections finds its network gone,
/// where Linux keeps fifty (`icmp_msgs_burst`). A container's errors are no burden to others.
const BURST: u32 = 1000;

/// Time that makes a token, as in Linux (`icmp_msgs_per_sec`).
const INTERVAL: Duration = Duration::from_millis(1);

/// A bucket of tokens; full at first.
#[derive(Debug, Default)]
pub struct Limit {
    /// When the bucket was, or will be, empty; `None` if it has always been full.
    empty_at: Option<Instant>,
}

impl Limit {
    /// Takes a token, if there is one.
    pub fn admit(&mut self, now: Instant) -> bool {
        let full = now.checked_sub(BURST * INTERVAL);
        let before = match (self.empty_at, full) {
            (Some(empty_at), Some(full)) => Some(empty_at.max(full)),
            (empty_at, full) => empty_at.or(full),
        };
        let after = before.unwrap_or(now) + INTERVAL;
        let has_token = after <= now;
        if has_token {
            self.empty_at = Some(after);
        }
        has_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
    fn tokens_come_back_with_time() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let admitted = |limit: &mut Limit, now| (0..2 * BURST).filter(|_| limit.admit(now)).count();
        assert_eq!(admitted(&mut limit, start), 1000);
        assert_eq!(admitted(&mut limit, start + INTERVAL / 2), 0);
        assert_eq!(admitted(&mut limit, start + 7 * INTERVAL), 7);
        assert_eq!(admitted(&mut limit, start + Duration::from_secs(3600)), 1000);
    }
}
