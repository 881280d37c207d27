#ifdef STORAGE_BF16
namespace {
#include "../../attention.cu"
#include "../../attention_bwd.cu"
}
#endif
