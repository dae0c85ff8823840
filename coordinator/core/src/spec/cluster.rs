//! A cluster file: the machines to plan for, read through the same door as job files.

use serde::Deserialize;

use super::error::{KeyPath, Refused, Segment, SpecError, SpecFault, ValueOrigin};
use super::limits::{self, Limit};
use super::node::{decode, nearest};
use super::values::BudgetBytes;
use super::yaml;
use crate::code::ErrorCode;
use crate::hardware::devices::{self, KnownDevice};
use crate::hardware::{HostGroup, Machines, NetworkLink};

/// A cluster file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    hosts: Vec<RawHosts>,
    between: Option<RawLink>,
}

/// Hosts of one kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHosts {
    count: Option<u32>,
    devices: Option<u32>,
    device: String,
    memory: Option<BudgetBytes>,
    fp32_tflops: Option<f64>,
    bf16_tflops: Option<f64>,
    fp16_tflops: Option<f64>,
    product_share: Option<f64>,
    attention_share: Option<f64>,
    memory_gigabytes_per_s: Option<f64>,
    inside: Option<RawLink>,
    price_per_hour: Option<f64>,
}

/// A link.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    gigabytes_per_s: f64,
    latency_us: Option<f64>,
}

/// Devices of a host.
const ON_HOST: Limit = Limit { least: 1, most: 1024, reason: "no host has more" };

/// Faults with their places below the top of the file.
struct ClusterFaults(Vec<Refused>);

/// The least rate and share. Times that follow from smaller ones are longer than a plan can count.
const LEAST: f64 = 1e-6;

impl ClusterFaults {
    fn add(&mut self, path: KeyPath, code: ErrorCode, message: String) {
        self.0.push(Refused { path, code, message });
    }

    fn count(&mut self, path: KeyPath, found: u32, limit: &Limit) {
        if let Err(message) = limit.check(found.into()) {
            self.add(path, ErrorCode::ValueRange, message);
        }
    }

    /// A number above 0 and up to `most`.
    fn number(&mut self, path: KeyPath, found: Option<f64>, most: f64, unit: &str) {
        let Some(found) = found else { return };
        if !(LEAST..=most).contains(&found) {
            let message = format!("found {found:?}; must be from {LEAST} to {most}{unit}");
            self.add(path, ErrorCode::ValueRange, message);
        }
    }
}

/// Reads a cluster file.
///
/// # Errors
/// The first fault of shape, or else every fault of meaning, each with its line.
pub fn cluster(source: &str, text: &str) -> Result<Machines, SpecError> {
    let told = |fault: Refused| {
        let path = fault.path.to_string();
        SpecFault::in_file(source, yaml::locate(text, &fault.path), &path, fault.code, fault.message)
    };
    if text.len() > super::MAX_TEXT_BYTES {
        let message =
            format!("holds {} bytes; a cluster file has at most {}", text.len(), super::MAX_TEXT_BYTES);
        return Err(SpecFault::in_file(source, None, "", ErrorCode::TextTooLong, message).into());
    }
    let tree = yaml::read(text).map_err(|fault| {
        let path = fault.path.to_string();
        SpecError::from(SpecFault::in_file(source, fault.place, &path, fault.code, fault.message))
    })?;
    let raw: RawCluster = decode(tree).map_err(|error| SpecError::from(told(error.refused())))?;
    let mut faults = ClusterFaults(Vec::new());
    let cluster = check(&raw, &mut faults);
    match cluster {
        Some(cluster) if faults.0.is_empty() => Ok(cluster),
        _ => {
            let mut faults: Vec<SpecFault> = faults.0.into_iter().map(told).collect();
            faults.sort_by_key(|fault| match &fault.origin {
                ValueOrigin::File { place, .. } => *place,
                ValueOrigin::Set { .. } => None,
            });
            Err(SpecError::new(faults))
        }
    }
}

