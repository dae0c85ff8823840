//! Devices that are known by name.
//!
//! FlopRates, memory and links are those of the makers' data sheets, without sparsity; the shares of them that kernels
//! reach were measured where the row says so, and are otherwise those of the row above it of the same maker.

use super::{Device, FlopRates, NetworkLink};

/// A known device, with what usually surrounds it.
#[derive(Clone, Debug)]
pub struct KnownDevice {
    /// Its name.
    pub name: &'static str,
    /// Where its numbers come from.
    pub source: &'static str,
    gib: u64,
    reserved_mib: u64,
    /// FLOP/s.
    peak: FlopRates,
    product_share: f64,
    attention_share: f64,
    bandwidth: f64,
    bandwidth_share: f64,
    launch: f64,
    /// Devices that usually share a host; `None` where one host has all of them.
    pub on_host: Option<u32>,
    /// The usual link inside of a host.
    pub inside: NetworkLink,
    /// The usual share of a device in its host's network.
    pub between: NetworkLink,
}

const TERA: f64 = 1e12;
const GIGA: f64 = 1e9;

const fn rates(fp32: f64, low: f64) -> FlopRates {
    FlopRates { fp32: fp32 * TERA, bf16: low * TERA, fp16: low * TERA }
}

const fn link(microseconds: f64, gigabytes: f64) -> NetworkLink {
    NetworkLink { latency: microseconds * 1e-6, bandwidth: gigabytes * GIGA }
}

/// A context of CUDA with its libraries' workspaces, and memory that an allocator cannot hand out in one piece.
const CUDA_RESERVED_MIB: u64 = 2048;

/// Large products, attention kernels and copies as measured on one H200 (`docs/gpus.md`: products 594 to 779 TFLOP/s,
/// flash attention 236, copies 4.25 TB/s).
const HOPPER_SHARES: [f64; 3] = [0.70, 0.24, 0.88];
/// Products on an A100 reach more of a lower peak: cuBLAS 250 of 312 TFLOP/s; FlashAttention-2 (arXiv 2307.08691)
/// reports 0.5 to 0.63 of it with the backward pass.
const AMPERE_SHARES: [f64; 3] = [0.80, 0.55, 0.85];

/// A core of a processor: what a worker without a GPU has.
pub const CPU: KnownDevice = KnownDevice {
    name: "cpu",
    source: "one core with AVX-512 (64 fp32 FLOP a clock at 2.5 GHz); shares from docs/performance.md",
    gib: 8,
    reserved_mib: 390,
    peak: rates(160.0 / 1e3, 160.0 / 1e3),
    product_share: 0.80,
    attention_share: 0.30,
    bandwidth: 10.0 * GIGA,
    bandwidth_share: 0.80,
    launch: 3e-6,
    on_host: None,
    inside: link(40.0, 2.0),
    between: link(100.0, 1.0),
};

const A100_40GB: KnownDevice = KnownDevice {
    name: "a100-40gb",
    source: "NVIDIA A100 data sheet (SXM4)",
    gib: 40,
    reserved_mib: CUDA_RESERVED_MIB,
    peak: rates(19.5, 312.0),
    product_share: AMPERE_SHARES[0],
    attention_share: AMPERE_SHARES[1],
    bandwidth: 1555.0 * GIGA,
    bandwidth_share: AMPERE_SHARES[2],
    launch: 5e-6,
    on_host: Some(8),
    inside: link(5.0, 300.0),
    between: link(8.0, 25.0),
};

const H100_80GB: KnownDevice = KnownDevice {
    name: "h100-80gb",
    source: "NVIDIA H100 data sheet (SXM5)",
    gib: 80,
    reserved_mib: CUDA_RESERVED_MIB,
    peak: rates(67.0, 989.0),
    product_share: HOPPER_SHARES[0],
    attention_share: HOPPER_SHARES[1],
    bandwidth: 3350.0 * GIGA,
    bandwidth_share: HOPPER_SHARES[2],
    launch: 5e-6,
    on_host: Some(8),
    inside: link(5.0, 450.0),
    between: link(8.0, 50.0),
};

/// All of them.
pub const KNOWN: &[KnownDevice] = &[
    A100_40GB,
    KnownDevice { name: "a100-80gb", gib: 80, bandwidth: 2039.0 * GIGA, ..A100_40GB },
    H100_80GB,
    KnownDevice {
        name: "h200",
        source: "NVIDIA H200 data sheet (SXM5); shares measured, docs/gpus.md",
        gib: 131,
        bandwidth: 4800.0 * GIGA,
        ..H100_80GB
    },
    KnownDevice {
        name: "a10-24gb",
        source: "NVIDIA A10 data sheet",
        gib: 24,
        reserved_mib: CUDA_RESERVED_MIB,
        peak: rates(31.2, 125.0),
        product_share: AMPERE_SHARES[0],
        attention_share: AMPERE_SHARES[1],
        bandwidth: 600.0 * GIGA,
        bandwidth_share: AMPERE_SHARES[2],
        launch: 5e-6,
        on_host: Some(4),
        inside: link(10.0, 12.0),
        between: link(20.0, 3.0),
    },
    KnownDevice {
        name: "rtx-4090-24gb",
        source: "NVIDIA Ada architecture white paper (fp32 accumulation)",
        gib: 24,
        reserved_mib: CUDA_RESERVED_MIB,
        peak: rates(82.6, 165.2),
        product_share: AMPERE_SHARES[0],
        attention_share: AMPERE_SHARES[1],
        bandwidth: 1008.0 * GIGA,
        bandwidth_share: AMPERE_SHARES[2],
        launch: 5e-6,
        on_host: Some(8),
        inside: link(10.0, 12.0),
        between: link(20.0, 1.25),
    },
    KnownDevice {
        name: "l40s-48gb",
        source: "NVIDIA L40S data sheet",
        gib: 48,
        reserved_mib: CUDA_RESERVED_MIB,
        peak: rates(91.6, 362.0),
        product_share: AMPERE_SHARES[0],
        attention_share: AMPERE_SHARES[1],
        bandwidth: 864.0 * GIGA,
        bandwidth_share: AMPERE_SHARES[2],
        launch: 5e-6,
        on_host: Some(8),
        inside: link(10.0, 24.0),
        between: link(10.0, 12.5),
    },
    CPU,
];

/// The device of this name.
pub fn find(name: &str) -> Option<&'static KnownDevice> {
    KNOWN.iter().find(|device| device.name == name)
}

/// The names of all.
pub fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|device| device.name)
}

impl KnownDevice {
    /// The device.
    pub fn device(&self) -> Device {
        Device {
            name: self.name.to_owned(),
            memory: self.gib << 30,
            reserved: self.reserved_mib << 20,
            peak: self.peak,
            product_share: self.product_share,
            attention_share: self.attention_share,
            bandwidth: self.bandwidth,
            bandwidth_share: self.bandwidth_share,
            launch: self.launch,
        }
    }
}
