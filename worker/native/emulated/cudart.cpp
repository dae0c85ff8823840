// A CUDA runtime for one emulated GPU: real memory that the host cannot touch, and no kernels.
//
// `cudaMalloc` hands out addresses of a mapping without access. The same pages are mapped a second time, readable;
// copies and the emulated operators (operators.cpp) reach them there, by `emulated_shadow`. So host code that reads a
// device pointer ends in a segmentation fault, and a kernel that was not replaced aborts with its name. Fresh memory is
// NaN. Streams and events are immediate. Waits, copies and launches are counted. build.sh adds the functions that
// libtorch wants and this file lacks; they succeed and do nothing.
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {
constexpr size_t kBytes = size_t{64} << 30;
char *device = nullptr, *shadow = nullptr;
std::mutex mutex;
std::map<size_t, size_t> taken;             // offset -> bytes
std::multimap<size_t, size_t> spare;        // bytes -> offset
size_t end = 0;
std::map<const void*, std::string> names;
std::atomic<long> syncs{0}, to_host{0}, to_device{0}, launches{0};

void make() {
  static const bool made = [] {
    const int file = memfd_create("emulated-gpu", 0);
    if (file < 0 || ftruncate(file, kBytes)) std::abort();
    device = static_cast<char*>(mmap(nullptr, kBytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0));
    shadow = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0));
    if (device == MAP_FAILED || shadow == MAP_FAILED) std::abort();
    return true;
  }();
  (void)made;
}
bool ours(const void* p) { return device && p >= device && p < device + kBytes; }
} // namespace

extern "C" {
// Where the host may look at what a device pointer points to; other pointers are themselves.
void* emulated_shadow(const void* p) {
  return const_cast<char*>(ours(p) ? shadow + (static_cast<const char*>(p) - device) : static_cast<const char*>(p));
}
// Whether a pointer is of the device; -1 where the device has handed out no memory yet.
int emulated_owns(const void* p) { return device == nullptr ? -1 : ours(p); }
// Waits of the host, copies to the host and to the device, launches since the last call.
void emulated_counts(long* out) {
  out[0] = syncs.exchange(0), out[1] = to_host.exchange(0), out[2] = to_device.exchange(0), out[3] = launches.exchange(0);
}
void emulated_launch() { ++launches; }
// A copy by an emulated operator; one to pageable host memory waits.
void emulated_copy(bool from_device, bool into_device) {
  if (from_device && !into_device) ++to_host, ++syncs;
  if (into_device && !from_device) ++to_device;
}

cudaError_t cudaMalloc(void** out, size_t bytes) {
  make();
  std::lock_guard lock(mutex);
  bytes = (bytes + 511) / 512 * 512 + 512;
  size_t at = end;
  if (auto found = spare.lower_bound(bytes); found != spare.end() && found->first < 2 * bytes) {
    at = found->second, bytes = found->first;
    spare.erase(found);
  } else {
    if (end + bytes > kBytes) return cudaErrorMemoryAllocation;
    end += bytes;
  }
  taken[at] = bytes;
  std::memset(shadow + at, 0xff, bytes); // NaN: a read of unwritten memory shows
  *out = device + at;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  std::lock_guard lock(mutex);
  auto found = taken.find(static_cast<size_t>(static_cast<char*>(p) - device));
  if (found == taken.end()) return cudaErrorInvalidValue;
  spare.emplace(found->second, found->first);
  taken.erase(found);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { *free = kBytes - end, *total = kBytes; return cudaSuccess; }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return posix_memalign(p, 4096, n) ? cudaErrorMemoryAllocation : cudaSuccess; }
cudaError_t cudaFreeHost(void* p) { std::free(p); return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  std::memset(a, 0, sizeof *a);
  a->type = ours(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->devicePointer = ours(p) ? const_cast<void*>(p) : nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
  if (ours(from) && !ours(to)) ++to_host;
  if (ours(to) && !ours(from)) ++to_device;
  std::memmove(emulated_shadow(to), emulated_shadow(from), n);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t) { return cudaMemcpy(to, from, n, kind); }
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t) { return cudaMemcpy(to, from, n, cudaMemcpyDefault); }
cudaError_t cudaMemset(void* p, int v, size_t n) { std::memset(emulated_shadow(p), v, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { return cudaMemset(p, v, n); }

cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int d) { return d == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDriverGetVersion(int* v) { *v = 13000; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { *v = 13000; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "emulated");
  p->totalGlobalMem = kBytes, p->sharedMemPerBlock = 48 << 10, p->regsPerBlock = 65536, p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = 9, p->minor = 0, p->multiProcessorCount = 132, p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerMultiprocessor = 228 << 10, p->sharedMemPerBlockOptin = 227 << 10, p->l2CacheSize = 50 << 20;
  p->textureAlignment = 512, p->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  *v = a == cudaDevAttrMultiProcessorCount ? 132 : a == cudaDevAttrComputeCapabilityMajor ? 9 : a == cudaDevAttrMaxSharedMemoryPerBlock ? 48 << 10 : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { *least = 0, *greatest = -5; return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { ++syncs; return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { ++syncs; return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { ++syncs; return cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { *s = static_cast<cudaStream_t>(std::malloc(8)); return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* s) { *s = cudaStreamCaptureStatusNone; return cudaSuccess; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* s, unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *s = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return cudaSuccess;
}
struct Clock { std::chrono::steady_clock::time_point at; };
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = reinterpret_cast<cudaEvent_t>(new Clock); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete reinterpret_cast<Clock*>(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) { reinterpret_cast<Clock*>(e)->at = std::chrono::steady_clock::now(); return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) { return cudaEventRecord(e, s); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  *ms = std::chrono::duration<float, std::milli>(reinterpret_cast<Clock*>(b)->at - reinterpret_cast<Clock*>(a)->at).count();
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "an emulated error"; }
const char* cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "emulated"; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** p, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* r) {
  *p = nullptr;
  if (r) *r = cudaDriverEntryPointSymbolNotFound;
  return cudaErrorInvalidValue;
}

void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) { names[host] = name; }
cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* host) { *k = (cudaKernel_t)host; return cudaSuccess; }
static cudaError_t refuse(const void* host) {
  auto found = names.find(host);
  std::fprintf(stderr, "the emulated GPU was asked to run %s\n", found == names.end() ? "a kernel" : found->second.c_str());
  std::abort();
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3, dim3, void**, size_t, cudaStream_t) { return refuse(k); }
cudaError_t cudaLaunchKernel(const void* f, dim3, dim3, void**, size_t, cudaStream_t) { return refuse(f); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* f, void**) { return refuse(f); }
} // extern "C"
