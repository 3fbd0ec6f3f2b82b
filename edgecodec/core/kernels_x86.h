/* The loops for x86-64: SSE2, which all have, AVX2, AVX-VNNI, AVX-512 with VNNI. */
#ifndef EDGECODEC_KERNELS_X86_H
#define EDGECODEC_KERNELS_X86_H

#include <cpuid.h>
#include <immintrin.h>

#include "kernels.h"

ALWAYS_INLINE int32_t word_at(const void *x) {
  int32_t word;
  memcpy(&word, x, 4);
  return word;
}

static void multiply_sse2(const void *w, int columns, const int32_t *bias, const int16_t *x,
                          int x_stride, int rows, int width, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows), stride = (size_t)x_stride;
  int32_t room[16];
  int r, i, p, part;
  for (r = 0; r < rows; r += 16) {
    const int32_t *first = bias_at(bias, r, rows, room);
    for (part = 0; part < 2 * BLOCK / 4; part++) { /* 8 rows of 4 inputs */
      const int half = part % 2 * 8;
      const int16_t *in = x + (size_t)(part / 2 * 4) * stride;
      const int16_t *from = (const int16_t *)weights_at(w, r, columns, 2) + 2 * half;
      int32_t *to = acc + (size_t)(part / 2 * 4) * padded + r + half;
      __m128i low[4], high[4];
      for (p = 0; p < 4; p++) {
        low[p] = _mm_loadu_si128((const __m128i *)(const void *)(first + half));
        high[p] = _mm_loadu_si128((const __m128i *)(const void *)(first + half + 4));
      }
      for (i = 0; i < width; i += 2, from += 32) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)from);
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(from + 8));
        for (p = 0; p < 4; p++) {
          __m128i pair = _mm_set1_epi32(word_at(in + (size_t)p * stride + i));
          low[p] = _mm_add_epi32(low[p], _mm_madd_epi16(a, pair));
          high[p] = _mm_add_epi32(high[p], _mm_madd_epi16(b, pair));
        }
      }
      for (p = 0; p < 4; p++, to += padded) {
        _mm_storeu_si128((__m128i *)(void *)to, low[p]);
        _mm_storeu_si128((__m128i *)(void *)(to + 4), high[p]);
      }
    }
  }
}

#define AVX2 __attribute__((target("avx2")))

AVX2 static void multiply_avx2(const void *w, int columns, const int32_t *bias, const int16_t *x,
                               int x_stride, int rows, int width, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows), stride = (size_t)x_stride;
  int32_t room[16];
  int r, i, p, part;
  for (r = 0; r < rows; r += 16) {
    const int32_t *first = bias_at(bias, r, rows, room);
    for (part = 0; part < BLOCK; part += 4) {
      const int16_t *in = x + (size_t)part * stride;
      const int16_t *from = (const int16_t *)weights_at(w, r, columns, 2);
      int32_t *to = acc + (size_t)part * padded + r;
      __m256i low[4], high[4];
      for (p = 0; p < 4; p++) {
        low[p] = _mm256_loadu_si256((const __m256i *)(const void *)first);
        high[p] = _mm256_loadu_si256((const __m256i *)(const void *)(first + 8));
      }
      for (i = 0; i < width; i += 2, from += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)from);
        __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(from + 16));
        for (p = 0; p < 4; p++) {
          __m256i pair = _mm256_set1_epi32(word_at(in + (size_t)p * stride + i));
          low[p] = _mm256_add_epi32(low[p], _mm256_madd_epi16(a, pair));
          high[p] = _mm256_add_epi32(high[p], _mm256_madd_epi16(b, pair));
        }
      }
      for (p = 0; p < 4; p++, to += padded) {
        _mm256_storeu_si256((__m256i *)(void *)to, low[p]);
        _mm256_storeu_si256((__m256i *)(void *)(to + 8), high[p]);
      }
    }
  }
}

AVX2 static void activate_avx2(const int32_t *sums, int count, int shift, int16_t *to) {
  activate_inline(sums, count, shift, to);
}

AVX2 static void finish_avx2(const int32_t *sums, int count, int top, int16_t *mu,
                             uint8_t *index) {
  finish_inline(sums, count, top, mu, index);
}

AVX2 static void keep_avx2(const int16_t *s, const int32_t *step, const int16_t *mu, int count,
                           int16_t *kept, int16_t *y_hat) {
  keep_inline(s, step, mu, count, kept, y_hat);
}