fn check(raw: &RawCluster, faults: &mut ClusterFaults) -> Option<Machines> {
    let top = |key: &str| KeyPath::from(key);
    if raw.hosts.is_empty() {
        faults.add(top("hosts"), ErrorCode::ValueRange, "is an empty list; name one host or more".to_owned());
    }
    let mut groups = Vec::new();
    let mut between: Option<NetworkLink> = raw.between.map(|given| link(given, top("between"), faults));
    for (index, hosts) in raw.hosts.iter().enumerate() {
        let Some(known) = devices::find(&hosts.device) else {
            faults.add(at(index, "device"), ErrorCode::ClusterUnknown, unknown(&hosts.device));
            continue;
        };
        groups.push(group(hosts, known, index, faults));
        // The slowest of the usual networks, where none is given.
        if raw.between.is_none() && between.is_none_or(|link| known.between.bandwidth < link.bandwidth) {
            between = Some(known.between);
        }
    }
    let cluster = Machines { hosts: groups, between: between? };
    let most = limits::WORLD.most;
    if u64::from(cluster.devices()) > most {
        let message = format!("has {} devices in all; must be {most} or less", cluster.devices());
        faults.add(top("hosts"), ErrorCode::ValueRange, message);
    }
    Some(cluster)
}

fn at(index: usize, key: &str) -> KeyPath {
    KeyPath(vec![Segment::Key("hosts".to_owned()), Segment::Index(index), Segment::Key(key.to_owned())])
}

/// What is said of a device that is not known.
pub fn unknown(name: &str) -> String {
    let names: Vec<&'static str> = devices::names().collect();
    let near = nearest(name, &names).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    format!("unknown device `{}`{near} (known: {})", super::error::shown(name), names.join(", "))
}

fn group(hosts: &RawHosts, known: &KnownDevice, index: usize, faults: &mut ClusterFaults) -> HostGroup {
    let count = hosts.count.unwrap_or(1);
    let on_host = hosts.devices.or(known.on_host).unwrap_or(1);
    faults.count(at(index, "count"), count, &limits::WORLD);
    faults.count(at(index, "devices"), on_host, &ON_HOST);
    let mut device = known.device();
    const TERA: f64 = 1e12;
    for (key, given, rate) in [
        ("fp32_tflops", hosts.fp32_tflops, &mut device.peak.fp32),
        ("bf16_tflops", hosts.bf16_tflops, &mut device.peak.bf16),
        ("fp16_tflops", hosts.fp16_tflops, &mut device.peak.fp16),
    ] {
        faults.number(at(index, key), given, 1e6, " TFLOP/s");
        *rate = given.map_or(*rate, |given| given * TERA);
    }
    for (key, given, share) in [
        ("product_share", hosts.product_share, &mut device.product_share),
        ("attention_share", hosts.attention_share, &mut device.attention_share),
    ] {
        faults.number(at(index, key), given, 1.0, "");
        *share = given.unwrap_or(*share);
    }
    faults.number(at(index, "memory_gigabytes_per_s"), hosts.memory_gigabytes_per_s, 1e6, " GB/s");
    device.bandwidth = hosts.memory_gigabytes_per_s.map_or(device.bandwidth, |given| given * 1e9);
    if let Some(BudgetBytes(bytes)) = hosts.memory {
        if let Err(message) = limits::BUDGET.check(bytes) {
            faults.add(at(index, "memory"), ErrorCode::ValueRange, message);
        }
        device.memory = bytes;
    }
    if let Some(price) = hosts.price_per_hour
        && !(price >= 0.0 && price.is_finite())
    {
        let message = format!("found {price:?}; must be 0 or more");
        faults.add(at(index, "price_per_hour"), ErrorCode::ValueRange, message);
    }
    let inside = hosts.inside.map_or(known.inside, |given| link(given, at(index, "inside"), faults));
    HostGroup { count, devices: on_host.max(1), device, inside, price_per_hour: hosts.price_per_hour }
}

