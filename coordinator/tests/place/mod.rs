//! A folder with certificates, and a real `coxswain serve` that uses them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use coxswain_transport::tls::{Credentials, JoinToken, enroll};

/// How the coordinator is started, in the folder.
pub(crate) const SERVE: [&str; 11] = [
    "serve",
    "--data-dir",
    "data",
    "--tls-dir",
    "tls",
    "--listen",
    "127.0.0.1:0",
    "--data-root",
    ".",
    "--runs-root",
    ".",
];

/// A folder with certificates, and a coordinator that uses them.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) serve: Child,
    pub(crate) port: u16,
    pub(crate) log: Arc<std::sync::Mutex<String>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.serve.kill();
        let _ = self.serve.wait();
    }
}

impl Place {
    pub(crate) fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let init = coxswain(folder.path(), &["certs", "init", "--dir", "tls"]);
        assert!(init.status.success(), "{}", text(&init.stderr));
        let log = Arc::default();
        let (serve, port) = start(folder.path(), &log);
        Place { folder, serve, port, log }
    }

    /// Kills the coordinator and starts another one on its folder.
    pub(crate) fn restart(&mut self) {
        self.serve.kill().unwrap();
        self.serve.wait().unwrap();
        (self.serve, self.port) = start(self.folder.path(), &self.log);
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command as the holder of the credentials in `tls`.
    pub(crate) fn run(&self, tls: &str, arguments: &[&str]) -> Output {
        let mut command = command(self.folder.path());
        command.env("COXSWAIN_TLS_DIR", self.path(tls)).env("COXSWAIN_COORDINATOR", self.url());
        command.args(arguments).output().unwrap()
    }

    pub(crate) fn admin(&self, arguments: &[&str]) -> Output {
        self.run("tls/people/admin", arguments)
    }

    pub(crate) fn token(&self, arguments: &[&str]) -> JoinToken {
        let output = self.admin(&[&["token", "create"], arguments].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).parse().unwrap()
    }

    pub(crate) async fn join(&self, token: &JoinToken, name: &str) -> Result<Credentials, String> {
        let enrolled = enroll::join(&self.url(), token, name).await.map_err(|error| error.to_string())?;
        Ok(enrolled.credentials)
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.serve.id())).unwrap().count()
    }
}

/// Starts a coordinator; returns its process and its port.
pub(crate) fn start(folder: &Path, log: &Arc<std::sync::Mutex<String>>) -> (Child, u16) {
    let mut serve = command(folder);
    serve.args(SERVE);
    let mut serve = serve.env("RUST_LOG", "debug").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(serve.stderr.take().unwrap()).lines();
    let first = lines.find(|line| line.as_ref().unwrap().contains("listening on")).unwrap().unwrap();
    let place = first.split("listening on 127.0.0.1:").nth(1).unwrap();
    let port = place.split(';').next().unwrap().parse().unwrap();
    let copy = log.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            copy.lock().unwrap().push_str(&(line + "\n"));
        }
    });
    (serve, port)
}

pub(crate) fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coxswain"));
    command.current_dir(folder).env_remove("COXSWAIN_COORDINATOR").env_remove("COXSWAIN_TLS_DIR");
    command.stdin(Stdio::null());
    command
}

pub(crate) fn coxswain(folder: &Path, arguments: &[&str]) -> Output {
    command(folder).args(arguments).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
