//! The machines that a plan is made for, as numbers: how fast a device computes, how fast it moves bytes, and what
//! lies between two of them.
//!
//! - [`devices`]: the kinds that are known by name, with where their numbers come from.
//! - [`Machines`]: hosts with devices, and the links between them. [`crate::spec`] reads one from a file.

pub mod devices;

use coxswain_types::job::Precision;
use serde::{Deserialize, Serialize};

/// A kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its name, such as `h100-80gb`.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of it that the runtime takes: the library's context, workspaces, and what an allocator cannot use.
    pub reserved: u64,
    /// FLOP/s of matrix products by its data sheet, without sparsity.
    pub peak: FlopRates,
    /// The share of the peak that large products reach.
    pub product_share: f64,
    /// The share of the peak that attention kernels reach.
    pub attention_share: f64,
    /// Bytes a second between the device and its memory, by its data sheet.
    pub bandwidth: f64,
    /// The share of it that a pass over memory reaches.
    pub bandwidth_share: f64,
    /// Seconds from the start of one kernel to the start of the next, where the kernels are short.
    pub launch: f64,
}

/// FLOP/s for each precision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlopRates {
    /// Of fp32 products. Products in TF32 have other bits, so they are not used.
    pub fp32: f64,
    /// Of bf16 products.
    pub bf16: f64,
    /// Of fp16 products.
    pub fp16: f64,
}

impl FlopRates {
    /// The rate in this precision.
    pub fn of(&self, precision: Precision) -> f64 {
        match precision {
            Precision::Fp32 => self.fp32,
            Precision::Bf16 => self.bf16,
            Precision::Fp16 => self.fp16,
        }
    }
}

impl Device {
    /// Bytes that tensors may have.
    pub fn usable(&self) -> u64 {
        self.memory.saturating_sub(self.reserved)
    }

    /// Bytes a second of a pass over memory.
    pub fn stream(&self) -> f64 {
        self.bandwidth * self.bandwidth_share
    }
}

/// What lies between two devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkLink {
    /// Seconds until the first byte is there.
    pub latency: f64,
    /// Bytes a second of one device, in each direction.
    pub bandwidth: f64,
}

/// Hosts of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostGroup {
    /// How many hosts there are.
    pub count: u32,
    /// Devices of each.
    pub devices: u32,
    /// Their kind.
    pub device: Device,
    /// What lies between two devices of a host.
    pub inside: NetworkLink,
    /// The price of a host for an hour, in the reader's currency.
    pub price_per_hour: Option<f64>,
}

/// Machines, and what lies between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machines {
    /// The hosts; ranks take their devices in this order. At least one device.
    pub hosts: Vec<HostGroup>,
    /// What lies between devices of two hosts.
    pub between: NetworkLink,
}

impl Machines {
    /// Hosts of one kind of device, as many as it takes for so many workers.
    pub fn of(known: &devices::KnownDevice, workers: u32) -> Machines {
        let on_host = known.on_host.unwrap_or(workers).min(workers).max(1);
        let group = HostGroup {
            count: workers.div_ceil(on_host).max(1),
            devices: on_host,
            device: known.device(),
            inside: known.inside,
            price_per_hour: None,
        };
        Machines { hosts: vec![group], between: known.between }
    }

    /// All devices.
    pub fn devices(&self) -> u32 {
        self.hosts.iter().map(|group| group.count.saturating_mul(group.devices)).fold(0, u32::saturating_add)
    }

    /// The number of a rank's host, and its group.
    pub fn host_of(&self, rank: u32) -> Option<(u32, &HostGroup)> {
        let (mut first, mut host) = (0_u32, 0_u32);
        for group in &self.hosts {
            let devices = group.count.saturating_mul(group.devices);
            if rank - first < devices {
                return Some((host + (rank - first) / group.devices, group));
            }
            first += devices;
            host += group.count;
        }
        None
    }

    /// The device with the least memory.
    pub fn smallest(&self) -> Option<&Device> {
        self.hosts.iter().map(|group| &group.device).min_by_key(|device| device.usable())
    }

    /// What lies between two ranks.
    pub fn link(&self, a: u32, b: u32) -> NetworkLink {
        match (self.host_of(a), self.host_of(b)) {
            (Some((one, group)), Some((other, _))) if one == other => group.inside,
            _ => self.between,
        }
    }

    /// The price of an hour of the hosts that so many ranks take, where all of these have one.
    pub fn price_per_hour(&self, ranks: u32) -> Option<f64> {
        let mut left = ranks;
        let mut price = 0.0;
        for group in &self.hosts {
            let hosts = left.div_ceil(group.devices.max(1)).min(group.count);
            if hosts > 0 {
                price += f64::from(hosts) * group.price_per_hour?;
            }
            left = left.saturating_sub(hosts.saturating_mul(group.devices));
        }
        Some(price)
    }

    /// What it is, in a few words: `2 hosts of 8 a100-80gb`.
    pub fn words(&self) -> String {
        let group = |group: &HostGroup| {
            let hosts = if group.count == 1 { "host" } else { "hosts" };
            format!("{} {hosts} of {} {}", group.count, group.devices, group.device.name)
        };
        self.hosts.iter().map(group).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_kinds() -> Machines {
        let link = |bandwidth| NetworkLink { latency: 1e-6, bandwidth };
        let known = |name: &str| devices::find(name).unwrap().device();
        let group = |count, devices, name, price| HostGroup {
            count,
            devices,
            device: known(name),
            inside: link(1e11),
            price_per_hour: price,
        };
        let hosts = vec![group(2, 4, "a100-80gb", Some(8.0)), group(1, 8, "h100-80gb", Some(20.0))];
        Machines { hosts, between: link(1e10) }
    }

    #[test]
    fn ranks_fill_hosts_in_their_order() {
        let cluster = two_kinds();
        assert_eq!(cluster.devices(), 16);
        let host = |rank| cluster.host_of(rank).map(|(host, group)| (host, group.device.name.as_str()));
        assert_eq!(host(3), Some((0, "a100-80gb")));
        assert_eq!(host(4), Some((1, "a100-80gb")));
        assert_eq!(host(8), Some((2, "h100-80gb")));
        assert_eq!(host(16), None);
        assert_eq!(cluster.link(0, 3).bandwidth, 1e11);
        assert_eq!(cluster.link(3, 4).bandwidth, 1e10);
        assert_eq!(cluster.words(), "2 hosts of 4 a100-80gb, 1 host of 8 h100-80gb");
    }

    #[test]
    fn a_price_is_that_of_the_hosts_that_are_used() {
        let mut cluster = two_kinds();
        assert_eq!(
            [1, 4, 5, 8, 9].map(|ranks| cluster.price_per_hour(ranks)),
            [Some(8.0), Some(8.0), Some(16.0), Some(16.0), Some(36.0)]
        );
        cluster.hosts[1].price_per_hour = None;
        assert_eq!(cluster.price_per_hour(8), Some(16.0));
        assert_eq!(cluster.price_per_hour(9), None);
    }
}
