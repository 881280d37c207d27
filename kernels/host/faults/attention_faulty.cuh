#ifdef STORAGE_BF16
namespace {
#include "../../attention.cu"
#include "../../attention_bwd_dq.cu"
#include "../../attention_bwd_dkv.cu"
}
#endif
