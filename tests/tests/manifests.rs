//! The Kubernetes manifests and Containerfiles in deploy/, checked without a cluster: every field of Kubernetes' own
//! types, and what must agree between files. `cargo xtask deploy --check` looks at the kinds of others too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, PodSpec, PodTemplateSpec, ProjectedVolumeSource, Service,
    ServiceAccount, ServiceAccountTokenProjection, Volume,
};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

/// Where the overlays lie.
const OVERLAYS: &str = "deploy/kubernetes";

/// What makes the workers' pods.
const FLAVOURS: [&str; 4] = ["job", "jobset", "leaderworkerset", "trainjob"];

/// The workers of one overlay.
pub(super) struct WorkerPods {
    pub(super) flavour: &'static str,
    /// `None` where no Job makes the pods.
    job: Option<JobSpec>,
    pub(super) pod: PodSpec,
}

/// Everything that deploy/kubernetes holds, but for the workers.
#[derive(Default)]
pub(super) struct Base {
    services: Vec<Service>,
    stateful_sets: Vec<StatefulSet>,
    claims: Vec<PersistentVolumeClaim>,
    accounts: Vec<ServiceAccount>,
    policies: Vec<NetworkPolicy>,
    budgets: Vec<PodDisruptionBudget>,
}

impl Base {
    pub(super) fn read() -> Base {
        let mut base = Base::default();
        for (path, text) in files(&format!("{OVERLAYS}/base"), "yaml") {
            base.add(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        base
    }

    /// Reads the documents of one file; an unknown kind or field is an error that names it.
    fn add(&mut self, text: &str) -> Result<(), String> {
        for value in documents(text)? {
            match value["kind"].as_str().unwrap_or_default() {
                "Service" => self.services.push(strict(value)?),
                "StatefulSet" => self.stateful_sets.push(strict(value)?),
                "PersistentVolumeClaim" => self.claims.push(strict(value)?),
                "ServiceAccount" => self.accounts.push(strict(value)?),
                "NetworkPolicy" => self.policies.push(strict(value)?),
                "PodDisruptionBudget" => self.budgets.push(strict(value)?),
                "Kustomization" => {}
                other => return Err(format!("the kind `{other}` is not checked here")),
            }
        }
        Ok(())
    }

    /// The coordinator's pod.
    pub(super) fn pod(&self) -> &PodSpec {
        self.stateful_sets[0].spec.template.spec.as_ref().expect("a pod")
    }

    /// The policy for the pods of a component.
    fn policy(&self, component: &str) -> &NetworkPolicy {
        let key = "app.kubernetes.io/component";
        let selects = |policy: &&NetworkPolicy| {
            let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
            let labels = selector.and_then(|selector| selector.match_labels.as_ref());
            labels.and_then(|labels| labels.get(key)).is_some_and(|found| found == component)
        };
        self.policies.iter().find(selects).expect(component)
    }
}

impl WorkerPods {
    pub(super) fn all() -> Vec<WorkerPods> {
        FLAVOURS
            .map(|flavour| WorkerPods::read(flavour).unwrap_or_else(|error| panic!("{flavour}: {error}")))
            .into()
    }

    fn read(flavour: &'static str) -> Result<WorkerPods, String> {
        let path = root().join(OVERLAYS).join(flavour).join("workers.yaml");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        WorkerPods::of(flavour, &text)
    }

    fn of(flavour: &'static str, text: &str) -> Result<WorkerPods, String> {
        let mut found = None;
        for value in documents(text)? {
            let job_set = |spec: &Value| spec["replicatedJobs"][0]["template"]["spec"].clone();
            let (job, template): (Option<JobSpec>, PodTemplateSpec) =
                match value["kind"].as_str().unwrap_or_default() {
                    "ServiceAccount" => {
                        strict::<ServiceAccount>(value)?;
                        continue;
                    }
                    "Job" => of_job(value["spec"].clone())?,
                    "JobSet" => of_job(job_set(&value["spec"]))?,
                    "TrainingRuntime" => of_job(job_set(&value["spec"]["template"]["spec"]))?,
                    "LeaderWorkerSet" => {
                        (None, strict(value["spec"]["leaderWorkerTemplate"]["workerTemplate"].clone())?)
                    }
                    // It names the runtime, and has no pods of its own.
                    "TrainJob" => continue,
                    other => return Err(format!("the kind `{other}` is not checked here")),
                };
            found = Some(WorkerPods { flavour, job, pod: template.spec.ok_or("no pod")? });
        }
        found.ok_or_else(|| "no workers".to_owned())
    }

    pub(super) fn container(&self) -> &Container {
        &self.pod.containers[0]
    }
}

fn of_job(spec: Value) -> Result<(Option<JobSpec>, PodTemplateSpec), String> {
    let job: JobSpec = strict(spec)?;
    let template = job.template.clone();
    Ok((Some(job), template))
}

fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).map_err(|error| error.to_string()))
        .collect()
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

