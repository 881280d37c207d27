#!/bin/sh
# build.sh OUT KERNELS [INCLUDE]: libcuda.so.1, libcublasLt.so.13 and libnccl.so.2 under OUT. KERNELS: libfusedpo_kernels_host.a, which
# kernels/host/build.rs makes; INCLUDE: the folder of NVIDIA's cuda.h. tests/standin.rs calls it.
set -eu
out=$1 kernels=$2 include=${3:+-I$3}
here=$(dirname "$0")
cxx="${CXX:-c++} -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra -Werror $include"
mkdir -p "$out"
for name in state device memory stream launch; do
    $cxx -O1 -c "$here/$name.cpp" -o "$out/$name.o" &
done
$cxx -O1 -c "$here/nccl.cpp" -o "$out/nccl.o" &
$cxx -O1 -c "$here/cublaslt_check.cpp" -o "$out/cublaslt_check.o" &
$cxx -O1 -c "$here/cublaslt_objects.cpp" -o "$out/cublaslt_objects.o"
$cxx -O3 -c "$here/cublaslt_product.cpp" -o "$out/cublaslt_product.o"
wait
mkdir -p "$out/nvtx"
$cxx -O1 -shared -Wl,-soname,libnvToolsExt.so.1 -Wl,-z,defs -o "$out/nvtx/libnvToolsExt.so.1" "$here/nvtx.cpp"
cd "$out"
# Kernels register themselves from static constructors, which a linker drops unless it takes the whole archive.
${CXX:-c++} -shared -Wl,-soname,libcuda.so.1 -Wl,-z,defs -Wl,-Bsymbolic -Wl,--exclude-libs,ALL -o libcuda.so.1 \
    state.o device.o memory.o stream.o launch.o -Wl,--whole-archive "$kernels" -Wl,--no-whole-archive -ldl -lpthread
ln -sf libcuda.so.1 libcuda.so
${CXX:-c++} -shared -Wl,-soname,libcublasLt.so.13 -Wl,-z,defs -Wl,-rpath,'$ORIGIN' -o libcublasLt.so.new \
    cublaslt_objects.o cublaslt_product.o cublaslt_check.o -L. -l:libcuda.so.1
${CXX:-c++} -shared -Wl,-soname,libnccl.so.2 -Wl,-z,defs -Wl,-rpath,'$ORIGIN' -o libnccl.so.2 nccl.o -L. -l:libcuda.so.1 -lrt
ln -sf libcublasLt.so.13 libcublasLt.so
mv libcublasLt.so.new libcublasLt.so.13  # last: whoever finds it finds all
