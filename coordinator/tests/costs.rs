//! What hostile job files cost: little time and memory, whatever they hold.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::time::Duration;

use coxswain_core::spec::{JobText, parse};
use rustix::time::{ClockId, clock_gettime};

/// Some twenty times what the worst takes by itself, and far below what a text takes that is read once for each
/// of its values. Computing counts, and not what others do on the same cores.
const SOON: Duration = Duration::from_secs(2);

/// How long this thread has computed.
fn computed() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

#[test]
fn texts_that_cost_much_are_refused_soon() {
    let most = 256 << 10;
    let before = memory();
    let fill = |piece: &str| piece.repeat(most / piece.len());
    let keys: String = (0..25_000).map(|n| format!("k{n}: 1\n")).collect();
    let bomb = |levels: usize| {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..levels {
            let before = format!("*a{},", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        text
    };
    // Many times the same long list: few aliases, and much that they stand for.
    let wide = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(60_000), "*a,".repeat(40_000));
    let rows = [
        ("alias bomb", bomb(9)),
        ("deeper bomb", bomb(40)),
        ("wide aliases", wide),
        ("brackets", fill("[")),
        ("braces", fill("{a: ")),
        ("dashes", fill("- ")),
        ("indents", (0..700).map(|n| format!("{}a:\n", " ".repeat(n))).collect()),
        ("keys", keys),
        ("long list", format!("data: {{text: [{}]}}", "'',".repeat(80_000))),
        ("long key", format!("{}: 1", "k".repeat(most - 10))),
        ("questions", fill("? ")),
        ("anchors", fill("&a ")),
        ("quotes", fill("\"\\u0041\" ")),
        ("comment", fill("#")),
        ("zeros", fill("\0")),
        ("too long", "x".repeat(most + 1)),
    ];
    for (what, text) in rows {
        let start = computed();
        let job = JobText { source: "job.yaml", text: &text, sets: &[], base: Path::new("/") };
        let refusal = parse(&job).expect_err(what).to_string();
        let took = computed() - start;
        println!("{what}: {took:?}, {refusal:.90}");
        assert!(took < SOON, "{what} took {took:?}");
        assert!(refusal.len() < 2 * most, "{what}: a refusal of {} bytes", refusal.len());
    }
    let grown = memory() - before;
    println!("all in {grown} MiB");
    assert!(grown < 128, "{grown} MiB");
}

/// The most memory that this process ever had, in megabytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}