/// The argument that follows a flag.
pub(super) fn after<'a>(container: &'a Container, flag: &str) -> &'a str {
    let args = container.args.as_ref().expect("arguments");
    let at =
        args.iter().position(|arg| arg == flag).unwrap_or_else(|| panic!("{} has no {flag}", container.name));
    &args[at + 1]
}

/// The volume that is mounted where `path` lies, and what is left of the path.
fn mounted<'a>(pod: &'a PodSpec, path: &str) -> (&'a Volume, String) {
    let mounts = pod.containers[0].volume_mounts.as_ref().expect("mounts");
    let below = |at: &str| path.strip_prefix(at).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned);
    let found = mounts.iter().find_map(|mount| below(&mount.mount_path).map(|rest| (mount, rest)));
    let (mount, rest) = found.unwrap_or_else(|| panic!("nothing is mounted at {path}"));
    assert_eq!(mount.read_only, Some(true), "{path}");
    let volumes = pod.volumes.as_ref().expect("volumes");
    (volumes.iter().find(|volume| volume.name == mount.name).expect("a volume"), rest)
}

/// The token at `path`.
fn token<'a>(pod: &'a PodSpec, path: &str) -> &'a ServiceAccountTokenProjection {
    let (volume, file) = mounted(pod, path);
    let projected: &ProjectedVolumeSource = volume.projected.as_ref().expect("a projected volume");
    let tokens =
        projected.sources.iter().flatten().filter_map(|source| source.service_account_token.as_ref());
    tokens.into_iter().find(|token| token.path == file).unwrap_or_else(|| panic!("no token at {path}"))
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    let base = Base::read();
    let counts = [
        base.services.len(),
        base.stateful_sets.len(),
        base.claims.len(),
        base.accounts.len(),
        base.policies.len(),
        base.budgets.len(),
    ];
    assert_eq!(counts, [1, 1, 1, 1, 2, 1]);
    assert_eq!(WorkerPods::all().len(), FLAVOURS.len());
}

/// The negative control: our own manifests with one thing wrong in each.
#[test]
fn a_misspelt_field_fails_with_its_path() {
    let base = |text: &str| Base::default().add(text);
    let workers = |text: &str| WorkerPods::of("job", text).map(drop);
    for (file, good, bad, error) in [
        ("base/coordinator.yaml", "  clusterIP: None", "  clusterIp: None", "unknown fields: spec.clusterIp"),
        ("base/coordinator.yaml", "replicas: 1", "replicaz: 1", "unknown fields: spec.replicaz"),
        (
            "base/coordinator.yaml",
            "maxUnavailable: 1",
            "maxUnavailble: 1",
            "unknown fields: spec.maxUnavailble",
        ),
        (
            "base/coordinator.yaml",
            "livenessProbe:",
            "livenesProbe:",
            "unknown fields: spec.template.spec.containers.0.livenesProbe",
        ),
        (
            "base/coordinator.yaml",
            "kind: StatefulSet",
            "kind: StatefullSet",
            "the kind `StatefullSet` is not checked here",
        ),
        ("base/network.yaml", "policyTypes:", "policyType:", "unknown fields: spec.policyType"),
        ("base/runs.yaml", "accessModes:", "accessMode:", "unknown fields: spec.accessMode"),
        ("job/workers.yaml", "parallelism: 4", "paralellism: 4", "unknown fields: paralellism"),
        (
            "jobset/workers.yaml",
            "readOnlyRootFilesystem: true",
            "readOnlyRootFileSystem: true",
            "unknown fields: template.spec.containers.0.securityContext.readOnlyRootFileSystem",
        ),
        (
            "trainjob/workers.yaml",
            "backoffLimitPerIndex: 100",
            "backoffLimitPerIndex: never",
            "invalid type: string \"never\", expected i32",
        ),
        (
            "leaderworkerset/workers.yaml",
            "medium: Memory",
            "medum: Memory",
            "unknown fields: spec.volumes.2.emptyDir.medum",
        ),
    ] {
        let read = |text: &str| if file.starts_with("base/") { base(text) } else { workers(text) };
        let text = fs::read_to_string(root().join(OVERLAYS).join(file)).expect(file);
        assert!(text.contains(good), "{file} holds no `{good}`");
        read(&text).expect(file);
        let found = read(&text.replacen(good, bad, 1)).expect_err(bad);
        assert_eq!(found, error, "{file} with `{bad}`");
    }
}