AVX2 static void quantize_avx2(const float *y, const int16_t *mu, const uint8_t *index,
                               const float *gain, int count, int16_t *s) {
  quantize_inline(y, mu, index, gain, count, s);
}

AVX2 static inline __m256i pack_eight(const float *levels, __m256i *largest) {
  const __m256 given = _mm256_loadu_ps(levels);
  const __m256i bits = _mm256_and_si256(_mm256_castps_si256(given), _mm256_set1_epi32(MAGNITUDE));
  __m256 v = _mm256_add_ps(given, _mm256_set1_ps(0.5f));
  *largest = _mm256_max_epu32(*largest, bits);
  v = _mm256_max_ps(v, _mm256_setzero_ps()); /* the second operand where the first is NaN */
  return _mm256_cvttps_epi32(_mm256_min_ps(v, _mm256_set1_ps(255.0f)));
}

/* Eight pixels at a time. Packing takes turns between the halves of its operands; of what it makes
 * the first half gets back the three words of four pixels, and so does the second. */
AVX2 static inline void pack_run_avx2(const float *levels, size_t pixels, uint8_t *samples,
                                      __m256i *most, uint32_t *rest) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 1, 5, 2, 6, 6);
  const __m256i spread = _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1, 0, 1,
                                          2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
  const __m256i opaque = _mm256_set1_epi32((int32_t)0xff000000u);
  for (; pixels >= 8; pixels -= 8, levels += 24, samples += 32) {
    __m256i a = pack_eight(levels, most), b = pack_eight(levels + 8, most);
    __m256i c = pack_eight(levels + 16, most);
    __m256i all = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, c));
    all = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(all, order), spread);
    _mm256_storeu_si256((__m256i *)(void *)samples, _mm256_or_si256(all, opaque));
  }
  pack_inline(levels, pixels, samples, rest);
}

AVX2 static inline uint32_t largest_of_eight(__m256i words) {
  uint32_t each[8], most = 0;
  int i;
  _mm256_storeu_si256((__m256i *)(void *)each, words);
  for (i = 0; i < 8; i++) most = each[i] > most ? each[i] : most;
  return most;
}


/* Dot products in one instruction, as of GCC 11 and clang 14. This is not the form that saturates:
 * all products are added exactly, four of bytes (each at most 255 * 128 in magnitude) or two of 16
 * bits, and the order of additions does not matter (see ecx_model_init for the largest sums). */
#if (defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && __GNUC__ >= 11)
#define VNNI 1
#endif

#ifdef VNNI
/* The inputs of a block as bytes, one after another. */
ALWAYS_INLINE void pack_bytes(const int16_t *x, size_t stride, int width, uint8_t *to) {
  int p, i;
  for (p = 0; p < BLOCK; p++)
    for (i = 0; i < width; i++) to[p * width + i] = (uint8_t)x[(size_t)p * stride + (size_t)i];
}

#define AVX_VNNI __attribute__((target("avx2,avxvnni")))

/* A step takes 4 bytes of each input, two of 16 bits or four of 8, and those of 16 rows. */
#define AVX_VNNI_LOOP(dot, columns_bytes, steps, in, in_stride)                             \
  for (r = 0; r < rows; r += 16) {                                                          \
    const int32_t *first = bias_at(bias, r, rows, room);                                    \
    for (part = 0; part < BLOCK; part += 4) {                                               \
      const uint8_t *at = (const uint8_t *)(in) + (size_t)part * (in_stride);               \
      const uint8_t *from = (const uint8_t *)weights_at(w, r, columns, columns_bytes);      \
      int32_t *to = acc + (size_t)part * padded + r;                                        \
      __m256i low[4], high[4];                                                              \
      for (p = 0; p < 4; p++) {                                                             \
        low[p] = _mm256_loadu_si256((const __m256i *)(const void *)first);                  \
        high[p] = _mm256_loadu_si256((const __m256i *)(const void *)(first + 8));           \
      }                                                                                     \
      for (i = 0; i < (steps); i++, from += 64) {                                           \
        __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)from);                \
        __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(from + 32));         \
        for (p = 0; p < 4; p++) {                                                           \
          __m256i v = _mm256_set1_epi32(word_at(at + (size_t)p * (in_stride) + 4 * i));     \
          low[p] = dot(low[p], v, a);                                                       \
          high[p] = dot(high[p], v, b);                                                     \
        }                                                                                   \
      }                                                                                     \
      for (p = 0; p < 4; p++, to += padded) {                                               \
        _mm256_storeu_si256((__m256i *)(void *)to, low[p]);                                 \
        _mm256_storeu_si256((__m256i *)(void *)(to + 8), high[p]);                          \
      }                                                                                     \
    }                                                                                       \
  }

