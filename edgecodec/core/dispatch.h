/* Binds the loops to the processor at hand: `pick_kernels` for the coder, `pack_row` for pixels. */
#ifndef EDGECODEC_DISPATCH_H
#define EDGECODEC_DISPATCH_H

#include "kernels.h"

#if defined(DISPATCH_X86)
#include "kernels_x86.h"

/* What to use at most: 0 SSE2, 1 AVX2, 2 AVX-VNNI, 3 AVX-512 with VNNI. Tests lower it. */
#ifndef ECX_BEST
#define ECX_BEST 3
#endif

PACK_ROW(pack_row_avx2, AVX2, __m256i, _mm256_setzero_si256(), pack_run_avx2, largest_of_eight)
PACK_ROW(pack_row_base, , uint32_t, 0, pack_run_base, )

static int pack_row(const square_row *r) {
  if (ECX_BEST >= 1 && __builtin_cpu_supports("avx2")) return pack_row_avx2(r);
  return pack_row_base(r);
}

static kernels pick_kernels(void) {
  kernels use = {multiply_sse2, multiply_sse2, 2, activate_base, finish_base,
                 keep_base, quantize_base, list_base, select_base};
  if (ECX_BEST < 1 || !__builtin_cpu_supports("avx2")) return use;
  use.multiply = use.multiply_bytes = multiply_avx2;
  use.activate = activate_avx2;
  use.finish = finish_avx2;
  use.keep = keep_avx2;
  use.quantize = quantize_avx2;
#ifdef VNNI
  if (ECX_BEST >= 3 && has_avx512_vnni()) {
    kernels best = {multiply_512, multiply_bytes_512, 4, activate_512, finish_512,
                    keep_512, quantize_512, list_512, select_512};
    return best;
  }
  if (ECX_BEST >= 2 && has_avx_vnni()) {
    use.multiply = multiply_vnni;
    use.multiply_bytes = multiply_bytes_vnni;
    use.group = 4;
  }
#endif
  return use;
}

#else

#ifdef NEON
#include "kernels_neon.h"

#define MULTIPLY multiply_neon
PACK_ROW(pack_row, , uint32x4_t, vdupq_n_u32(0), pack_run_neon, vmaxvq_u32)
#else
#define MULTIPLY multiply_portable
PACK_ROW(pack_row, , uint32_t, 0, pack_run_base, )
#endif

static kernels pick_kernels(void) {
  kernels plain = {MULTIPLY, MULTIPLY, 2, activate_base, finish_base,
                   keep_base, quantize_base, list_base, select_base};
  return plain;
}
#endif

#endif
