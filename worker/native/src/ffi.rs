//! The shim's functions as C sees them; `cpp/` has their contracts. A `*mut c_char` result is an
//! error text, null on success. Tensors are `at::Tensor*`, as in torch-sys.

use std::ffi::{c_char, c_int, c_void};

/// Rust's side of the network. `start` and `wait` return an error text.
#[repr(C)]
pub(crate) struct NetworkCalls {
    /// A counted reference, or null where there is no network; `network_free` gives it back.
    pub(crate) network: *const c_void,
    pub(crate) start:
        extern "C" fn(*const c_void, *mut c_void, usize, bool, c_int, c_int, *mut *mut c_void) -> *mut c_char,
    pub(crate) wait: extern "C" fn(*mut c_void) -> *mut c_char,
    pub(crate) free: extern "C" fn(*mut c_void),
    pub(crate) network_free: extern "C" fn(*const c_void),
}

/// Three lists of `count`: the slots, first tokens and numbers of tokens of a vector's uses.
#[repr(C)]
pub(crate) struct UseList {
    pub(crate) slots: *const *mut c_void,
    pub(crate) firsts: *const i64,
    pub(crate) tokens: *const i64,
    pub(crate) count: usize,
}

unsafe extern "C" {
    pub(crate) fn cx_alloc(bytes: usize) -> *mut c_void;
    pub(crate) fn cx_runtime() -> *mut c_char;
    pub(crate) fn cx_share_cores() -> i32;
    pub(crate) fn cx_free(block: *mut c_void);

    pub(crate) fn cx_gpu_open(
        torch: *const c_char,
        emulation: *const c_char,
        kernels: *const c_char,
    ) -> *mut c_char;
    pub(crate) fn cx_gpu_memory(current: *mut i64, peak: *mut i64) -> *mut c_char;
    pub(crate) fn cx_gpu_memory_reset_peak() -> *mut c_char;

    pub(crate) fn cx_memory_install();
    pub(crate) fn cx_memory_current() -> i64;
    pub(crate) fn cx_memory_peak() -> i64;
    pub(crate) fn cx_memory_reset_peak();

    pub(crate) fn cx_slot_new() -> *mut c_void;
    pub(crate) fn cx_slot_free(slot: *mut c_void);
    pub(crate) fn cx_slot_set(slot: *mut c_void, grad: *const c_void);
    pub(crate) fn cx_slot_fresh(slot: *const c_void) -> bool;
    pub(crate) fn cx_wgrad_queue_new() -> *mut c_void;
    pub(crate) fn cx_wgrad_queue_free(wgrad_queue: *mut c_void);
    pub(crate) fn cx_wgrad_queue_hold(wgrad_queue: *mut c_void, held: bool);
    pub(crate) fn cx_wgrad_queue_flush(wgrad_queue: *mut c_void) -> *mut c_char;
    pub(crate) fn cx_wgrad_queue_take(wgrad_queue: *mut c_void) -> *mut c_void;
    pub(crate) fn cx_deferred_run(deferred: *mut c_void) -> *mut c_char;
    pub(crate) fn cx_deferred_free(deferred: *mut c_void);

    pub(crate) fn cx_grad(
        output: *const c_void,
        grad: *const c_void,
        input: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_linear(
        x: *const c_void,
        w: *const c_void,
        slot: *mut c_void,
        wgrad_queue: *mut c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_rms_norm(
        x: *const c_void,
        w: *const c_void,
        eps: f64,
        uses: UseList,
        wgrad_queue: *mut c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_layer_norm(
        x: *const c_void,
        w: *const c_void,
        b: *const c_void,
        eps: f64,
        w_uses: UseList,
        b_uses: UseList,
        wgrad_queue: *mut c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_add_bias(
        x: *const c_void,
        b: *const c_void,
        uses: UseList,
        wgrad_queue: *mut c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_table_columns(
        anchor: *const c_void,
        table: *const c_void,
        rows: *const c_void,
        slot: *mut c_void,
        wgrad_queue: *mut c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_rope(
        x: *const c_void,
        cos: *const c_void,
        sin: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_activate(
        a: *const c_void,
        b: *const c_void,
        by: i32,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_copy_to_shards(
        x: *const c_void,
        group: *mut c_void,
        wgrad_queue: *mut c_void,
        count: usize,
        sequence_parallel: bool,
        outs: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_reduce_from_shards(
        parts: *const *const c_void,
        count: usize,
        group: *mut c_void,
        sequence_parallel: bool,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_cross_entropy(
        logits: *const *const c_void,
        starts: *const i64,
        count: usize,
        targets: *const c_void,
        weights: *const c_void,
        group: *mut c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_embed(
        ids: *const c_void,
        w: *const c_void,
        start: i64,
        kind: c_int,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_embed_grad(
        ids: *const c_void,
        dy: *const c_void,
        slot: *mut c_void,
        start: i64,
    ) -> *mut c_char;
    pub(crate) fn cx_attention(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        causal: bool,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_linear_attention(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        log_decay: *const c_void,
        s: *const c_void,
        z: *const c_void,
        causal: bool,
        out: *mut *mut c_void,
        s_out: *mut *mut c_void,
        z_out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_sum_squares_blocks(
        xs: *const *const c_void,
        count: usize,
        sums: *mut f64,
        blocks: usize,
    ) -> *mut c_char;
    pub(crate) fn cx_adamw(
        params: *const *const c_void,
        grads: *const *const c_void,
        exp_avgs: *const *const c_void,
        exp_avg_sqs: *const *const c_void,
        count: usize,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        divisor: f64,
    ) -> *mut c_char;

    pub(crate) fn cx_group_new(
        calls: NetworkCalls,
        ranks: *const c_int,
        count: usize,
        index: c_int,
        tag: c_int,
    ) -> *mut c_void;
    pub(crate) fn cx_group_free(group: *mut c_void);
    pub(crate) fn cx_group_reduce(
        group: *const c_void,
        x: *const c_void,
        op: c_int,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn cx_group_gather(
        group: *const c_void,
        x: *const c_void,
        dim: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}
