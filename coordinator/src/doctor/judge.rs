//! What the doctor thinks of what it has found: each judgement a function of it.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Health {
    /// Nothing to do.
    Good,
    /// It may matter.
    Doubtful,
    /// It has to be mended first.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Diagnosis {
    check: &'static str,
    health: Health,
    found: String,
    /// How to mend it; empty where there is nothing to mend.
    mend: String,
}

impl Diagnosis {
    pub(super) fn good(check: &'static str, found: impl Into<String>) -> Diagnosis {
        Diagnosis { check, health: Health::Good, found: found.into(), mend: String::new() }
    }

    pub(super) fn doubtful(
        check: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Diagnosis {
        Diagnosis { check, health: Health::Doubtful, found: found.into(), mend: mend.into() }
    }

    pub(super) fn bad(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Diagnosis {
        Diagnosis { check, health: Health::Bad, found: found.into(), mend: mend.into() }
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }
}

/// All of them, for people: one line each, and below it how to mend what needs it.
pub(super) fn report(all: &[Diagnosis]) -> String {
    let mut text = String::new();
    for Diagnosis { check, health, found, mend } in all {
        let mark = match health {
            Health::Good => "ok  ",
            Health::Doubtful => "look",
            Health::Bad => "FAIL",
        };
        text += &format!("{mark}  {check:<14}  {found}\n");
        text.extend(mend.lines().map(|line| format!("{:22}{line}\n", "")));
    }
    let count = |health| all.iter().filter(|diagnosis| diagnosis.health == health).count();
    text + &format!(
        "{} checks: {} ok, {} to look at, {} failed\n",
        all.len(),
        count(Health::Good),
        count(Health::Doubtful),
        count(Health::Bad)
    )
}

/// Open files that a coordinator of a few machines needs: a connection each, and the files of its jobs.
const FEW_FILES: u64 = 1024;
/// Those of one at its bound of connections.
const MANY_FILES: u64 = 16384;

pub(super) fn files(soft: Option<u64>) -> Diagnosis {
    let mend = "raise it: `ulimit -n 65536` in the shell, LimitNOFILE=65536 in a unit of systemd";
    match soft {
        None => Diagnosis::good("open files", "no limit"),
        Some(soft) if soft < FEW_FILES => Diagnosis::bad("open files", format!("at most {soft}"), mend),
        Some(soft) if soft < MANY_FILES => Diagnosis::doubtful(
            "open files",
            format!("at most {soft}: enough for some hundred workers"),
            mend,
        ),
        Some(soft) => Diagnosis::good("open files", format!("at most {soft}")),
    }
}

/// The oldest driver that takes the CUDA of libtorch 2.11.
const DRIVER: u32 = 580;

/// The driver, of which `/proc/driver/nvidia/version` says `text`, where `gpus` are seen.
pub(super) fn driver(text: Option<&str>, gpus: u32) -> Diagnosis {
    let Some(text) = text else {
        return match gpus {
            0 => Diagnosis::good("GPU driver", "none, and no GPU: workers compute on the processor"),
            _ => Diagnosis::bad(
                "GPU driver",
                format!("{gpus} GPUs are named, and the driver is not loaded"),
                "install NVIDIA's driver 580 or newer, or unset CUDA_VISIBLE_DEVICES",
            ),
        };
    };
    let version = text.split_whitespace().find(|word| {
        word.split_once('.').is_some_and(|(major, _)| major.len() == 3 && major.parse::<u32>().is_ok())
    });
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    match (version, major) {
        (Some(version), Some(major)) if major >= DRIVER => {
            Diagnosis::good("GPU driver", format!("{version}, {gpus} GPUs"))
        }
        (Some(version), _) => Diagnosis::bad(
            "GPU driver",
            format!("{version} is too old for CUDA 13"),
            format!("install NVIDIA's driver {DRIVER} or newer"),
        ),
        (None, _) => Diagnosis::doubtful("GPU driver", "its version cannot be read", "`nvidia-smi` shows it"),
    }
}

/// How much clocks may differ, in seconds: certificates are valid from five minutes before they were made.
const SKEW_S: i64 = 300;
/// From where on it is worth a look.
const DRIFT_S: i64 = 30;

/// This machine's clock, `ahead_s` seconds ahead of the coordinator's.
pub(super) fn clock(ahead_s: i64) -> Diagnosis {
    let mend = "set the clock by NTP (`timedatectl set-ntp true`); certificates seem expired or not yet valid otherwise";
    let which = if ahead_s < 0 { "behind" } else { "ahead of" };
    let found = format!("{} s {which} the coordinator's", ahead_s.abs());
    match ahead_s.abs() {
        0..=1 => Diagnosis::good("clock", "as the coordinator's"),
        seconds if seconds <= DRIFT_S => Diagnosis::good("clock", found),
        seconds if seconds <= SKEW_S => Diagnosis::doubtful("clock", found, mend),
        _ => Diagnosis::bad("clock", found, mend),
    }
}

/// Free bytes from where on a run's folder is worth a look: checkpoints of a model of a billion parameters take 12 GB.
const ROOM: u64 = 10 << 30;

/// Free bytes of a run's folder.
pub(super) fn room(free: u64) -> Diagnosis {
    let found = format!("{:.1} GiB free", free as f64 / f64::from(1 << 30));
    if free < ROOM {
        Diagnosis::doubtful(
            "room",
            found,
            "a checkpoint takes 12 bytes for each parameter; `checkpoint.keep` of them are kept",
        )
    } else {
        Diagnosis::good("room", found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_judged() {
        use Health::{Bad, Doubtful, Good};
        let version = |number| {
            format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {number}  Tue\nGCC version: 12.2.0\n")
        };
        for (diagnosis, health, found) in [
            (files(None), Good, "no limit"),
            (files(Some(256)), Bad, "at most 256"),
            (files(Some(1024)), Doubtful, "at most 1024"),
            (files(Some(65536)), Good, "at most 65536"),
            (driver(None, 0), Good, "no GPU"),
            (driver(None, 2), Bad, "not loaded"),
            (driver(Some(&version("580.65.06")), 8), Good, "580.65.06, 8 GPUs"),
            (driver(Some(&version("550.54.15")), 8), Bad, "too old"),
            (driver(Some("?"), 1), Doubtful, "cannot be read"),
            (clock(0), Good, "as the coordinator's"),
            (clock(-20), Good, "20 s behind"),
            (clock(31), Doubtful, "31 s ahead of"),
            (clock(-301), Bad, "301 s behind"),
            (room(1 << 30), Doubtful, "1.0 GiB free"),
            (room(100 << 30), Good, "100.0 GiB free"),
        ] {
            assert!(diagnosis.health == health && diagnosis.found.contains(found), "{diagnosis:?}");
            assert_eq!(diagnosis.mend.is_empty(), health == Good, "{diagnosis:?}");
        }
    }

    #[test]
    fn the_report_says_how_to_mend() {
        let all = [files(Some(65536)), files(Some(100)), clock(60)];
        expect_test::expect![[r"
            ok    open files      at most 65536
            FAIL  open files      at most 100
                                  raise it: `ulimit -n 65536` in the shell, LimitNOFILE=65536 in a unit of systemd
            look  clock           60 s ahead of the coordinator's
                                  set the clock by NTP (`timedatectl set-ntp true`); certificates seem expired or not yet valid otherwise
            3 checks: 1 ok, 1 to look at, 1 failed
        "]]
        .assert_eq(&report(&all));
    }
}