AVX_VNNI static void multiply_vnni(const void *w, int columns, const int32_t *bias,
                                   const int16_t *x, int x_stride, int rows, int width,
                                   int32_t *acc) {
  const size_t padded = (size_t)pad16(rows), stride = 2u * (size_t)x_stride;
  int32_t room[16];
  int r, i, p, part;
  AVX_VNNI_LOOP(_mm256_dpwssd_avx_epi32, 2, width / 2, x, stride)
}

AVX_VNNI static void multiply_bytes_vnni(const void *w, int columns, const int32_t *bias,
                                         const int16_t *x, int x_stride, int rows, int width,
                                         int32_t *acc) {
  const size_t padded = (size_t)pad16(rows), stride = (size_t)width;
  uint8_t bytes[BLOCK * 2 * MAX_CHANNELS];
  int32_t room[16];
  int r, i, p, part;
  pack_bytes(x, (size_t)x_stride, width, bytes);
  AVX_VNNI_LOOP(_mm256_dpbusd_avx_epi32, 1, width / 4, bytes, stride)
}

#define AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE_512 AVX512 static inline __attribute__((always_inline))

/* A mask of 16 lanes, or of the `count` first where there are fewer. */
INLINE_512 __mmask16 first_lanes(int count) {
  return (__mmask16)(count < 16 ? (1u << count) - 1u : 0xffffu);
}

/* `tiles` times 16 rows of all inputs: the sums stay in registers, and each weight is loaded once.
 * `group` is 2 or 4; a step takes 4 bytes of each input, `stride` bytes from one to the next. */
INLINE_512 void tile_512(const uint8_t *w, size_t w_stride, const int32_t *bias, int r, int rows,
                         const uint8_t *in, size_t stride, int steps, const int group,
                         const int tiles, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows);
  __m512i sum[3][BLOCK];
  int i, p, t;
  for (t = 0; t < tiles; t++) {
    __m512i first = _mm512_maskz_loadu_epi32(first_lanes(rows - r - 16 * t), bias + r + 16 * t);
    for (p = 0; p < BLOCK; p++) sum[t][p] = first;
  }
  for (i = 0; i < steps; i++) {
    __m512i v[3];
    for (t = 0; t < tiles; t++) v[t] = _mm512_loadu_si512(w + (size_t)t * w_stride + 64 * i);
    for (p = 0; p < BLOCK; p++) {
      __m512i x = _mm512_set1_epi32(word_at(in + (size_t)p * stride + 4 * i));
      for (t = 0; t < tiles; t++)
        sum[t][p] = group == 4 ? _mm512_dpbusd_epi32(sum[t][p], x, v[t])
                               : _mm512_dpwssd_epi32(sum[t][p], x, v[t]);
    }
  }
  for (t = 0; t < tiles; t++)
    for (p = 0; p < BLOCK; p++)
      _mm512_storeu_si512(acc + (size_t)p * padded + r + 16 * t, sum[t][p]);
}

INLINE_512 void product_512(const void *w, int columns, const int32_t *bias, const uint8_t *in,
                            size_t stride, int rows, int width, const int group, int32_t *acc) {
  const size_t bytes = group == 4 ? 1 : 2, w_stride = 16u * (size_t)columns * bytes;
  const int steps = width / group;
  int r, rest;
  for (r = 0; (rest = rows - r) > 0;) {
    const uint8_t *from = (const uint8_t *)weights_at(w, r, columns, bytes);
    if (rest > 32) {
      tile_512(from, w_stride, bias, r, rows, in, stride, steps, group, 3, acc);
      r += 48;
    } else if (rest > 16) {
      tile_512(from, w_stride, bias, r, rows, in, stride, steps, group, 2, acc);
      r += 32;
    } else {
      tile_512(from, w_stride, bias, r, rows, in, stride, steps, group, 1, acc);
      r += 16;
    }
  }
}

