//! A headless Chromium that a test drives: it is told what to do in the DevTools protocol, over a pipe.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// The names that Chromium goes by.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// How long a command may take: a browser that starts on a busy machine takes seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// The browser reads commands from file 3 and writes to file 4, which are this process's ends of pipes.
const START: &str = "exec 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null; exec \"$@\"";

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    told: Receiver<Value>,
    number: u64,
    session: Option<String>,
    /// What the page complained of: errors on its console, exceptions, files that it did not get.
    pub complaints: Vec<String>,
}

/// The browser of this machine, if it has one.
pub fn program() -> Option<&'static str> {
    let runs = |name: &&str| {
        let version = Command::new(name).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
        version.is_ok_and(|output| output.status.success())
    };
    NAMES.into_iter().find(runs)
}

impl Browser {
    /// Starts it; what it keeps lies in `folder`.
    ///
    /// # Errors
    /// It does not start, or does not speak.
    pub fn start(program: &str, folder: &Path) -> Result<Browser> {
        let mut command = Command::new("sh");
        command.args(["-c", START, "sh", program, "--headless", "--no-sandbox", "--disable-gpu"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", folder.display())).arg("about:blank");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting it")?;
        let commands = child.stdin.take().context("its end of a pipe")?;
        let out = child.stdout.take().context("its end of a pipe")?;
        let (sender, told) = channel();
        thread::spawn(move || {
            for message in BufReader::new(out).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser { child, commands, told, number: 0, session: None, complaints: Vec::new() };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach)?;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Opens a page.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.call("Page.navigate", json!({"url": url}))?;
        ensure!(opened["errorText"].is_null(), "{url}: {}", opened["errorText"]);
        Ok(())
    }

    /// What an expression gives on the page.
    ///
    /// # Errors
    /// It throws.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let found =
            self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}))?;
        ensure!(found["exceptionDetails"].is_null(), "{expression}: {}", found["exceptionDetails"]);
        Ok(found["result"]["value"].clone())
    }

    /// Waits until an expression is true on the page; says how long it took.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub fn wait_for(&mut self, expression: &str, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        // The script of the page may not have run yet.
        while self.value(expression).ok() != Some(Value::Bool(true)) {
            if start.elapsed() > limit {
                let shown = self.value("document.body.innerText").unwrap_or_default();
                bail!(
                    "{expression}: not within {limit:?}; complaints {:?}; the page:\n{shown}",
                    self.complaints
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(start.elapsed())
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.number += 1;
        let mut command = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            command["sessionId"] = session.clone().into();
        }
        let mut bytes = serde_json::to_vec(&command).context("a command")?;
        bytes.push(0);
        self.commands.write_all(&bytes).context("the browser has ended")?;
        let until = Instant::now() + ANSWER;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message = match self.told.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => bail!("{method}: no answer within {ANSWER:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("{method}: the browser has ended"),
            };
            if message["id"] == self.number {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
            self.complaints.extend(complaint(&message));
        }
    }
}

/// What a page complains of in a message, if it does.
fn complaint(message: &Value) -> Option<String> {
    let what = &message["params"];
    let wrong = match message["method"].as_str()? {
        "Runtime.exceptionThrown" => true,
        "Runtime.consoleAPICalled" => matches!(what["type"].as_str(), Some("error" | "warning" | "assert")),
        "Log.entryAdded" => matches!(what["entry"]["level"].as_str(), Some("error" | "warning")),
        // One that the page itself ended is not a fault.
        "Network.loadingFailed" => what["canceled"] != true,
        _ => false,
    };
    wrong.then(|| what.to_string())
}

impl Drop for Browser {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.call("Browser.close", json!({}));
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
