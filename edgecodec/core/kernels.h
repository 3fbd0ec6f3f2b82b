/* The loops that take time, in plain C, and what loops for certain instructions share with them. */
#ifndef EDGECODEC_KERNELS_H
#define EDGECODEC_KERNELS_H

#include <string.h>

#include "edgecodec_core.h"

#define MAX_LEVELS 64
#define MAX_CHANNELS 512
#define BLOCK 8 /* hyper-latents that go through the network together */

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__) && !defined(ECX_NO_DISPATCH)
#define DISPATCH_X86 1
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static
#endif

#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__) && \
    !defined(ECX_NO_DISPATCH)
#define NEON 1 /* of every 64-bit Arm: no need to ask */
#endif

/* Right shift that rounds towards minus infinity, which C99 leaves open for negative numbers. */
static int32_t shift_right(int32_t v, int bits) { return v >= 0 ? v >> bits : ~(~v >> bits); }

static int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

static int pad16(int n) { return (n + 15) & ~15; }

/* acc[p * pad16(rows) + r] = bias[r] + sum over i < width of weight[r][i] * x[p * x_stride + i], for
 * BLOCK inputs at once and `width` a multiple of 16. Weights lie in groups of 16 rows, in a group
 * some columns at a time: [pad16(rows) / 16][columns / g][16][g], zeros beyond the rows. With g = 2
 * they are of 16 bits, as pairs of factors multiply and add into 32-bit sums without a sum across
 * lanes; with g = 4 of 8 bits, for processors that do so with four bytes, of which those of x are
 * unsigned. Sums are exact, so that their order does not matter. */
typedef void (*multiply_fn)(const void *w, int columns, const int32_t *bias, const int16_t *x,
                            int x_stride, int rows, int width, int32_t *acc);

/* The loops for the instructions at hand; whichever they are, they give the same integers. */
typedef struct {
  multiply_fn multiply;       /* any 16-bit factors, weights in groups of 2 columns */
  multiply_fn multiply_bytes; /* x in 0..255, weights in groups of `group` columns */
  int group;
  /* Sums to inputs of the next layer, 0..255. */
  void (*activate)(const int32_t *sums, int count, int shift, int16_t *to);
  /* mu and scale index of one latent from the sums of its heads. */
  void (*finish)(const int32_t *sums, int count, int top, int16_t *mu, uint8_t *index);
  /* Residuals of one latent for the context of later ones; y_hat too unless it is NULL. */
  void (*keep)(const int16_t *s, const int32_t *step, const int16_t *mu, int count, int16_t *kept,
               int16_t *y_hat);
  /* Symbols of one latent, see ecx_quantize. */
  void (*quantize)(const float *y, const int16_t *mu, const uint8_t *index, const float *gain,
                   int count, int16_t *s);
  /* The channels whose level is not 0; room for 16 more than there are. Returns their number. */
  int (*list)(const uint8_t *level, int count, int16_t *channel);
  /* entry = base[level] + s of the channels whose level is not 0; returns their number, or -1 where
   * a level is not below `levels` or a magnitude above that of its level: then what lies in `entry`
   * means nothing. `base` and `half` have MAX_LEVELS entries. */
  int (*select)(const uint8_t *level, const int16_t *s, int count, const int32_t *base,
                const int16_t *half, int levels, uint32_t *entry);
} kernels;

/* 16 biases from row r on; those of padding are 0. */
static const int32_t *bias_at(const int32_t *bias, int r, int rows, int32_t *room) {
  if (r + 16 <= rows) return bias + r;
  memset(room, 0, 64);
  memcpy(room, bias + r, 4u * (size_t)(rows - r));
  return room;
}

/* Where the weights of the 16 rows from r on begin, whose columns take `bytes` each. */
static const void *weights_at(const void *w, int r, int columns, size_t bytes) {
  return (const uint8_t *)w + (size_t)r * (size_t)columns * bytes;
}

ALWAYS_INLINE void activate_inline(const int32_t *sums, int count, int shift, int16_t *to) {
  int i;
  for (i = 0; i < count; i++)
    to[i] = (int16_t)clamp(shift_right(sums[i] + (1 << (shift - 1)), shift), 0, 255);
}

ALWAYS_INLINE void finish_inline(const int32_t *sums, int count, int top, int16_t *mu,
                                 uint8_t *index) {
  const int32_t *scale = sums + count; /* apart: with -fwrapv, count + c might start anew at 0 */
  int c;
  for (c = 0; c < count; c++) mu[c] = (int16_t)clamp(shift_right(sums[c] + 8, 4), -16384, 16384);
  for (c = 0; c < count; c++) index[c] = (uint8_t)clamp(shift_right(scale[c] + 128, 8), 0, top);
}

ALWAYS_INLINE void keep_inline(const int16_t *s, const int32_t *step, const int16_t *mu, int count,
                               int16_t *kept, int16_t *y_hat) {
  int c;
  for (c = 0; c < count; c++)
    kept[c] = (int16_t)clamp(shift_right(shift_right(s[c] * step[c] + 32, 6) + 2, 2), -511, 511);
  if (y_hat)
    for (c = 0; c < count; c++)
      y_hat[c] = (int16_t)clamp(shift_right(s[c] * step[c] + 32, 6) + mu[c], -32768, 32767);
}