AVX512 static void multiply_512(const void *w, int columns, const int32_t *bias, const int16_t *x,
                                int x_stride, int rows, int width, int32_t *acc) {
  product_512(w, columns, bias, (const uint8_t *)x, 2u * (size_t)x_stride, rows, width, 2, acc);
}

AVX512 static void multiply_bytes_512(const void *w, int columns, const int32_t *bias,
                                      const int16_t *x, int x_stride, int rows, int width,
                                      int32_t *acc) {
  uint8_t bytes[BLOCK * 2 * MAX_CHANNELS];
  int p, i;
  for (p = 0; p < BLOCK; p++)
    for (i = 0; i < width; i += 16) {
      const int16_t *from = x + (size_t)p * (size_t)x_stride + i;
      __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)from);
      _mm_storeu_si128((__m128i *)(void *)(bytes + p * width + i), _mm256_cvtepi16_epi8(v));
    }
  product_512(w, columns, bias, bytes, (size_t)width, rows, width, 4, acc);
}

AVX512 static void activate_512(const int32_t *sums, int count, int shift, int16_t *to) {
  activate_inline(sums, count, shift, to);
}

AVX512 static void finish_512(const int32_t *sums, int count, int top, int16_t *mu,
                              uint8_t *index) {
  finish_inline(sums, count, top, mu, index);
}

AVX512 static void keep_512(const int16_t *s, const int32_t *step, const int16_t *mu, int count,
                            int16_t *kept, int16_t *y_hat) {
  keep_inline(s, step, mu, count, kept, y_hat);
}

AVX512 static void quantize_512(const float *y, const int16_t *mu, const uint8_t *index,
                                const float *gain, int count, int16_t *s) {
  quantize_inline(y, mu, index, gain, count, s);
}

AVX512 static int list_512(const uint8_t *level, int count, int16_t *channel) {
  const __m512i step = _mm512_set1_epi32(16);
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int c, found = 0;
  for (c = 0; c < count; c += 16) {
    __mmask16 there = first_lanes(count - c), used;
    __m128i v = _mm_maskz_loadu_epi8(there, level + c);
    used = _mm_test_epi8_mask(v, v);
    _mm256_storeu_si256((__m256i *)(void *)(channel + found),
                        _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(used, number)));
    found += __builtin_popcount(used);
    number = _mm512_add_epi32(number, step);
  }
  return found;
}

AVX512 static int select_512(const uint8_t *level, const int16_t *s, int count,
                             const int32_t *base, const int16_t *half, int levels,
                             uint32_t *entry) {
  const __m512i base0 = _mm512_loadu_si512(base), base1 = _mm512_loadu_si512(base + 16);
  const __m512i base2 = _mm512_loadu_si512(base + 32), base3 = _mm512_loadu_si512(base + 48);
  const __m512i half0 = _mm512_loadu_si512(half), half1 = _mm512_loadu_si512(half + 32);
  const __m512i top = _mm512_set1_epi32(levels - 1), upper = _mm512_set1_epi32(32);
  __mmask16 strange = 0;
  int c, found = 0;
  for (c = 0; c < count; c += 16) {
    __mmask16 there = first_lanes(count - c), used;
    __m512i i = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, level + c));
    __m512i v = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(there, s + c));
    /* The entries of `half` lie two to a lane: the index in the lower half of a lane finds one. */
    __m512i most = _mm512_and_si512(_mm512_permutex2var_epi16(half0, i, half1),
                                    _mm512_set1_epi32(0xffff));
    __m512i first = _mm512_mask_blend_epi32(_mm512_test_epi32_mask(i, upper),
                                            _mm512_permutex2var_epi32(base0, i, base1),
                                            _mm512_permutex2var_epi32(base2, i, base3));
    strange |= _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(v), most);
    strange |= _mm512_cmpgt_epi32_mask(i, top);
    used = _mm512_test_epi32_mask(i, i);
    /* Only those that count: the caller's room may end behind them. */
    _mm512_mask_storeu_epi32(entry + found, first_lanes(__builtin_popcount(used)),
                             _mm512_maskz_compress_epi32(used, _mm512_add_epi32(first, v)));
    found += __builtin_popcount(used);
  }
  return strange ? -1 : found;
}

/* Few compilers' __builtin_cpu_supports knows of these. Of AVX2 and AVX-512 it says whether the
 * system keeps the registers, too. */
static int has_avx512_vnni(void) {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1u);
}

static int has_avx_vnni(void) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1u);
}
#endif

#endif
