/* The core once more, under other names and without the instructions that this machine may have, to
 * compare with: portable, or as on an x86-64 that has no more than PLAIN_BEST says (see ECX_BEST). */
#ifdef PLAIN_BEST
#define ECX_BEST PLAIN_BEST
#else
#define ECX_NO_DISPATCH
#endif
#define ecx_model_bytes plain_model_bytes
#define ecx_model_init plain_model_init
#define ecx_latent_channels plain_latent_channels
#define ecx_hyper_channels plain_hyper_channels
#define ecx_levels plain_levels
#define ecx_scratch_bytes plain_scratch_bytes
#define ecx_predict plain_predict
#define ecx_quantize plain_quantize
#define ecx_price_entries plain_price_entries
#define ecx_price plain_price
#define ecx_encode_scratch_bytes plain_encode_scratch_bytes
#define ecx_encode_bound plain_encode_bound
#define ecx_encode plain_encode
#define ecx_decode plain_decode
#define ecx_pack plain_pack
#include "edgecodec_core.c"
