#!/bin/sh
# Puts nvcc, cuobjdump and nvdisasm under DIR from PyPI wheels: no root, no driver, about 5 s and 400 MB.
#   scripts/install_nvcc.sh DIR && export FUSEDPO_NVCC=DIR/nvidia/cu13/bin/nvcc
# Needs python3 with pip, and a host C++ compiler when nvcc runs. Does nothing where DIR has them already.
set -eu
dir=${1:?usage: scripts/install_nvcc.sh DIR}
nvcc=$dir/nvidia/cu13/bin/nvcc
if ! [ -x "$nvcc" ] || ! [ -x "$dir/nvidia/cu13/bin/nvdisasm" ]; then
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$dir" \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
        nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86
fi
"$nvcc" --version | tail -2 | head -1
echo "$nvcc"