#[test]
fn no_manifest_goes_without_certificates() {
    for folder in ["base", "job", "jobset", "leaderworkerset", "trainjob"] {
        for (path, text) in files(&format!("{OVERLAYS}/{folder}"), "yaml") {
            for flag in ["--insecure-network", "--trust-network", "--any-user", "http://"] {
                assert!(!text.contains(flag), "{}: {flag}", path.display());
            }
        }
    }
}

#[test]
fn workers_call_the_coordinators_name_and_port() {
    let base = Base::read();
    let (service, set) = (&base.services[0], &base.stateful_sets[0]);
    let spec = &set.spec;
    assert_eq!(spec.service_name.as_deref(), service.metadata.name.as_deref());
    assert_eq!(spec.replicas, Some(1), "the journal has one writer");
    let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref()).expect("labels");
    assert_eq!(spec.selector.match_labels.as_ref(), Some(labels));
    let service_spec = service.spec.as_ref().expect("a spec");
    assert_eq!(service_spec.selector.as_ref(), Some(labels));
    assert_eq!(service_spec.cluster_ip.as_deref(), Some("None"));
    assert_eq!(service_spec.publish_not_ready_addresses, Some(true));
    let budget = base.budgets[0].spec.as_ref().expect("a spec");
    let budget_labels = budget.selector.as_ref().and_then(|selector| selector.match_labels.as_ref());
    assert_eq!(budget_labels, Some(labels));

    let port = &service_spec.ports.as_ref().expect("ports")[0];
    let coordinator = &base.pod().containers[0];
    let container_port = &coordinator.ports.as_ref().expect("ports")[0];
    assert_eq!(container_port.name, port.name);
    assert_eq!(container_port.container_port, port.port);
    assert_eq!(after(coordinator, "--listen"), format!("0.0.0.0:{}", port.port));
    let url =
        format!("https://{}-0.{}:{}", name(&set.metadata.name), name(&service.metadata.name), port.port);
    for workers in WorkerPods::all() {
        assert_eq!(after(workers.container(), "--coordinator"), url, "{}", workers.flavour);
        // A volume is detached from a lost node after six minutes.
        let alone = after(workers.container(), "--coordinator-timeout-s").parse::<u32>();
        assert!(alone.is_ok_and(|seconds| seconds >= 600), "{}", workers.flavour);
    }
}

