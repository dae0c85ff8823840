//! A cluster as the manifests start it: the containers' own arguments, beside volumes that are made as the kubelet makes
//! them, with a Kubernetes of one key that signs tokens. Paths and addresses alone are others.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use coxswain_tests::process::{lines, signal};
use coxswain_tests::{Folder, SOON, programs, wait_until};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

use super::manifests::{Base, WorkerPods, after};

/// The namespace of this Kubernetes.
const NAMESPACE: &str = "train";

/// A Kubernetes that signs tokens of service accounts.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Result<Signer> {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let failed = |_| anyhow::anyhow!("no key");
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(failed)?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random);
        Ok(Signer(pair.map_err(|error| anyhow::anyhow!("{error}"))?))
    }

    /// Its keys, as `kubectl get --raw /openid/v1/jwks` shows them.
    fn keys(&self) -> String {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": "k", "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
            .to_string()
    }

    /// The token of a pod.
    fn token(&self, audience: &str, account: &str, pod: &str) -> Result<String> {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?.as_secs();
        let claims = json!({
            "aud": [audience], "iat": now_s, "nbf": now_s, "exp": now_s + 3600,
            "iss": "https://kubernetes.default.svc.cluster.local",
            "sub": format!("system:serviceaccount:{NAMESPACE}:{account}"),
            "kubernetes.io": {
                "namespace": NAMESPACE, "pod": {"name": pod, "uid": "u"}, "serviceaccount": {"name": account},
            },
        });
        let parts = [json!({"alg": "ES256", "kid": "k"}), claims];
        let message = parts.map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self
            .0
            .sign(&SystemRandom::new(), message.as_bytes())
            .map_err(|_| anyhow::anyhow!("no signature"))?;
        Ok(format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A volume as the kubelet makes it: each file is a link, by way of a folder that is replaced as a whole.
fn volume(folder: &Path, files: &[(&str, String)]) -> Result<()> {
    fs::create_dir_all(folder.join("..2026"))?;
    symlink("..2026", folder.join("..data"))?;
    for (name, text) in files {
        fs::write(folder.join("..2026").join(name), text)?;
        symlink(Path::new("..data").join(name), folder.join(name))?;
    }
    Ok(())
}

/// Everything that the manifests need of Kubernetes, in one folder.
struct Kubelet<'a> {
    folder: &'a Folder,
    signer: Signer,
    base: Base,
    workers: WorkerPods,
    /// Where the coordinator listens.
    address: String,
    processes: Vec<Child>,
}

impl Drop for Kubelet<'_> {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // An error means that it has ended.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl<'a> Kubelet<'a> {
    fn new(folder: &'a Folder, flavour: &str) -> Result<Kubelet<'a>> {
        let kubelet = Kubelet {
            folder,
            signer: Signer::new()?,
            base: Base::read(),
            workers: WorkerPods::all()
                .into_iter()
                .find(|pods| pods.flavour == flavour)
                .context("a flavour")?,
            address: TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string(),
            processes: Vec::new(),
        };
        let made = folder.path().join("made");
        let mut init = Command::new(programs("coxswain")?);
        init.args(["certs", "init", "--host", "coxswain-0.coxswain", "--dir"]).arg(&made);
        said(init.output()?)?;
        let mut files = vec![("jwks.json", kubelet.signer.keys())];
        for name in ["ca.pem", "ca-key.pem", "cert.pem", "key.pem"] {
            files.push((name, fs::read_to_string(made.join(name))?));
        }
        volume(&kubelet.path("tls"), &files)?;
        let audience = "coxswain-coordinator";
        let own = kubelet.signer.token(audience, "coxswain", "coxswain-0")?;
        volume(&kubelet.path("coordinator"), &[("token", own)])?;
        Ok(kubelet)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The arguments of a container of the pod whose volume of its identity is `identity`.
    fn args(&self, args: &[String], identity: &str) -> Vec<String> {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        let places = [
            ("/var/run/secrets/coxswain", path(identity)),
            ("/etc/coxswain/tls", path("tls")),
            ("/var/lib/coxswain", path("journal")),
            ("/data", path("data")),
            ("coxswain-0.coxswain:7070", self.address.clone()),
            ("0.0.0.0:7070", self.address.clone()),
            ("0.0.0.0:7071", "127.0.0.1:0".to_owned()),
            ("$(POD_NAMESPACE)", NAMESPACE.to_owned()),
        ];
        let replaced =
            |arg: &String| places.iter().fold(arg.clone(), |arg, (from, to)| arg.replace(from, to));
        args.iter().map(replaced).collect()
    }

    fn start(&mut self, program: &str, args: Vec<String>, name: &str) -> Result<usize> {
        let log = fs::File::options().append(true).create(true).open(self.path(&format!("{name}.log")))?;
        let mut command = Command::new(programs(program)?);
        command
            .args(args)
            .env("COXSWAIN_WORKER_NAME", name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.processes.push(command.spawn().with_context(|| format!("starting {program}"))?);
        Ok(self.processes.len() - 1)
    }

    fn coordinator(&mut self) -> Result<usize> {
        let args = self.base.pod().containers[0].args.clone().context("arguments")?;
        self.start("coxswain", self.args(&args, "coordinator"), "coxswain-0")
    }

    /// A pod of a worker, whose container starts.
    fn worker(&mut self, pod: &str) -> Result<usize> {
        let container = self.workers.container();
        let audience = after(&self.base.pod().containers[0], "--join-audience");
        let account = self.workers.pod.service_account_name.as_deref().context("an account")?;
        let token = self.signer.token(audience, account, pod)?;
        let ca = fs::read_to_string(self.path("made/ca.pem"))?;
        let args = container.args.clone().context("arguments")?;
        if !self.path(pod).exists() {
            volume(&self.path(pod), &[("token", token), ("ca.pem", ca)])?;
        }
        self.start("coxswain-worker", self.args(&args, pod), pod)
    }

    fn end(&mut self, index: usize, name: &str) -> Result<Option<i32>> {
        signal(self.processes[index].id(), name)?;
        Ok(self.processes[index].wait()?.code())
    }

    /// A command of the admin.
    fn call(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(programs("coxswain")?);
        command.args(words).env("COXSWAIN_COORDINATOR", format!("https://{}", self.address));
        Ok(command.env("COXSWAIN_TLS_DIR", self.path("made/people/admin")).output()?)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }
}

/// What a command that has to succeed wrote to stdout.
fn said(output: Output) -> Result<String> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A worker comes before its coordinator, is killed and started again in its pod, and in another one; the coordinator is
/// started again: the run goes on to its end each time.
#[test]
fn the_manifests_own_arguments_train_over_restarts_of_all_pods() -> Result<()> {
    let folder = Folder::new()?;
    let mut kubelet = Kubelet::new(&folder, "jobset")?;
    fs::create_dir_all(kubelet.path("data/texts"))?;
    fs::copy(folder.path().join("text.txt"), kubelet.path("data/texts/text.txt"))?;
    let early = kubelet.worker("coxswain-worker-node-0-0-abcde")?;
    wait_until("a worker that waits", SOON, || {
        kubelet.log("coxswain-worker-node-0-0-abcde").contains("trying for")
    })?;
    let coordinator = kubelet.coordinator()?;
    let second = kubelet.worker("coxswain-worker-node-0-1-fghij")?;
    wait_until("an answer", SOON, || kubelet.call(&["status"]).is_ok_and(|output| output.status.success()))?;

    let job = folder.job();
    let job = job.to_str().context("a path")?;
    // More than it comes to: it is cancelled in the end.
    let sets = [
        "data.text=texts/text.txt",
        "layout.pipeline=2",
        "train.validate_every=0",
        "checkpoint.every=100",
        "train.steps=100000",
    ];
    let mut submit = vec!["submit", job, "--directory", "runs/first"];
    submit.extend(sets.iter().flat_map(|set| ["--set", set]));
    let id = said(kubelet.call(&submit)?)?;
    let metrics = kubelet.path("data/runs/first/metrics.jsonl");
    let goes_on = |kubelet: &Kubelet<'_>, after: &str| {
        let before = lines(&metrics);
        wait_until(after, SOON, || lines(&metrics) > before).with_context(|| kubelet.log("coxswain-0"))
    };
    goes_on(&kubelet, "the first steps")?;
    kubelet.end(early, "KILL")?;
    kubelet.worker("coxswain-worker-node-0-0-abcde")?;
    goes_on(&kubelet, "steps after a container was started again")?;
    ensure!(kubelet.end(coordinator, "TERM")? == Some(0), "the coordinator was asked to end");
    kubelet.coordinator()?;
    goes_on(&kubelet, "steps after the coordinator was started again")?;
    ensure!(kubelet.end(second, "TERM")? == Some(143), "the worker was asked to end");
    kubelet.worker("coxswain-worker-node-0-1-klmno")?;
    goes_on(&kubelet, "steps after another pod took the place")?;
    said(kubelet.call(&["cancel", id.trim()])?)?;
    let watched = kubelet.call(&["watch", id.trim()])?;
    let told = String::from_utf8_lossy(&watched.stderr);
    ensure!(watched.status.code() == Some(1) && told.contains("which is saved"), "{told}");
    for (index, line) in fs::read_to_string(&metrics)?.lines().enumerate() {
        let step = serde_json::from_str::<serde_json::Value>(line)?["step"].as_u64();
        ensure!(step == Some(index as u64 + 1), "each step once: {line}");
    }
    Ok(())
}

/// A pod of another service account, and one that a foreign Kubernetes signed for.
#[test]
fn pods_of_others_do_not_join() -> Result<()> {
    let folder = Folder::new()?;
    let mut kubelet = Kubelet::new(&folder, "job")?;
    fs::create_dir_all(kubelet.path("data"))?;
    kubelet.coordinator()?;
    wait_until("an answer", SOON, || kubelet.call(&["status"]).is_ok_and(|output| output.status.success()))?;
    let ca = fs::read_to_string(kubelet.path("made/ca.pem"))?;
    for (pod, token, why) in [
        (
            "other-account",
            kubelet.signer.token("coxswain", "default", "other-account")?,
            "is not allowed to join",
        ),
        ("other-cluster", Signer::new()?.token("coxswain", "coxswain-worker", "other-cluster")?, "signature"),
        ("other-audience", kubelet.signer.token("vault", "coxswain-worker", "other-audience")?, "audience"),
        (
            "another-name",
            kubelet.signer.token("coxswain", "coxswain-worker", "a-pod")?,
            "has to be called a-pod",
        ),
    ] {
        volume(&kubelet.path(pod), &[("token", token), ("ca.pem", ca.clone())])?;
        let worker = kubelet.worker(pod)?;
        let code = kubelet.processes[worker].wait()?.code();
        ensure!(code == Some(1) && kubelet.log(pod).contains(why), "{pod}: {code:?}: {}", kubelet.log(pod));
    }
    // A coordinator whose keys are of another Kubernetes says so at its start.
    let keys = kubelet.path("tls/..data/jwks.json");
    fs::write(keys, Signer::new()?.keys())?;
    let args = kubelet.base.pod().containers[0].args.clone().context("arguments")?;
    let output = Command::new(programs("coxswain")?).args(kubelet.args(&args, "coordinator")).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && stderr.contains("is that file of this Kubernetes"),
        "{stderr}"
    );
    Ok(())
}
