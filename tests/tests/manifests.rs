//! The Kubernetes manifests and Containerfiles in deploy/, checked without a cluster: every field with
//! Kubernetes' own types, and what must agree between files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, PodSpec, Service};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

/// Everything that deploy/kubernetes holds.
#[derive(Default)]
struct Manifests {
    services: Vec<Service>,
    stateful_sets: Vec<StatefulSet>,
    jobs: Vec<Job>,
    claims: Vec<PersistentVolumeClaim>,
}

impl Manifests {
    /// Reads the documents of one file; an unknown kind or field is an error that names it.
    fn add(&mut self, text: &str) -> Result<(), String> {
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = Value::deserialize(document).map_err(|error| error.to_string())?;
            let kind = value["kind"].as_str().unwrap_or_default().to_owned();
            match kind.as_str() {
                "Service" => self.services.push(strict(value)?),
                "StatefulSet" => self.stateful_sets.push(strict(value)?),
                "Job" => self.jobs.push(strict(value)?),
                "PersistentVolumeClaim" => self.claims.push(strict(value)?),
                other => return Err(format!("the kind `{other}` is not checked here")),
            }
        }
        Ok(())
    }

    fn all() -> Manifests {
        let mut all = Manifests::default();
        for (path, text) in files("deploy/kubernetes", "yaml") {
            all.add(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        all
    }

    /// The pods, by the name of what makes them.
    fn pods(&self) -> Vec<(&str, &PodSpec)> {
        let sets = self
            .stateful_sets
            .iter()
            .map(|set| (name(&set.metadata.name), set.spec.template.spec.as_ref().expect("a pod")));
        let jobs = self.jobs.iter().map(|job| {
            let spec = job.spec.as_ref().expect("a spec");
            (name(&job.metadata.name), spec.template.spec.as_ref().expect("a pod"))
        });
        sets.chain(jobs).collect()
    }
}

/// Reads a value as `T` and refuses fields that `T` does not have.
fn strict<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    let mut unknown = Vec::new();
    // An optional field is a step of its own in the path, written as `?`.
    let read = serde_ignored::deserialize(value, |path| unknown.push(path.to_string().replace(".?", "")));
    let read = read.map_err(|error: serde_yaml::Error| error.to_string())?;
    if unknown.is_empty() { Ok(read) } else { Err(format!("unknown fields: {}", unknown.join(", "))) }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// The files of a folder with an extension, sorted, with their texts; at least one.
fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(root().join(folder)).expect(folder);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect(folder).path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    assert!(!paths.is_empty(), "{folder} holds no .{extension}");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).expect("a text"))).collect()
}

fn name(name: &Option<String>) -> &str {
    name.as_deref().expect("a name")
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    let all = Manifests::all();
    let counts = [all.services.len(), all.stateful_sets.len(), all.jobs.len(), all.claims.len()];
    assert_eq!(counts, [1, 1, 1, 1]);
}

/// The negative control: our own manifests with one thing wrong in each.
#[test]
fn a_misspelt_field_fails_with_its_path() {
    let texts: BTreeMap<String, String> = files("deploy/kubernetes", "yaml")
        .into_iter()
        .map(|(path, text)| (path.file_name().expect("a name").to_string_lossy().into_owned(), text))
        .collect();
    for (file, good, bad, error) in [
        ("coordinator.yaml", "  clusterIP: None", "  clusterIp: None", "unknown fields: spec.clusterIp"),
        ("coordinator.yaml", "replicas: 1", "replicaz: 1", "unknown fields: spec.replicaz"),
        (
            "coordinator.yaml",
            "livenessProbe:",
            "livenesProbe:",
            "unknown fields: spec.template.spec.containers.0.livenesProbe",
        ),
        (
            "coordinator.yaml",
            "kind: StatefulSet",
            "kind: StatefullSet",
            "the kind `StatefullSet` is not checked here",
        ),
        ("workers.yaml", "parallelism: 4", "paralellism: 4", "unknown fields: spec.paralellism"),
        (
            "workers.yaml",
            "readOnlyRootFilesystem: true",
            "readOnlyRootFileSystem: true",
            "unknown fields: spec.template.spec.containers.0.securityContext.readOnlyRootFileSystem",
        ),
        (
            "workers.yaml",
            "backoffLimit: 1000",
            "backoffLimit: never",
            "invalid type: string \"never\", expected i32",
        ),
        ("runs.yaml", "accessModes:", "accessMode:", "unknown fields: spec.accessMode"),
    ] {
        let text = &texts[file];
        assert!(text.contains(good), "{file} holds no `{good}`");
        Manifests::default().add(text).expect(file);
        let found = Manifests::default().add(&text.replacen(good, bad, 1)).expect_err(bad);
        assert_eq!(found, error, "{file} with `{bad}`");
    }
}