/// The token of a worker's service account is for the coordinator and no other program, and the coordinator takes it.
#[test]
fn workers_prove_who_they_are_by_their_service_accounts() {
    let base = Base::read();
    let coordinator = &base.pod().containers[0];
    let audience = after(coordinator, "--join-audience");
    let own = token(base.pod(), after(coordinator, "--join-issuer-of"));
    assert!(own.audience.is_some() && own.audience.as_deref() != Some(audience), "no worker can join by it");
    let (tls, keys) = mounted(base.pod(), after(coordinator, "--join-jwks"));
    assert_eq!(keys, "jwks.json");
    let (_, file) = mounted(base.pod(), &format!("{}/ca-key.pem", after(coordinator, "--tls-dir")));
    assert_eq!(file, "ca-key.pem");
    let secret = tls.secret.as_ref().expect("a secret");
    // Readable for the pod's group, which is the process's.
    assert_eq!(secret.default_mode, Some(0o440));
    for workers in WorkerPods::all() {
        let (flavour, container) = (workers.flavour, workers.container());
        let theirs = token(&workers.pod, after(container, "--join-file"));
        assert_eq!(theirs.audience.as_deref(), Some(audience), "{flavour}");
        let account = name(&workers.pod.service_account_name);
        let subject = format!("system:serviceaccount:$(POD_NAMESPACE):{account}=*");
        assert_eq!(after(coordinator, "--join-subject"), subject, "{flavour}");
        let (volume, file) = mounted(&workers.pod, after(container, "--tls-ca"));
        let sources = volume.projected.as_ref().and_then(|volume| volume.sources.as_ref()).expect("sources");
        let items = sources.iter().filter_map(|source| source.config_map.as_ref()?.items.as_ref());
        assert!(items.flatten().any(|item| item.path == file), "{flavour}: {file}");
        // The token is for workers of the pod's name.
        let variables = container.env.as_ref().expect("variables");
        let named =
            variables.iter().find(|variable| variable.name == "COXSWAIN_WORKER_NAME").expect("a name");
        let field = named.value_from.as_ref().and_then(|from| from.field_ref.as_ref()).expect("a field");
        assert_eq!(field.field_path, "metadata.name", "{flavour}");
    }
    let namespace = &coordinator.env.as_ref().expect("variables")[0];
    assert_eq!(namespace.name, "POD_NAMESPACE");
}

#[test]
fn one_port_for_calls_and_one_for_tensors_are_open() {
    let base = Base::read();
    let port = |number: i32| vec![port_of("TCP", number)];
    let listens = after(&base.pod().containers[0], "--listen");
    let calls: i32 = listens.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let ports = |policy: &NetworkPolicy| {
        let rules = policy.spec.as_ref().and_then(|spec| spec.ingress.clone()).expect("rules");
        rules.into_iter().flat_map(|rule| rule.ports.unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!(ports(base.policy("coordinator")), port(calls));
    for workers in WorkerPods::all() {
        let container = workers.container();
        let number = container.ports.as_ref().expect("ports")[0].container_port;
        assert_eq!(after(container, "--data-listen"), format!("0.0.0.0:{number}"), "{}", workers.flavour);
        assert_eq!(ports(base.policy("worker")), port(number), "{}", workers.flavour);
        let egress = base.policy("worker").spec.as_ref().and_then(|spec| spec.egress.clone()).expect("rules");
        let allowed: Vec<_> = egress.into_iter().flat_map(|rule| rule.ports.unwrap_or_default()).collect();
        let names = [port_of("UDP", 53), port_of("TCP", 53)];
        assert_eq!(allowed, [port(calls), port(number), names.to_vec()].concat(), "{}", workers.flavour);
    }
}

fn port_of(protocol: &str, number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(number)),
        protocol: Some(protocol.to_owned()),
        ..NetworkPolicyPort::default()
    }
}

