//! The name of a layout, such as `tp2xpp2+zero`, and the changes to a job that it stands for.

use coxswain_types::axis::AXES;

use super::CertificateError;

/// The name of a single process.
pub const ONE: &str = "one";
/// The name of the layout that the job asks for itself.
pub const JOB: &str = "job";

/// Ways of an axis that a name may ask for; a job's own bound is lower or the same.
const WAYS_MAX: u32 = 4096;

/// Options that say the same thing in two ways exclude each other: they have a key in common.
const OPTIONS: [(&str, &str, &[&str]); 10] = [
    ("zero", "zero", &["layout.zero=1"]),
    ("sp", "sequence_parallel", &["layout.sequence_parallel=true"]),
    ("1f1b", "schedule", &["layout.schedule=1f1b"]),
    ("gpipe", "schedule", &["layout.schedule=gpipe"]),
    ("zb-h1", "schedule", &["layout.schedule=zb-h1"]),
    ("interleaved", "schedule", &["layout.schedule=interleaved", "layout.chunks=2"]),
    ("none", "recompute", &["train.recompute=none"]),
    ("full", "recompute", &["train.recompute=full"]),
    ("attention", "recompute", &["train.recompute=attention"]),
    ("ffn", "recompute", &["train.recompute=ffn"]),
];

/// A layout by its name.
///
/// The name says all of `layout`: what it does not mention is as in a job without that section. What
/// is kept for the backward pass stays the job's own unless an option says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutName {
    /// As it was given.
    pub name: String,
    /// The changes to the job, as `--set` takes them.
    pub sets: Vec<String>,
}

impl LayoutName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`CertificateError::Name`], which says which part is wrong and what is allowed.
    pub fn parse(name: &str) -> Result<LayoutName, CertificateError> {
        let refuse = |problem: String| CertificateError::Name { name: name.to_owned(), problem };
        let mut parts = name.split('+');
        let mut sets = match parts.next().unwrap_or_default() {
            JOB => Vec::new(),
            mesh => vec![mesh_set(mesh).map_err(refuse)?],
        };
        let mut keys: Vec<(&str, &str)> = Vec::new();
        for part in parts {
            let Some((option, key, changes)) = OPTIONS.iter().find(|(option, ..)| *option == part) else {
                let known: Vec<_> = OPTIONS.iter().map(|(option, ..)| format!("+{option}")).collect();
                return Err(refuse(format!("`+{part}` is not an option; there are {}", known.join(", "))));
            };
            if let Some((_, other)) = keys.iter().find(|(other, _)| other == key) {
                return Err(refuse(format!("`+{other}` and `+{option}` both set {key}; give one of them")));
            }
            keys.push((key, option));
            sets.extend(changes.iter().map(|&change| change.to_owned()));
        }
        Ok(LayoutName { name: name.to_owned(), sets })
    }
}

/// The change for the part before the options, such as `tp2xpp2`.
fn mesh_set(mesh: &str) -> Result<String, String> {
    let mut ways = [None; AXES.len()];
    for part in mesh.split('x').filter(|_| mesh != ONE) {
        let axis = AXES.iter().position(|axis| part.starts_with(axis.short));
        let number = axis.and_then(|axis| Some((axis, count(part.strip_prefix(AXES[axis].short)?)?)));
        let Some((axis, number)) = number else {
            let parts = AXES.map(|axis| format!("{}N", axis.short)).join(", ");
            return Err(format!(
                "`{part}` is not a part; parts are {parts} with N from 1 to {WAYS_MAX}, joined by x \
                 (such as tp2xpp2), or `{ONE}` or `{JOB}` alone"
            ));
        };
        if ways[axis].replace(number).is_some() {
            return Err(format!("`{}` is given twice", AXES[axis].short));
        }
    }
    let entries = AXES.iter().zip(ways).map(|(axis, n)| format!("{}: {}", axis.name, n.unwrap_or(1)));
    Ok(format!("layout={{{}}}", entries.collect::<Vec<_>>().join(", ")))
}

/// A number of ways in plain digits, so that a layout has one name.
fn count(digits: &str) -> Option<u32> {
    let number: u32 = digits.parse().ok()?;
    let plain = !digits.starts_with(['+', '0']);
    (plain && (1..=WAYS_MAX).contains(&number)).then_some(number)
}