#[test]
fn workers_dial_the_coordinators_name_and_port() {
    let all = Manifests::all();
    let (service, set) = (&all.services[0], &all.stateful_sets[0]);
    let spec = &set.spec;
    assert_eq!(spec.service_name.as_deref(), service.metadata.name.as_deref());
    assert_eq!(spec.replicas, Some(1), "the journal has one writer");

    let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref()).expect("labels");
    assert_eq!(spec.selector.match_labels.as_ref(), Some(labels));
    let service_spec = service.spec.as_ref().expect("a spec");
    assert_eq!(service_spec.selector.as_ref(), Some(labels));
    assert_eq!(service_spec.cluster_ip.as_deref(), Some("None"));
    assert_eq!(service_spec.publish_not_ready_addresses, Some(true));

    let port = &service_spec.ports.as_ref().expect("ports")[0];
    let coordinator = &spec.template.spec.as_ref().expect("a pod").containers[0];
    let container_port = &coordinator.ports.as_ref().expect("ports")[0];
    assert_eq!(container_port.name, port.name);
    assert_eq!(container_port.container_port, port.port);
    assert_eq!(after(coordinator, "--listen"), format!("0.0.0.0:{}", port.port));

    let worker =
        &all.jobs[0].spec.as_ref().expect("a spec").template.spec.as_ref().expect("a pod").containers[0];
    let url = format!("http://{}-0.{}:{}", name(&set.metadata.name), name(&service.metadata.name), port.port);
    assert_eq!(after(worker, "--coordinator"), url);
    let job = all.jobs[0].spec.as_ref().expect("a spec");
    assert_eq!(job.completion_mode.as_deref(), Some("Indexed"));
    assert_eq!(job.completions, job.parallelism, "all ranks run at once");
    // A worker that ends is started again: its run waits for it.
    assert!(job.backoff_limit.is_some_and(|limit| limit >= 100), "{:?}", job.backoff_limit);
    let policy = job.template.spec.as_ref().expect("a pod").restart_policy.as_deref();
    assert_eq!(policy, Some("OnFailure"));
    assert_eq!(job.pod_replacement_policy.as_deref(), Some("Failed"), "a name has one process at a time");
    // A volume is detached from a lost node after six minutes.
    assert!(after(worker, "--coordinator-timeout-s").parse::<u32>().is_ok_and(|seconds| seconds >= 600));
    let grace = job.template.spec.as_ref().and_then(|pod| pod.termination_grace_period_seconds);
    assert!(grace > Some(20), "longer than a worker waits for the end of a step");
}

/// The argument that follows a flag.
fn after<'a>(container: &'a Container, flag: &str) -> &'a str {
    let args = container.args.as_ref().expect("arguments");
    let at =
        args.iter().position(|arg| arg == flag).unwrap_or_else(|| panic!("{} has no {flag}", container.name));
    &args[at + 1]
}

#[test]
fn the_open_port_is_marked_to_be_closed() {
    let (_, text) = &files("deploy/kubernetes", "yaml")[0];
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.contains("--insecure-network")).expect("the flag");
    let comment = lines[at - 3..at].join(" ");
    assert!(comment.contains("give the pods") && comment.contains("--tls-dir"), "{comment}");
}

