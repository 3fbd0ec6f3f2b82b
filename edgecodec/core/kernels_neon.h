/* The loops for 64-bit Arm. */
#ifndef EDGECODEC_KERNELS_NEON_H
#define EDGECODEC_KERNELS_NEON_H

#include <arm_neon.h>

#include "kernels.h"

/* Two columns of 16 rows for 4 inputs, whose factors are in two lanes of `v`. */
#define NEON_PAIR(even, odd)                                                             \
  do {                                                                                   \
    int16x8x2_t a = vld2q_s16(from), b = vld2q_s16(from + 16);                           \
    for (p = 0; p < 4; p++) {                                                            \
      sum[p][0] = vmlal_lane_s16(sum[p][0], vget_low_s16(a.val[0]), v[p], even);         \
      sum[p][1] = vmlal_lane_s16(sum[p][1], vget_high_s16(a.val[0]), v[p], even);        \
      sum[p][2] = vmlal_lane_s16(sum[p][2], vget_low_s16(b.val[0]), v[p], even);         \
      sum[p][3] = vmlal_lane_s16(sum[p][3], vget_high_s16(b.val[0]), v[p], even);        \
      sum[p][0] = vmlal_lane_s16(sum[p][0], vget_low_s16(a.val[1]), v[p], odd);          \
      sum[p][1] = vmlal_lane_s16(sum[p][1], vget_high_s16(a.val[1]), v[p], odd);         \
      sum[p][2] = vmlal_lane_s16(sum[p][2], vget_low_s16(b.val[1]), v[p], odd);          \
      sum[p][3] = vmlal_lane_s16(sum[p][3], vget_high_s16(b.val[1]), v[p], odd);         \
    }                                                                                    \
    from += 32;                                                                          \
  } while (0)

static void multiply_neon(const void *w, int columns, const int32_t *bias, const int16_t *x,
                          int x_stride, int rows, int width, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows), stride = (size_t)x_stride;
  int32_t room[16];
  int r, i, j, p, part;
  for (r = 0; r < rows; r += 16) {
    const int32_t *first = bias_at(bias, r, rows, room);
    for (part = 0; part < BLOCK; part += 4) {
      const int16_t *in = x + (size_t)part * stride;
      const int16_t *from = (const int16_t *)weights_at(w, r, columns, 2);
      int32_t *to = acc + (size_t)part * padded + r;
      int32x4_t sum[4][4];
      int16x4_t v[4];
      for (p = 0; p < 4; p++)
        for (j = 0; j < 4; j++) sum[p][j] = vld1q_s32(first + 4 * j);
      for (i = 0; i < width; i += 4) {
        for (p = 0; p < 4; p++) v[p] = vld1_s16(in + (size_t)p * stride + i);
        NEON_PAIR(0, 1);
        NEON_PAIR(2, 3);
      }
      for (p = 0; p < 4; p++, to += padded)
        for (j = 0; j < 4; j++) vst1q_s32(to + 4 * j, sum[p][j]);
    }
  }
}

/* Four values: the conversion makes 0 of what is negative and of NaN. */
ALWAYS_INLINE uint16x4_t pack_four(float32x4_t given, uint32x4_t *largest) {
  const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(given), vdupq_n_u32(MAGNITUDE));
  const uint32x4_t whole = vcvtq_u32_f32(vaddq_f32(given, vdupq_n_f32(0.5f)));
  *largest = vmaxq_u32(*largest, bits);
  return vqmovn_u32(whole);
}

ALWAYS_INLINE void pack_run_neon(const float *levels, size_t pixels, uint8_t *samples,
                                 uint32x4_t *most, uint32_t *rest) {
  for (; pixels >= 8; pixels -= 8, levels += 24, samples += 32) {
    const float32x4x3_t low = vld3q_f32(levels), high = vld3q_f32(levels + 12);
    uint8x8x4_t out;
    int c;
    for (c = 0; c < 3; c++)
      out.val[c] = vqmovn_u16(
          vcombine_u16(pack_four(low.val[c], most), pack_four(high.val[c], most)));
    out.val[3] = vdup_n_u8(255);
    vst4_u8(samples, out);
  }
  pack_inline(levels, pixels, samples, rest);
}

#endif
