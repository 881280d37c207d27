// Random numbers from counters: draw i of a stream is a function of both and of nothing else. As src/backend/rounding.rs has it, to the
// bit.
// Source     Wellons's lowbias32: a bijection of 32 bits whose every output bit hangs on every input bit.
#pragma once
#include "common.cuh"

__device__ __forceinline__ uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}
constexpr uint32_t GOLDEN = 0x9e3779b9u;
__device__ __forceinline__ uint32_t draw(unsigned long long key, unsigned long long i) {
    return mixed(mixed(uint32_t(i) + uint32_t(key)) ^ (uint32_t(key >> 32) + uint32_t(i >> 32) * GOLDEN));
}