#[test]
fn pods_keep_to_the_restricted_profile() {
    for (name, pod) in Manifests::all().pods() {
        assert_eq!(pod.automount_service_account_token, Some(false), "{name}");
        let context = pod.security_context.as_ref().expect(name);
        assert_eq!(context.run_as_non_root, Some(true), "{name}");
        assert!(context.run_as_user.is_some_and(|user| user > 0), "{name}");
        assert_eq!(context.seccomp_profile.as_ref().expect(name).type_, "RuntimeDefault", "{name}");
        for container in &pod.containers {
            let context = container.security_context.as_ref().expect(name);
            assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
            assert_eq!(context.allow_privilege_escalation, Some(false), "{name}");
            let capabilities = context.capabilities.as_ref().expect(name);
            assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]), "{name}");
            assert_eq!(capabilities.add, None, "{name}");
            let resources = container.resources.as_ref().expect(name);
            for amounts in [&resources.requests, &resources.limits] {
                let amounts = amounts.as_ref().expect(name);
                assert!(amounts.contains_key("cpu") && amounts.contains_key("memory"), "{name}");
            }
        }
    }
}

#[test]
fn the_coordinator_is_probed_where_it_listens() {
    let all = Manifests::all();
    let pods = all.pods();
    let (_, coordinator) = pods.iter().find(|(name, _)| *name == "coxswain").expect("the coordinator");
    let container = &coordinator.containers[0];
    for probe in [&container.startup_probe, &container.readiness_probe, &container.liveness_probe] {
        let socket = probe.as_ref().and_then(|probe| probe.tcp_socket.as_ref()).expect("a TCP probe");
        assert_eq!(
            socket.port,
            k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String("grpc".to_owned())
        );
    }
}

#[test]
fn every_mount_has_its_volume_and_every_claim_exists() {
    let all = Manifests::all();
    let claims: Vec<&str> = all.claims.iter().map(|claim| name(&claim.metadata.name)).collect();
    let templates = all.stateful_sets[0].spec.volume_claim_templates.as_ref();
    let templates: Vec<&str> =
        templates.expect("templates").iter().map(|claim| name(&claim.metadata.name)).collect();
    let mut run_folders = Vec::new();
    for (pod_name, pod) in all.pods() {
        let volumes = pod.volumes.as_ref().expect("volumes");
        for volume in volumes {
            if let Some(source) = &volume.persistent_volume_claim {
                assert!(claims.contains(&source.claim_name.as_str()), "{pod_name}: {}", source.claim_name);
            }
        }
        for mount in pod.containers.iter().flat_map(|container| container.volume_mounts.iter().flatten()) {
            let volume = volumes.iter().any(|volume| volume.name == mount.name);
            assert!(volume || templates.contains(&mount.name.as_str()), "{pod_name}: {}", mount.name);
            if mount.name == "runs" {
                run_folders.push(mount.mount_path.clone());
            }
        }
    }
    assert_eq!(run_folders, ["/data", "/data"], "all ranks see the run's folder under one path");
    let modes = all.claims[0].spec.as_ref().and_then(|spec| spec.access_modes.clone());
    assert_eq!(modes, Some(vec!["ReadWriteMany".to_owned()]));
}

#[test]
fn images_run_as_a_plain_user_and_are_pinned() {
    let containers = files("deploy/containers", "Containerfile");
    assert_eq!(containers.len(), 2);
    for (path, text) in containers {
        let last_stage = text.rsplit_once("\nFROM ").expect("two stages").1;
        assert!(last_stage.lines().any(|line| line == "USER 65532:65532"), "{}", path.display());
        for image in text.lines().filter_map(|line| line.strip_prefix("FROM ")) {
            let tag = image.split(' ').next().and_then(|image| image.split_once(':'));
            assert!(tag.is_some_and(|(_, tag)| tag != "latest"), "{}: {image}", path.display());
        }
        for folder in text.lines().filter_map(|line| line.strip_prefix("COPY ")) {
            let folder = folder.split(' ').next().expect("a source");
            assert!(
                folder.starts_with("--from=") || root().join(folder).exists(),
                "{}: {folder}",
                path.display()
            );
        }
    }
}