fn link(raw: RawLink, path: KeyPath, faults: &mut ClusterFaults) -> NetworkLink {
    faults.number(path.clone().key("gigabytes_per_s"), Some(raw.gigabytes_per_s), 1e6, " GB/s");
    let latency = raw.latency_us.unwrap_or(5.0);
    if !(0.0..=1e7).contains(&latency) {
        let message = format!("found {latency:?}; must be 0 to 10000000 microseconds");
        faults.add(path.key("latency_us"), ErrorCode::ValueRange, message);
    }
    NetworkLink { latency: latency * 1e-6, bandwidth: raw.gigabytes_per_s * 1e9 }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_cluster_is_read_with_what_it_leaves_out() {
        let text = "\
hosts:
- {count: 2, devices: 4, device: a100-80gb, price_per_hour: 12.5}
- {device: h100-80gb, memory: 94GiB, bf16_tflops: 835, inside: {gigabytes_per_s: 300, latency_us: 2}}
between: {gigabytes_per_s: 12.5}
";
        let found = cluster("cluster.yaml", text).unwrap();
        assert_eq!(found.words(), "2 hosts of 4 a100-80gb, 1 host of 8 h100-80gb");
        assert_eq!((found.hosts[0].device.memory, found.hosts[1].device.memory), (80 << 30, 94 << 30));
        assert_eq!((found.hosts[1].device.peak.bf16, found.hosts[1].device.peak.fp16), (835e12, 989e12));
        assert_eq!((found.between.bandwidth, found.hosts[1].inside.latency), (12.5e9, 2e-6));
        // The usual network of the device.
        let found = cluster("cluster.yaml", "hosts: [{device: h200}]").unwrap();
        assert_eq!((found.devices(), found.between.bandwidth), (8, 50e9));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let told = |text: &str| cluster("c.yaml", text).unwrap_err().to_string();
        let faults = "\
hosts:
- {count: 0, device: a100-80gb}
- {device: a100, devices: 2000}
- device: h100-80gb
  bf16_tflops: -1
  inside: {gigabytes_per_s: 0}
between: {gigabytes_per_s: .inf, latency_us: -1}
";
        expect![[r#"
            c.yaml:2:4: hosts[0].count: found 0; must be 1 or more
            c.yaml:3:4: hosts[1].device: unknown device `a100`; did you mean `a100-80gb`? (known: a100-40gb, a100-80gb, h100-80gb, h200, a10-24gb, rtx-4090-24gb, l40s-48gb, cpu)
            c.yaml:5:3: hosts[2].bf16_tflops: found -1.0; must be from 0.000001 to 1000000 TFLOP/s
            c.yaml:6:12: hosts[2].inside.gigabytes_per_s: found 0.0; must be from 0.000001 to 1000000 GB/s
            c.yaml:7:11: between.gigabytes_per_s: found inf; must be from 0.000001 to 1000000 GB/s
            c.yaml:7:34: between.latency_us: found -1.0; must be 0 to 10000000 microseconds"#]].assert_eq(&told(faults));
        expect!["c.yaml:1:10: hosts[0].gpus: is not a known key (known here: count, devices, device, memory, fp32_tflops, bf16_tflops, fp16_tflops, product_share, attention_share, memory_gigabytes_per_s, inside, price_per_hour)"].assert_eq(&told("hosts: [{gpus: 8, device: h200}]"));
        expect!["c.yaml:1:1: hosts: is an empty list; name one host or more"].assert_eq(&told("hosts: []"));
        expect!["c.yaml:1:1: hosts: found a map; must be a sequence"]
            .assert_eq(&told("hosts: {device: h200}"));
        expect!["c.yaml:1:1: hosts: has 79992 devices in all; must be 16384 or less"]
            .assert_eq(&told("hosts: [{device: h200, count: 9999}]"));
        expect!["c.yaml:1:24: hosts[0].count: found the text `many`; must be a whole number, 0 or more"]
            .assert_eq(&told("hosts: [{device: h200, count: many}]"));
        expect!["c.yaml:2:1: cannot be read: did not find expected node content, while parsing a flow node"]
            .assert_eq(&told("hosts: ["));
    }
}
