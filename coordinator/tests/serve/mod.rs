//! The real `coxswain serve` as a process that may be killed.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coxswain_proto::wire;
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_transport::{connect, jobs_client};
use tonic::Code;
use tonic::transport::Channel;

#[path = "../../../tests/src/skip.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use more of it")]
mod skip;

#[allow(unused_imports, reason = "as above")]
pub(crate) use skip::long;

/// How long a start may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait between two looks for a coordinator.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A coordinator on `folder`.
pub(crate) struct Serve {
    child: Child,
    started: Instant,
    pub(crate) url: String,
}

/// A port without a listener.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Serve {
    pub(crate) fn start(folder: &Path, port: u16) -> Serve {
        Serve::start_as(folder, port, Command::new(env!("CARGO_BIN_EXE_coxswain")))
    }

    /// One whose processes get so much memory each, in KiB.
    pub(crate) fn start_limited(folder: &Path, port: u16, memory_kib: u64) -> Serve {
        let mut shell = Command::new("sh");
        let script = format!("ulimit -d {memory_kib} && exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_coxswain")]);
        // Each thread's stack counts.
        shell.env("TOKIO_WORKER_THREADS", "2").env("RAYON_NUM_THREADS", "2");
        Serve::start_as(folder, port, shell)
    }

    fn start_as(folder: &Path, port: u16, mut command: Command) -> Serve {
        std::fs::create_dir_all(folder).unwrap();
        let log: File = OpenOptions::new().append(true).create(true).open(folder.join("serve.log")).unwrap();
        let started = Instant::now();
        let child = command
            .arg("serve")
            .arg("--data-dir")
            .arg(folder.join("data"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Serve { child, started, url: format!("http://127.0.0.1:{port}") }
    }

    /// How long after its start it answered its first call.
    pub(crate) async fn first_answer(&self) -> (Duration, JobsClient<Channel>) {
        while self.started.elapsed() < PATIENCE {
            if let Ok(channel) = connect(&self.url).await {
                let mut jobs = jobs_client(channel);
                let asked = jobs.get(wire::GetRequest { job: "absent-1".to_owned() }).await;
                if asked.is_err_and(|status| status.code() == Code::NotFound) {
                    return (self.started.elapsed(), jobs);
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        panic!("no answer within {PATIENCE:?}");
    }

    /// Ends it as a power cut would end its process.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
