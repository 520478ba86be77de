//! What proc(5) says about processes and the machine.

use std::fs;

use crate::error::{Context, Result};

/// Unit of the times in `/proc`: 1/100 s on every architecture Linux supports but Alpha and Itanium.
const USER_HZ: f64 = 100.0;

/// CPU seconds that a process has used, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(&path)?;
    // The name of the program, in brackets, may contain anything; `state` follows it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    // Fields 14 and 15 of proc_pid_stat(5), where `state` is field 3.
    let (user, system) = ticks(11).zip(ticks(12)).ok_or_else(|| format!("{path}: {stat:?}"))?;
    Ok((user + system) / USER_HZ)
}

/// CPU seconds that the machine was not idle.
pub(crate) fn machine_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, [idle, iowait], irq, softirq; what follows is others' time or counted already.
    Ok([0, 1, 2, 5, 6].iter().filter_map(|index| ticks.get(*index)).sum::<f64>() / USER_HZ)
}

/// Bytes of resident memory now.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    status_kib(pid, "VmRSS:").map(|kib| kib * 1024.0)
}

/// Bytes of resident memory at the highest.
pub(crate) fn peak_resident(pid: u32) -> Result<f64> {
    status_kib(pid, "VmHWM:").map(|kib| kib * 1024.0)
}

/// The load average of the last minute.
pub(crate) fn load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    Ok(load.split_whitespace().next().unwrap_or_default().to_owned())
}

/// What the kernel calls itself.
pub(crate) fn kernel() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    Ok(fs::read_to_string(path).context(path)?.trim().to_owned())
}

fn status_kib(pid: u32, key: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(&path)?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| format!("{path}: no {key} (the process has ended)").into())
}
