// The rotation that rope.cu does by itself, and qk_norm.cu behind (forward) or before (backward) the norm.
#pragma once
#include "common.cuh"

typedef Floats<PACK(T)> Pack;

// (a, b) -> (a cos - b sin, b cos + a sin). Which product is rounded by itself is said, not left to the compiler: it chose one way in
// one kernel and another way in the next.
__device__ __forceinline__ void turn(Pack& a, Pack& b, const Pack& cosine, const Pack& sine, float sign) {
#pragma unroll
    for (int e = 0; e < PACK(T); ++e) {
        const float s = sign * sine[e], old = a[e];
        a[e] = fmaf(old, cosine[e], -(b[e] * s));
        b[e] = fmaf(b[e], cosine[e], old * s);
    }
}
