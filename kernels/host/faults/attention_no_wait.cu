// No wait for asynchronous copies.
#define FAULT no_wait
#include "attention_faults.cuh"
namespace {
template <int N> inline void do_not_wait() {}
}
#define cp_async_wait do_not_wait
#include "attention_faulty.cuh"
