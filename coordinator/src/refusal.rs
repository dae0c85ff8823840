//! Why a job is refused: in words for people, and with codes for programs.

use std::fmt;

use coxswain_core::cluster::SubmitError;
use coxswain_core::code::ErrorCode;
use coxswain_core::plan::PlanError;
use coxswain_core::spec::{SpecError, SpecFault, ValueOrigin};
use serde_json::{Value, json};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// The key of a status's metadata that names what is wrong, once for each fault.
pub(crate) const CODE_KEY: &str = "coxswain-error-code";

/// A refused job.
#[derive(Debug)]
pub(crate) struct JobRefusal {
    message: String,
    codes: Vec<ErrorCode>,
    /// For each code what a program is told.
    errors: Vec<Value>,
}

impl JobRefusal {
    /// A refusal that is not about a place in the job file.
    pub(crate) fn new(code: ErrorCode, message: String) -> JobRefusal {
        let errors = vec![json!({ "code": code.name(), "message": message })];
        JobRefusal { message, codes: vec![code], errors }
    }

    /// As a program reads it: an object with the list `errors`.
    pub(crate) fn to_json(&self) -> Value {
        json!({ "errors": self.errors })
    }

    /// As the status of a call.
    pub(crate) fn status(self, code: Code) -> Status {
        let mut metadata = MetadataMap::new();
        for code in self.codes {
            metadata.append(CODE_KEY, MetadataValue::from_static(code.name()));
        }
        Status::with_metadata(code, self.message, metadata)
    }
}

impl fmt::Display for JobRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<SpecError> for JobRefusal {
    fn from(error: SpecError) -> JobRefusal {
        let faults = error.faults();
        JobRefusal {
            message: error.to_string(),
            codes: faults.iter().map(|fault| fault.code).collect(),
            errors: faults.iter().map(fault_json).collect(),
        }
    }
}

impl From<PlanError> for JobRefusal {
    fn from(error: PlanError) -> JobRefusal {
        JobRefusal::new(error.code(), error.to_string())
    }
}

fn fault_json(fault: &SpecFault) -> Value {
    let mut json = json!({ "code": fault.code.name(), "message": fault.message });
    if !fault.path.is_empty() {
        json["key"] = fault.path.as_str().into();
    }
    match &fault.origin {
        ValueOrigin::File { source, place } => {
            json["source"] = source.as_str().into();
            if let Some((line, column)) = place {
                (json["line"], json["column"]) = ((*line).into(), (*column).into());
            }
        }
        ValueOrigin::Set { path, value } => json["set"] = format!("{path}={value}").into(),
    }
    json
}

/// The status of a call that its caller may not make.
pub(crate) fn denied_status(status: Code, code: ErrorCode, message: String) -> Status {
    JobRefusal::new(code, message).status(status)
}

/// The status of a call that hands in a job which cannot be taken.
pub(crate) fn submit_status(error: &SubmitError) -> Status {
    let (code, status) = match error {
        SubmitError::Full => (ErrorCode::QueueFull, Code::ResourceExhausted),
        SubmitError::Directory { .. } => (ErrorCode::DirectoryTaken, Code::FailedPrecondition),
        SubmitError::Plan(error) => (error.code(), Code::InvalidArgument),
        SubmitError::Planner => (ErrorCode::PlannerFault, Code::Internal),
    };
    JobRefusal::new(code, error.to_string()).status(status)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::job;

    const JOB: &str = "name: a\nmodel: {layers: 1, dim: 8, heads: 3, vocab: 300}\n\
                       data: {synthetic: {tokens: 99}}\ntrain: {steps: 0, sequence: 4}\n";

    fn refused(sets: &[&str]) -> JobRefusal {
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        job::parse(JOB, "job.yaml", Path::new("/"), &sets).unwrap_err()
    }

    #[test]
    fn each_fault_of_a_job_has_its_code_and_place() {
        let found = refused(&["layout.data=99999"]).to_json();
        let found: Vec<_> = found["errors"].as_array().unwrap().iter().collect();
        let row =
            |error: &Value| [&error["code"], &error["key"], &error["line"], &error["set"]].map(Value::clone);
        let rows: Vec<_> = found.into_iter().map(row).collect();
        assert_eq!(
            rows,
            [
                [json!("job.value.conflict"), json!("model.heads"), json!(2), Value::Null],
                [json!("job.value.range"), json!("train.steps"), json!(4), Value::Null],
                [json!("job.value.range"), json!("layout.data"), Value::Null, json!("layout.data=99999")],
            ]
        );
    }

    #[test]
    fn a_status_has_every_code() {
        let rows: [(&[&str], &[&str]); 9] = [
            (&[], &["job.value.conflict", "job.value.range"]),
            (&["train.steps=5", "model.heads=2", "train.momentum=0.5"], &["job.key.misplaced"]),
            (&["train.stesp=5"], &["job.key.unknown"]),
            (&["model={layers: 1}"], &["job.key.missing"]),
            (&["train.steps=many"], &["job.value.type"]),
            (&["train.steps=["], &["job.text.syntax"]),
            (&["train..steps=1"], &["job.set.path"]),
            (&["model.preset=gpt5"], &["job.preset.unknown"]),
            (&["train.steps"], &["job.set.path"]),
        ];
        for (sets, codes) in rows {
            let status = refused(sets).status(Code::InvalidArgument);
            let found: Vec<_> =
                status.metadata().get_all(CODE_KEY).iter().map(|code| code.to_str().unwrap()).collect();
            assert_eq!(found, codes, "{sets:?}");
        }
    }

    #[test]
    fn another_number_of_workers_has_a_code() {
        let sets = ["train.steps=5", "model.heads=2", "layout.data=1"].map(str::to_owned);
        let spec = job::parse(JOB, "job.yaml", Path::new("/"), &sets).unwrap();
        let refused = job::workers(&spec, Some(3)).unwrap_err().to_json();
        assert_eq!(refused["errors"][0]["code"], "job.workers");
        assert!(matches!(job::workers(&spec, None), Ok(1)));
    }

    #[test]
    fn a_job_that_cannot_be_taken_has_a_code() {
        let directory = SubmitError::Directory { other: "a-1".to_owned(), directory: "/a".to_owned() };
        let status = submit_status(&directory);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "submit.directory.taken");
    }
}
