// Values where keys belong.
#define FAULT swapped
#include "attention_faults.cuh"
#ifdef STORAGE_BF16
namespace {
template <int HD, int ROWS> void swapped_keys(bf16* k, bf16* v, const bf16* kv, const Heads& h, const QueryTile& t, int j) {
    load_keys<HD, ROWS>(v, k, kv, h, t, j);
}
}
#endif
#define load_keys swapped_keys
#include "attention_faulty.cuh"
