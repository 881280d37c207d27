// The last query head of a group sees one key too many.
#define FAULT off_by_one
#include "attention_faults.cuh"
#define hidden(m, seen_from) hidden((m) + 1, seen_from)
#include "attention_faulty.cuh"
