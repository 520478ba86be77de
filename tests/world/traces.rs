//! What programs leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::eventually;

/// What a program can leave behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    mounts: String,
    processes: BTreeSet<String>,
    links: String,
    temporary: BTreeSet<String>,
}

impl Traces {
    /// What there is in this world. Its pid namespace holds nothing but the test.
    pub(crate) fn now() -> Self {
        let alive = |pid: &String| {
            pid.parse::<u32>().is_ok()
                && fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            processes: names("/proc").into_iter().filter(alive).collect(),
            links: fs::read_to_string("/proc/net/dev").unwrap().lines().map(first_word).collect(),
            temporary: names(std::env::temp_dir())
                .into_iter()
                .filter(|name| name.contains("nsnet"))
                .collect(),
        }
    }

    #[track_caller]
    pub(crate) fn assert_same(&self) {
        eventually("everything is as it was", || Self::now() == *self);
    }
}

fn names(directory: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn first_word(line: &str) -> String {
    line.split_whitespace().next().unwrap_or_default().to_owned()
}
