#!/bin/sh
# Puts nvcc, cuobjdump and nvdisasm under DIR from PyPI wheels: no root, no driver, about 5 s and 400 MB.
#   scripts/install_nvcc.sh DIR && export FUSEDPO_NVCC=DIR/nvidia/cu13/bin/nvcc
# Needs python3 with pip, and a host C++ compiler when nvcc runs. Does nothing where DIR has them already.
set -eu
dir=${1:?usage: scripts/install_nvcc.sh DIR}
nvcc=$dir/nvidia/cu13/bin/nvcc
if ! [ -x "$nvcc" ] || ! [ -x "$dir/nvidia/cu13/bin/nvdisasm" ]; then
    # What is run here must be what was looked at: x86-64 wheels first, then those of aarch64.
    wheels=$(mktemp)
    trap 'rm -f "$wheels"' EXIT
    cat >"$wheels" <<'END'
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03 --hash=sha256:c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0 --hash=sha256:c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4 --hash=sha256:ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548 --hash=sha256:ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55
nvidia-cuda-cccl==13.0.85 --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649 --hash=sha256:6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c
nvidia-cuda-cuobjdump==13.2.86 --hash=sha256:d332c2ffe78e703ca0a3894be927f83124244e2acf0d792b8c12b4362d44d837 --hash=sha256:9a025b92d5faca837f69841317760df9b27f3871bfa089d80cc428399743fd56
nvidia-cuda-nvdisasm==13.2.86 --hash=sha256:53606e719ecae07a2335f95902d5a1393a0cc1c317499ee7ffcf628a44385f2c --hash=sha256:d02c627f7aecfcac4dd5e923e94adeaa6607c5fdae8df750b01ad948d38941d3
END
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --upgrade \
        --target "$dir" --requirement "$wheels"
fi
"$nvcc" --version | tail -2 | head -1
echo "$nvcc"
