//! The rate limit for ICMP errors (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).

use std::time::{Duration, Instant};

/// Most errors at once: as many as follow when a program with a thousand connections loses its network. Linux allows
/// fifty (`icmp_msgs_burst`), but there its errors burden other hosts; here they go to one container.
const BURST: u32 = 1000;

/// Time after which another error is allowed: a thousand a second, as in Linux (`icmp_msgs_per_sec`).
const INTERVAL: Duration = Duration::from_millis(1);

/// A token bucket: 1000 errors at once, 1000 a second. It begins full.
///
/// # Examples
/// ```
/// use std::time::{Duration, Instant};
///
/// let (mut limit, start) = (nsnet_stack::icmp::Limit::default(), Instant::now());
/// assert_eq!((0..2000).filter(|_| limit.admit(start)).count(), 1000);
/// assert!(limit.admit(start + Duration::from_millis(1)));
/// ```
#[derive(Debug, Default)]
pub struct Limit {
    /// When the bucket was, or will be, empty. `None` if no token was taken yet.
    empty_at: Option<Instant>,
}

impl Limit {
    /// Takes a token. Returns whether there was one.
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
