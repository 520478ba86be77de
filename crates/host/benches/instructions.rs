//! Counts the instructions of one round of every micro-benchmark.
//!
//! It fails where one needs over 5 % more than `instructions.txt` records, or where the compiler is another than that of
//! the record. `--record` writes the file. `.ci/instructions` runs it, and sees to valgrind and the compiler.
//!
//! Every case runs in a process of its own under callgrind, which counts within `micro::measured` only and starts anew
//! after the warm-up. The counts of one binary are the same every time: the environment is empty, nothing counted
//! is random or looks at the time, and the C library is told not to choose `memcpy` by the processor.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs};

use nsnet_host::micro::{CASES, Case};

/// How much more than recorded passes, in per cent.
const TOLERANCE: f64 = 5.0;

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// Without these, glibc has the `memcpy` of the oldest x86-64 (`man ld.so`, GLIBC_TUNABLES; others are ignored).
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load,-AVX2_Usable,\
                        -ERMS,-FSRM,-SSSE3,-Fast_Unaligned_Copy";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    run_command().unwrap_or_else(|error| {
        eprintln!("instructions: {error}");
        ExitCode::FAILURE
    })
}

fn run_command() -> Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // cargo bench adds --bench at the end, cargo test does not.
        ["--bench"] => compare(),
        ["--record", "--bench"] => record(),
        ["--case", name] => run(name),
        [] => {
            println!("instructions: nothing counted; .ci/instructions does that");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err("usage: instructions [--record]".into()),
    }
}

/// What runs under callgrind.
fn run(name: &str) -> Result<ExitCode> {
    let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
    let mut round = case.prepare();
    counted_round(&mut round);
    Ok(ExitCode::SUCCESS)
}

/// Sets the count to zero when it is entered.
#[inline(never)]
fn counted_round(round: &mut dyn FnMut()) {
    round();
    std::hint::black_box(round);
}

fn count(case: &Case) -> Result<u64> {
    let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("callgrind.{}", std::process::id()));
    let valgrind = Command::new("valgrind")
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("GLIBC_TUNABLES", TUNABLES)
        .args(["--tool=callgrind", "--toggle-collect=*micro::measured*", "--zero-before=*counted_round*"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(env::current_exe()?)
        .args(["--case", case.name])
        .output()
        .map_err(|error| format!("cannot run valgrind: {error}; install the package of this name"))?;
    if !valgrind.status.success() {
        let log = String::from_utf8_lossy(&valgrind.stderr);
        return Err(format!("{} under valgrind: {}\n{log}", case.name, valgrind.status).into());
    }
    let text = fs::read_to_string(&profile)?;
    fs::remove_file(&profile)?;
    let total =
        text.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or("callgrind wrote no total")?;
    match total.trim().parse()? {
        0 => {
            Err(format!("{}: callgrind has not seen micro::measured, was its name changed?", case.name)
                .into())
        }
        count => Ok(count),
    }
}

fn record() -> Result<ExitCode> {
    let mut text = format!(
        "# Instructions of one round of every micro-benchmark, written by .ci/instructions --record\n# {}\n",
        compiler()?
    );
    for case in CASES {
        let count = count(case)?;
        println!("{:26} {count:>11}", case.name);
        writeln!(text, "{} {count}", case.name)?;
    }
    fs::write(RECORD, text)?;
    Ok(ExitCode::SUCCESS)
}

fn compare() -> Result<ExitCode> {
    let record = Record::read()?;
    let compiler = compiler()?;
    if compiler != record.compiler {
        return Err(other_compiler(&record.compiler, &compiler).into());
    }
    let mut counts = record.counts;
    let mut failures = Vec::new();
    println!("{:26} {:>11} {:>11} {:>8}", "instructions", "now", "recorded", "%");
    for case in CASES {
        let now = count(case)?;
        let Some(recorded) = counts.remove(case.name) else {
            println!("{:26} {now:>11} {:>11}", case.name, "-");
            failures.push(format!("{} is not in the record", case.name));
            continue;
        };
        let change = percent(recorded, now);
        println!("{:26} {now:>11} {recorded:>11} {change:>+8.2}", case.name);
        if change > TOLERANCE {
            failures.push(format!("{} needs {change:.1} % more instructions than recorded", case.name));
        }
    }
    failures.extend(counts.into_keys().map(|name| format!("{name} is in the record, but no case any more")));
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!();
    for failure in failures {
        println!("FAILED: {failure}");
    }
    println!("If that is how it should be, say why in the commit and record anew: .ci/instructions --record");
    Ok(ExitCode::FAILURE)
}

/// Counts of two compilers cannot be compared.
fn other_compiler(recorded: &str, active: &str) -> String {
    let version = recorded.split(' ').nth(1).unwrap_or(recorded);
    format!(
        "nothing compared: {RECORD} has the counts of {recorded}, but this is {active}.\n\
         Install the compiler of the record (rustup toolchain install {version} --profile minimal), which\n\
         .ci/instructions then uses; or record the counts of this one, without any other change:\n\
         .ci/instructions --record"
    )
}

/// What `instructions.txt` holds.
struct Record {
    compiler: String,
    counts: BTreeMap<String, u64>,
}

impl Record {
    fn read() -> Result<Self> {
        let text = fs::read_to_string(RECORD).map_err(|error| format!("{RECORD}: {error}"))?;
        let mut record = Self { compiler: String::new(), counts: BTreeMap::new() };
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                record.compiler = comment.to_owned();
            } else {
                let (name, count) =
                    line.split_once(' ').ok_or_else(|| format!("{RECORD}: no count in {line:?}"))?;
                record.counts.insert(name.to_owned(), count.parse()?);
            }
        }
        Ok(record)
    }
}

fn percent(before: u64, after: u64) -> f64 {
    (after as f64 / before as f64 - 1.0) * 100.0
}

/// The compiler that cargo has built this with.
fn compiler() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    Ok(String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout)?.trim().to_owned())
}