/// The codes stand in docs/operations.md, "Exit codes".
#[test]
fn exit_codes_decide_what_becomes_of_a_worker() {
    for workers in WorkerPods::all() {
        let flavour = workers.flavour;
        let grace: i64 = after(workers.container(), "--grace-s").parse().expect("seconds");
        let given = workers.pod.termination_grace_period_seconds;
        assert!(given > Some(grace + 10), "{flavour}: longer than a worker waits for the end of a step");
        let Some(job) = workers.job else {
            assert_eq!(workers.pod.restart_policy.as_deref(), Some("Always"), "{flavour}");
            continue;
        };
        assert_eq!(job.completion_mode.as_deref(), Some("Indexed"), "{flavour}");
        assert_eq!(job.completions, job.parallelism, "{flavour}: all ranks run at once");
        assert_eq!(workers.pod.restart_policy.as_deref(), Some("Never"), "{flavour}: failure rules need it");
        assert_eq!(job.pod_replacement_policy.as_deref(), Some("Failed"), "{flavour}");
        let rules: Vec<_> = job.pod_failure_policy.expect("failure rules").rules;
        let codes = |action: &str| {
            let rules = rules.iter().filter(|rule| rule.action == action);
            rules
                .filter_map(|rule| rule.on_exit_codes.as_ref())
                .flat_map(|on| on.values.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(codes("FailJob"), [2], "{flavour}: bad arguments");
        assert_eq!(codes("Ignore"), [130, 143], "{flavour}: asked to stop");
        let evicted = &rules[0];
        let condition = &evicted.on_pod_conditions.as_ref().expect("a condition")[0];
        assert_eq!(
            (evicted.action.as_str(), condition.type_.as_str()),
            ("Ignore", "DisruptionTarget"),
            "{flavour}"
        );
        // Any other end is counted, and another pod takes the place.
        assert!(job.backoff_limit_per_index.is_some_and(|limit| limit >= 10), "{flavour}");
    }
}

#[test]
fn all_flavours_start_the_same_workers() {
    let alike = |workers: &WorkerPods| {
        let mut pod = workers.pod.clone();
        pod.restart_policy = None;
        // Kubeflow Trainer knows its container by this name.
        pod.containers[0].name = "worker".to_owned();
        pod
    };
    let all = WorkerPods::all();
    for workers in &all {
        assert_eq!(alike(workers), alike(&all[0]), "{}", workers.flavour);
    }
}

#[test]
fn pods_keep_to_the_restricted_profile() {
    let base = Base::read();
    let workers = WorkerPods::all();
    let pods = workers.iter().map(|workers| (workers.flavour, &workers.pod));
    for (name, pod) in pods.chain([("coordinator", base.pod())]) {
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
    for account in &base.accounts {
        assert_eq!(account.automount_service_account_token, Some(false));
    }
}

#[test]
fn the_coordinator_is_probed_where_it_listens() {
    let base = Base::read();
    let container = &base.pod().containers[0];
    for probe in [&container.startup_probe, &container.readiness_probe, &container.liveness_probe] {
        let socket = probe.as_ref().and_then(|probe| probe.tcp_socket.as_ref()).expect("a TCP probe");
        assert_eq!(socket.port, IntOrString::String("grpc".to_owned()));
    }
}

#[test]
fn every_mount_has_its_volume_and_every_claim_exists() {
    let base = Base::read();
    let claims: Vec<&str> = base.claims.iter().map(|claim| name(&claim.metadata.name)).collect();
    let templates = base.stateful_sets[0].spec.volume_claim_templates.as_ref();
    let templates: Vec<&str> =
        templates.expect("templates").iter().map(|claim| name(&claim.metadata.name)).collect();
    let workers = WorkerPods::all();
    let pods = workers.iter().map(|workers| (workers.flavour, &workers.pod));
    for (pod_name, pod) in pods.chain([("coordinator", base.pod())]) {
        let volumes = pod.volumes.as_ref().expect("volumes");
        for volume in volumes {
            if let Some(source) = &volume.persistent_volume_claim {
                assert!(claims.contains(&source.claim_name.as_str()), "{pod_name}: {}", source.claim_name);
            }
        }
        let mut paths = BTreeMap::new();
        for mount in pod.containers.iter().flat_map(|container| container.volume_mounts.iter().flatten()) {
            let volume = volumes.iter().any(|volume| volume.name == mount.name);
            assert!(volume || templates.contains(&mount.name.as_str()), "{pod_name}: {}", mount.name);
            paths.insert(mount.name.as_str(), mount.mount_path.as_str());
        }
        let root = after(&base.pod().containers[0], "--runs-root");
        assert_eq!(paths["runs"], root, "{pod_name}: all ranks see the run's folder under one path");
    }
    let modes = base.claims[0].spec.as_ref().and_then(|spec| spec.access_modes.clone());
    assert_eq!(modes, Some(vec!["ReadWriteMany".to_owned()]));
}

#[test]
fn images_run_as_a_plain_user_and_are_pinned() {
    let containers = files("deploy/containers", "Containerfile");
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
