// The last query head of a group sees one key too many.
#define FAULT off_by_one
#include "attention_faults.cuh"
#define hidden(m, bound) hidden((m) + 1, bound)
#include "attention_faulty.cuh"
