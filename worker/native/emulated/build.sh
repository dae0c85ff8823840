#!/bin/bash
# Builds the emulated GPU: build.sh SITE OUT [LIBTORCH]
#
# SITE holds the unpacked wheels of torch (torch/lib/lib{torch_cuda,c10_cuda,torch_nvshmem}.so) and of
# nvidia-cuda-runtime and nvidia-cuda-crt (nvidia/cu13/include). LIBTORCH is the CPU's libtorch, made
# of the same wheel; by default the one that `cargo xtask setup` makes. OUT becomes a folder of libraries; a process
# that has libtorch_cpu.so loaded opens OUT/libtorch_cuda.so, then OUT/libcoxswain_emulated_gpu.so, and calls
# `emulate()`. Nothing need be set in its environment.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
site=$1 out=$2 libtorch=${3:-$here/../../../target/libtorch/cpu}
runtime=libcuemul.so.13 # as long as libcudart.so.13
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir -p "$out"

# This takes the longest, beside all else.
compilers=()
for name in operators products attention; do
  g++ -std=c++17 -O1 -fPIC -c -isystem "$libtorch/include" -isystem "$libtorch/include/torch/csrc/api/include" \
    "$here/$name.cpp" -o "$work/$name.o" &
  compilers+=($!)
done

g++ -std=c++17 -O1 "$here/retarget.cpp" -o "$work/retarget"
for name in torch_cuda c10_cuda torch_nvshmem; do
  "$work/retarget" "$site/torch/lib/lib$name.so" "$out/lib$name.so" libcudart.so.13 $runtime
done

# Libraries that libtorch_cuda.so needs, and whose functions only real kernels call. stand_in SONAME VERSION PATTERN
# makes one of the functions that match; each prints its name and aborts.
undefined=$(nm -D --undefined-only "$out/libtorch_cuda.so" "$out/libtorch_nvshmem.so" | awk 'NF == 2 {print $2}' | sort -u)
stand_in() {
  printf '%s { global: *; };\n' "${2:-none}" >"$work/$1.map"
  {
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    for name in $(grep -E "$3" <<<"$undefined" | sed 's/@.*//'); do
      if [ "$name" = cudnnGetVersion ]; then
        echo "size_t $name(void) { return 91900; }"
      else
        echo "void $name(void) { fputs(\"the emulated GPU has no $name\\n\", stderr); abort(); }"
      fi
    done
  } >"$work/$1.c"
  gcc -shared -fPIC -o "$out/$1" "$work/$1.c" -Wl,-soname,"$1" ${2:+-Wl,--version-script,"$work/$1.map"}
}
for library in libcusparse.so.12 libcufft.so.12 libcublas.so.13 libcublasLt.so.13 libcudnn.so.9; do
  stand_in $library $library "@$library$"
done
stand_in libnvshmem_host.so.3 NVSHMEM '@NVSHMEM$'
stand_in libnccl.so.2 '' '^nccl'
stand_in libcufile.so.0 '' '^cuFile'
stand_in libcusparseLt.so.0 '' '^cusparseLt'
stand_in libcurand.so.10 '' '^curand'

# The runtime. What cudart.cpp does not define succeeds and does nothing.
g++ -std=c++17 -O1 -fPIC -Wall -Wextra -I"$site/nvidia/cu13/include" \
  -c "$here/cudart.cpp" -o "$work/cudart.o"
wanted=$(nm -D --undefined-only "$out"/lib{torch_cuda,c10_cuda,torch_nvshmem}.so | grep "@$runtime" | awk '{print $2}' | sed 's/@.*//')
defined=$(nm --defined-only "$work/cudart.o" | awk '{print $3}')
comm -23 <(sort -u <<<"$wanted") <(sort -u <<<"$defined") | sed 's/.*/int &(void) { return 0; }/' >"$work/rest.c"
gcc -fPIC -w -c "$work/rest.c" -o "$work/rest.o"
printf '%s { global: *; };\n' "$runtime" >"$work/map"
# The driver, which libtorch_cpu.so opens by name and asks whether the device has a context. It would not look in OUT,
# so the runtime brings it along.
echo 'int cuDevicePrimaryCtxGetState(int d, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }' >"$work/cuda.c"
gcc -shared -fPIC -w -o "$out/libcuda.so.1" "$work/cuda.c" -Wl,-soname,libcuda.so.1
g++ -shared -o "$out/$runtime" "$work/cudart.o" "$work/rest.o" -Wl,-soname,"$runtime" -Wl,--version-script,"$work/map" \
  -Wl,--no-as-needed -L"$out" -l:libcuda.so.1 "-Wl,-rpath,\$ORIGIN"

for compiler in "${compilers[@]}"; do wait "$compiler"; done
g++ -shared -o "$out/libcoxswain_emulated_gpu.so" "$work"/{operators,products,attention}.o -L"$libtorch/lib" -L"$out" \
  -l:libtorch_cpu.so -l:libc10.so "-l:$runtime" "-Wl,-rpath,\$ORIGIN"