/* Rounds halves away from zero; NaN becomes 0. */
ALWAYS_INLINE void quantize_inline(const float *y, const int16_t *mu, const uint8_t *index,
                                   const float *gain, int count, int16_t *s) {
  const float limit = (float)ECX_SYMBOL_LIMIT;
  int c;
  for (c = 0; c < count; c++) {
    float v = (y[c] - (float)mu[c] * 0.0625f) * gain[c];
    v = v > -limit ? v : (v < 0.0f ? -limit : 0.0f);
    v = v < limit ? v : limit;
    s[c] = (int16_t)((int32_t)(v + (v < 0.0f ? -0.5f : 0.5f)) & -(int32_t)(index[c] != 0));
  }
}

static void activate_base(const int32_t *sums, int count, int shift, int16_t *to) {
  activate_inline(sums, count, shift, to);
}

static void finish_base(const int32_t *sums, int count, int top, int16_t *mu, uint8_t *index) {
  finish_inline(sums, count, top, mu, index);
}

static void keep_base(const int16_t *s, const int32_t *step, const int16_t *mu, int count,
                      int16_t *kept, int16_t *y_hat) {
  keep_inline(s, step, mu, count, kept, y_hat);
}

static void quantize_base(const float *y, const int16_t *mu, const uint8_t *index,
                          const float *gain, int count, int16_t *s) {
  quantize_inline(y, mu, index, gain, count, s);
}

/* Without a branch that depends on the data, which no processor could foresee. */
static int list_base(const uint8_t *level, int count, int16_t *channel) {
  int c, found = 0;
  for (c = 0; c < count; c++) {
    channel[found] = (int16_t)c;
    found += level[c] != 0;
  }
  return found;
}

static int select_base(const uint8_t *level, const int16_t *s, int count, const int32_t *base,
                       const int16_t *half, int levels, uint32_t *entry) {
  int c, found = 0, strange = 0;
  for (c = 0; c < count; c++) {
    int i = level[c] & (MAX_LEVELS - 1), v = s[c];
    strange |= (half[i] + v) | (half[i] - v) | (levels - 1 - level[c]); /* negative if it is */
    entry[found] = (uint32_t)(base[i] + v);
    found += level[c] != 0;
  }
  return strange < 0 ? -1 : found;
}

#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u

/* The comparisons let NaN fall to 0. Beside that the bits of the largest magnitude are kept: as whole
 * numbers they grow with it, and those of infinity and NaN are above all others. */
ALWAYS_INLINE void pack_inline(const float *levels, size_t pixels, uint8_t *samples,
                               uint32_t *largest) {
  uint32_t most = *largest;
  for (; pixels > 0; pixels--, levels += 3, samples += 4) {
    int i;
    for (i = 0; i < 3; i++) {
      float v = levels[i] + 0.5f;
      uint32_t bits;
      memcpy(&bits, levels + i, sizeof bits);
      bits &= MAGNITUDE;
      most = bits > most ? bits : most;
      v = v > 0.0f ? v : 0.0f;
      v = v < 255.0f ? v : 255.0f;
      samples[i] = (uint8_t)(int32_t)v;
    }
    samples[3] = 255;
  }
  *largest = most;
}

typedef struct {
  const float *levels;
  size_t width, stride;
  uint8_t *samples;
  int side, rows;
} square_row;

/* A row of squares by a function for the pixels that lie beside each other. Largest magnitudes are
 * kept by it in `most`, which stays in a register, and in `rest`. Returns whether all are finite. */
#define PACK_ROW(name, target, words, none, pack_run, largest_of)                          \
  target static int name(const square_row *r) {                                            \
    const size_t side = (size_t)r->side, run = 3 * side;                                   \
    words most = none;                                                                     \
    uint32_t rest = 0;                                                                     \
    size_t x;                                                                              \
    int i;                                                                                 \
    for (x = 0; x < r->width; x += side) {                                                 \
      const size_t left = r->width - x, pixels = left < side ? left : side;                \
      for (i = 0; i < r->rows; i++)                                                        \
        pack_run(r->levels + (x + (size_t)i) * run, pixels,                                \
                 r->samples + (size_t)i * r->stride + 4 * x, &most, &rest);                \
    }                                                                                      \
    return rest < INFINITE && largest_of(most) < INFINITE;                                 \
  }

#ifndef NEON
ALWAYS_INLINE void pack_run_base(const float *levels, size_t pixels, uint8_t *samples,
                                 uint32_t *most, uint32_t *rest) {
  (void)most;
  pack_inline(levels, pixels, samples, rest);
}
#endif

#if !defined(NEON) && !defined(DISPATCH_X86)
static void multiply_portable(const void *w, int columns, const int32_t *bias, const int16_t *x,
                              int x_stride, int rows, int width, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows);
  int32_t room[16];
  int r, i, p, j;
  for (r = 0; r < rows; r += 16) {
    const int32_t *first = bias_at(bias, r, rows, room);
    for (p = 0; p < BLOCK; p++) {
      const int16_t *from = (const int16_t *)weights_at(w, r, columns, 2);
      const int16_t *in = x + (size_t)p * (size_t)x_stride;
      int32_t sum[16];
      memcpy(sum, first, sizeof sum);
      for (i = 0; i < width; i += 2, from += 32) {
        int32_t a = in[i], b = in[i + 1];
        if (a || b)
          for (j = 0; j < 16; j++) sum[j] += from[2 * j] * a + from[2 * j + 1] * b;
      }
      memcpy(acc + (size_t)p * padded + r, sum, sizeof sum);
    }
  }
}
#endif

#endif
