// The attention kernels with one fault each, for the tests of the tests. A file of this folder sets FAULT, includes this,
// defines the fault, and includes attention_faulty.cuh. Everything is in a namespace of the file's own: the templates have the
// names of the right ones.
#include "common.cuh"
#undef EXPORTED
#define FAULTY__(name, fault) name##_fault_##fault##_bf16
#define FAULTY_(name, fault) FAULTY__(name, fault)
#define EXPORTED(name) FAULTY_(name, FAULT)
#ifdef STORAGE_BF16
namespace {
#include "attention.cuh"
}
#endif
