// Waits for all but the newest group, as if there were a third stage.
#define FAULT late_wait
#include "attention_faults.cuh"
namespace {
template <int N> inline void wait_for_others() { cp_async_wait<N + 1>(); }
}
#define cp_async_wait wait_for_others
#include "attention_faulty.cuh"
