/* See edgecodec_core.h and docs/FORMAT.md. */
#include "edgecodec_core.h"

#include <string.h>

/* ---- fixed numbers of the format ---------------------------------------------------------- */

#define PRECISION 14 /* probabilities are multiples of 2^-14 */
#define TOTAL (1u << PRECISION)
#define STATE_LOW (1u << 16) /* rANS states live in [2^16, 2^32) between symbols */
#define BUCKET_BITS 8
#define BUCKETS (1 << BUCKET_BITS)
#define NIBBLE_FREQUENCY (TOTAL >> 4)
#define MAX_LEVELS 64
#define MAX_HALF_WIDTH 2047
#define MAX_CHANNELS 512
#define HEADER_BYTES 32
#define OPS_PER_ESCAPE 6 /* the escape, the number of nibbles, at most four nibbles */
#define BLOCK 4          /* hyper-latents that go through the network together */

static const uint8_t MAGIC[8] = {0x89, 'E', 'C', 'T', '\r', '\n', 0x1a, '\n'};

struct ecx_model {
  int latent, hyper, hidden, features, context, levels;
  const int16_t *half_width; /* [levels] */
  const uint16_t *cdf[MAX_LEVELS]; /* 2 * half_width + 3 entries each; level 0 has none */
  const uint16_t *bucket[MAX_LEVELS]; /* first symbol that may hold a slot with these top bits */
  /* Weights in pairs of columns, [columns / 2][rows][2], rows and columns padded with zeros to
   * multiples of 16: the columns of w3 are features, then context; of wc[k], k + 1 latents. */
  const int16_t *w1, *w2, *w3, *wc[3];
  int pad_hyper, pad_hidden, pad_features, pad_context, pad_latent;
  const int32_t *b1, *b2, *b3; /* b1 [100][hidden], b2 [4 features], b3 [M] of mu */
  const int32_t *bc;           /* [3][context] */
  const int32_t *index_bias;   /* [100][M] */
  const int32_t *step_y;       /* [100][M] */
  const int32_t *step_z;       /* [100][Z] */
  const uint8_t *index_z;      /* [100][Z] */
  const float *gain_y;         /* [100][M], encoder only */
};

/* ---- reading the tables ------------------------------------------------------------------- */

static uint32_t u16_at(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32_at(const uint8_t *p) { return u16_at(p) | u16_at(p + 2) << 16; }

/* Right shift that rounds towards minus infinity, which C99 leaves open for negative numbers. */
static int32_t shift_right(int32_t v, int bits) { return v >= 0 ? v >> bits : ~(~v >> bits); }

static int32_t i32_at(const uint8_t *p) {
  uint32_t u = u32_at(p);
  return u < 0x80000000u ? (int32_t)u : -(int32_t)(0xffffffffu - u) - 1;
}

static int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

static int pad16(int n) { return (n + 15) & ~15; }

typedef struct {
  int latent, hyper, hidden, features, context, levels;
  size_t half_width, frequencies, entries, weights, biases;
  size_t total;
} layout;

/* Find every array of the tables. Returns 0 where sizes do not add up to `length`. */
static int read_layout(const uint8_t *t, size_t length, layout *l) {
  static const uint8_t formats[10] = {4, 4, 4, 6, 2, 6, 4, 2, 2, 0};
  size_t at;
  int i;
  if (length < HEADER_BYTES || memcmp(t, MAGIC, 8) != 0 || u16_at(t + 8) != 2) return 0;
  l->latent = (int)u16_at(t + 10);
  l->hyper = (int)u16_at(t + 12);
  l->hidden = (int)u16_at(t + 14);
  l->features = (int)u16_at(t + 16);
  l->context = (int)u16_at(t + 18);
  l->levels = t[21];
  if (t[20] != PRECISION || l->levels < 2 || l->levels > MAX_LEVELS) return 0;
  if (memcmp(t + 22, formats, 10) != 0) return 0;
  if (l->latent < 1 || l->latent > MAX_CHANNELS || l->hyper < 1 || l->hyper > MAX_CHANNELS ||
      l->hidden < 1 || l->hidden > MAX_CHANNELS || l->features < 1 || l->features > MAX_CHANNELS ||
      l->context < 1 || l->context > MAX_CHANNELS)
    return 0;
  l->half_width = HEADER_BYTES;
  at = l->frequencies = HEADER_BYTES + 2 * (size_t)l->levels;
  if (length < at || u16_at(t + l->half_width) != 0) return 0;
  l->entries = 0;
  for (i = 1; i < l->levels; i++) {
    size_t half = u16_at(t + l->half_width + 2 * (size_t)i);
    if (half < 1 || half > MAX_HALF_WIDTH) return 0;
    l->entries += 2 * half + 2;
  }
  at += 2 * l->entries;
  l->weights = at;
  at += (size_t)l->hidden * (size_t)l->hyper + 4u * (size_t)l->features * (size_t)l->hidden +
        6u * (size_t)l->latent * (size_t)l->context +
        2u * (size_t)l->latent * ((size_t)l->features + (size_t)l->context);
  l->biases = at;
  at += 4u * (ECX_QUALITIES * (size_t)l->hidden + 4u * (size_t)l->features +
              3u * (size_t)l->context + (size_t)l->latent);
  at += 4u * ECX_QUALITIES * 2u * (size_t)l->latent;     /* index bias and step of y */
  at += ECX_QUALITIES * (size_t)l->hyper * (4u + 1u + 4u); /* step, index, gain of z */
  l->total = at;
  return at == length;
}

static size_t aligned(size_t n) { return (n + 15u) & ~(size_t)15u; }

size_t ecx_model_bytes(const uint8_t *tables, size_t length) {
  layout l;
  size_t m, n;
  if (!tables || !read_layout(tables, length, &l)) return 0;
  m = (size_t)l.latent;
  n = aligned(sizeof(ecx_model)) + aligned(2u * (size_t)l.levels);
  n += aligned(2u * (l.entries + (size_t)l.levels));
  n += aligned(2u * BUCKETS * (size_t)l.levels);
  n += 2u * (size_t)pad16(l.hidden) * (size_t)pad16(l.hyper);
  n += 2u * (size_t)pad16(4 * l.features) * (size_t)pad16(l.hidden);
  n += 6u * 2u * (size_t)pad16(l.context) * (size_t)pad16(l.latent);
  n += 2u * (size_t)pad16(2 * l.latent) * (size_t)(pad16(l.features) + pad16(l.context));
  n += aligned(4u * ECX_QUALITIES * (size_t)l.hidden) + aligned(16u * (size_t)l.features);
  n += aligned(12u * (size_t)l.context);
  n += aligned(4u * m) + 3u * aligned(4u * ECX_QUALITIES * m);
  n += aligned(4u * ECX_QUALITIES * (size_t)l.hyper) + aligned(ECX_QUALITIES * (size_t)l.hyper);
  return n;
}

typedef struct {
  uint8_t *next;
} arena;

static void *take(arena *a, size_t bytes) {
  void *p = a->next;
  a->next += aligned(bytes);
  return p;
}

static const int32_t *copy_i32(arena *a, const uint8_t **from, size_t count) {
  int32_t *to = (int32_t *)take(a, 4 * count);
  size_t i;
  for (i = 0; i < count; i++) to[i] = i32_at(*from + 4 * i);
  *from += 4 * count;
  return to;
}

/* What an encoder multiplies y with: one over the step. */
static const float *gains(arena *a, const int32_t *step, size_t count) {
  float *to = (float *)take(a, 4 * count);
  size_t i;
  for (i = 0; i < count; i++) to[i] = 1024.0f / (float)step[i];
  return to;
}

/* Copy a block of columns, which lands at column `at`, in the order of pairs (see ecx_model). */
static void copy_block(int16_t *to, const uint8_t *from, int rows, int columns, int from_stride,
                       int at) {
  size_t pair = 2u * (size_t)pad16(rows);
  int r, c;
  for (r = 0; r < rows; r++, from += from_stride)
    for (c = 0; c < columns; c++)
      to[(size_t)((at + c) / 2) * pair + 2u * (size_t)r + (size_t)((at + c) % 2)] =
          (int16_t)((int16_t)(from[c] ^ 0x80) - 0x80);
}

/* A matrix of `parts` blocks of columns, each padded to a multiple of 16. */
static const int16_t *copy_weights(arena *a, const uint8_t **from, int rows, int columns,
                                   int parts) {
  int width = pad16(columns), k;
  int16_t *to = (int16_t *)take(a, 2u * (size_t)pad16(rows) * (size_t)(parts * width));
  for (k = 0; k < parts; k++)
    copy_block(to, *from + k * columns, rows, columns, parts * columns, k * width);
  *from += (size_t)rows * (size_t)columns * (size_t)parts;
  return to;
}

/* A matrix of two blocks of different widths: features, then context. */
static const int16_t *copy_heads(arena *a, const uint8_t **from, int rows, int features,
                                 int context) {
  int first = pad16(features), columns = features + context;
  int16_t *to =
      (int16_t *)take(a, 2u * (size_t)pad16(rows) * (size_t)(first + pad16(context)));
  copy_block(to, *from, rows, features, columns, 0);
  copy_block(to, *from + features, rows, context, columns, first);
  *from += (size_t)rows * (size_t)columns;
  return to;
}

/* Cumulative frequencies and the search accelerator of each level; 0 where a sum is wrong. */
static int build_cdfs(ecx_model *m, arena *a, const uint8_t *t, const layout *l) {
  const uint8_t *from = t + l->frequencies;
  int16_t *half = (int16_t *)take(a, 2u * (size_t)l->levels);
  uint16_t *cdf = (uint16_t *)take(a, 2u * (l->entries + (size_t)l->levels));
  uint16_t *bucket = (uint16_t *)take(a, 2u * BUCKETS * (size_t)l->levels);
  int i, k, b;
  m->half_width = half;
  for (i = 0; i < l->levels; i++)
    half[i] = i ? (int16_t)u16_at(t + l->half_width + 2 * (size_t)i) : (int16_t)0;
  m->cdf[0] = cdf;
  m->bucket[0] = bucket;
  for (i = 1; i < l->levels; i++) {
    int count = 2 * half[i] + 2;
    uint32_t sum = 0;
    cdf[0] = 0;
    for (k = 0; k < count; k++, from += 2) {
      uint32_t f = u16_at(from);
      sum += f;
      if (f == 0 || sum > TOTAL) return 0;
      cdf[k + 1] = (uint16_t)sum;
    }
    if (sum != TOTAL) return 0;
    for (k = 0, b = 0; b < BUCKETS; b++) {
      while (cdf[k + 1] <= (uint32_t)b << (PRECISION - BUCKET_BITS)) k++;
      bucket[b] = (uint16_t)k;
    }
    m->cdf[i] = cdf;
    m->bucket[i] = bucket;
    cdf += count + 1;
    bucket += BUCKETS;
  }
  return 1;
}

int ecx_model_init(void *memory, size_t memory_bytes, const uint8_t *tables, size_t length) {
  ecx_model *m = (ecx_model *)memory;
  const uint8_t *from;
  arena a;
  layout l;
  size_t i, n, need = ecx_model_bytes(tables, length);
  uint8_t *index_z;
  int k;
  if (need == 0 || !read_layout(tables, length, &l)) return ECX_TABLES;
  if (!memory || memory_bytes < need) return ECX_CAPACITY;
  memset(memory, 0, need);
  a.next = (uint8_t *)memory + aligned(sizeof(ecx_model));
  m->latent = l.latent;
  m->hyper = l.hyper;
  m->hidden = l.hidden;
  m->features = l.features;
  m->context = l.context;
  m->levels = l.levels;
  m->pad_hyper = pad16(l.hyper);
  m->pad_hidden = pad16(l.hidden);
  m->pad_features = pad16(l.features);
  m->pad_context = pad16(l.context);
  m->pad_latent = pad16(l.latent);
  if (!build_cdfs(m, &a, tables, &l)) return ECX_TABLES;
  from = tables + l.weights;
  m->w1 = copy_weights(&a, &from, l.hidden, l.hyper, 1);
  m->w2 = copy_weights(&a, &from, 4 * l.features, l.hidden, 1);
  for (k = 0; k < 3; k++) m->wc[k] = copy_weights(&a, &from, l.context, l.latent, k + 1);
  m->w3 = copy_heads(&a, &from, 2 * l.latent, l.features, l.context);
  m->b1 = copy_i32(&a, &from, ECX_QUALITIES * (size_t)l.hidden);
  m->b2 = copy_i32(&a, &from, 4 * (size_t)l.features);
  m->bc = copy_i32(&a, &from, 3u * (size_t)l.context);
  m->b3 = copy_i32(&a, &from, (size_t)l.latent);
  m->index_bias = copy_i32(&a, &from, ECX_QUALITIES * (size_t)l.latent);
  m->step_y = copy_i32(&a, &from, ECX_QUALITIES * (size_t)l.latent);
  m->step_z = copy_i32(&a, &from, ECX_QUALITIES * (size_t)l.hyper);
  n = ECX_QUALITIES * (size_t)l.hyper;
  index_z = (uint8_t *)take(&a, n);
  for (i = 0; i < n; i++) {
    index_z[i] = from[i];
    if (from[i] < 1 || from[i] >= l.levels) return ECX_TABLES;
    if (m->step_z[i] < 1 || m->step_z[i] > 32767) return ECX_TABLES;
  }
  m->index_z = index_z;
  from += n;
  for (i = 0; i < ECX_QUALITIES * (size_t)l.latent; i++)
    if (m->step_y[i] < 1 || m->step_y[i] > 131071) return ECX_TABLES;
  m->gain_y = gains(&a, m->step_y, ECX_QUALITIES * (size_t)l.latent);
  /* With these bounds no sum leaves 32 bits, whatever its order, as no partial sum exceeds the sum
   * of all magnitudes. Bias and rounding are at most 2^23 + 128, weights at most 128 in magnitude:
   *   hidden    512 * 128 * 2047         < 2^27, with bias < 2^28
   *   features  512 * 128 * 255          < 2^24, with bias < 2^25
   *   context   3 * 512 * 128 * 511      < 2^27, with bias < 2^27
   *   heads     (512 + 512) * 128 * 255  < 2^25, with bias < 2^26
   * Steps: 127 * 32767 + 8 < 2^22 for z and 8191 * 131071 + 32 < 2^30 for s.
   * tests/test_entropy_bounds.py gets there. */
  for (i = 0; i < ECX_QUALITIES * (size_t)l.hidden; i++)
    if (m->b1[i] < -(1 << 23) || m->b1[i] > 1 << 23) return ECX_TABLES;
  for (i = 0; i < 4 * (size_t)l.features; i++)
    if (m->b2[i] < -(1 << 23) || m->b2[i] > 1 << 23) return ECX_TABLES;
  for (i = 0; i < 3u * (size_t)l.context; i++)
    if (m->bc[i] < -(1 << 23) || m->bc[i] > 1 << 23) return ECX_TABLES;
  for (i = 0; i < (size_t)l.latent; i++)
    if (m->b3[i] < -(1 << 23) || m->b3[i] > 1 << 23) return ECX_TABLES;
  for (i = 0; i < ECX_QUALITIES * (size_t)l.latent; i++)
    if (m->index_bias[i] < -(1 << 23) || m->index_bias[i] > 1 << 23) return ECX_TABLES;
  return ECX_OK;
}

int ecx_latent_channels(const ecx_model *model) { return model->latent; }
int ecx_hyper_channels(const ecx_model *model) { return model->hyper; }
int ecx_levels(const ecx_model *model) { return model->levels; }

static int valid_size(const ecx_model *m, int quality, int zh, int zw) {
  return m && quality >= 1 && quality <= ECX_QUALITIES && zh >= 1 && zw >= 1 &&
         zh <= ECX_MAX_SIDE && zw <= ECX_MAX_SIDE;
}

/* ---- hyper-synthesis ---------------------------------------------------------------------- */

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__) && !defined(ECX_NO_DISPATCH)
#define DISPATCH_X86 1
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#include <immintrin.h>
#else
#define ALWAYS_INLINE static
#endif

/* acc[p * pad16(rows) + r] = bias[r] + sum over i < width of weight[r][i] * x[p * x_stride + i], for
 * BLOCK inputs at once and `width` even. Two columns at a time: with weights in pairs, 16-bit
 * factors multiply and add into 32-bit sums without a sum across lanes. Sums are exact, so that
 * their order does not matter. */
typedef void (*multiply_fn)(const int16_t *w, const int32_t *bias, const int16_t *x, int x_stride,
                            int rows, int width, int32_t *acc);

/* 16 biases from row r on; those of padding are 0. */
static const int32_t *bias_at(const int32_t *bias, int r, int rows, int32_t *room) {
  if (r + 16 <= rows) return bias + r;
  memset(room, 0, 64);
  memcpy(room, bias + r, 4u * (size_t)(rows - r));
  return room;
}

#ifndef DISPATCH_X86
static void multiply_portable(const int16_t *w, const int32_t *bias, const int16_t *x,
                              int x_stride, int rows, int width, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows);
  int32_t room[16];
  int r, i, p, j;
  for (r = 0; r < rows; r += 16) {
    const int32_t *first = bias_at(bias, r, rows, room);
    for (p = 0; p < BLOCK; p++) {
      const int16_t *from = w + 2 * r, *in = x + (size_t)p * (size_t)x_stride;
      int32_t sum[16];
      memcpy(sum, first, sizeof sum);
      for (i = 0; i < width; i += 2, from += 2u * padded) {
        int32_t a = in[i], b = in[i + 1];
        if (a || b)
          for (j = 0; j < 16; j++) sum[j] += from[2 * j] * a + from[2 * j + 1] * b;
      }
      memcpy(acc + (size_t)p * padded + r, sum, sizeof sum);
    }
  }
}
#else
ALWAYS_INLINE int32_t pair_at(const int16_t *x) {
  int32_t pair;
  memcpy(&pair, x, 4);
  return pair;
}

static void multiply_sse2(const int16_t *w, const int32_t *bias, const int16_t *x, int x_stride,
                          int rows, int width, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows);
  int32_t room[16];
  int r, i, p, half;
  for (r = 0; r < rows; r += 16) {
    const int32_t *first = bias_at(bias, r, rows, room);
    for (half = 0; half < 16; half += 8) {
      const int16_t *from = w + 2 * (r + half);
      __m128i low[BLOCK], high[BLOCK];
      for (p = 0; p < BLOCK; p++) {
        low[p] = _mm_loadu_si128((const __m128i *)(const void *)(first + half));
        high[p] = _mm_loadu_si128((const __m128i *)(const void *)(first + half + 4));
      }
      for (i = 0; i < width; i += 2, from += 2u * padded) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)from);
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(from + 8));
        for (p = 0; p < BLOCK; p++) {
          __m128i pair = _mm_set1_epi32(pair_at(x + (size_t)p * (size_t)x_stride + i));
          low[p] = _mm_add_epi32(low[p], _mm_madd_epi16(a, pair));
          high[p] = _mm_add_epi32(high[p], _mm_madd_epi16(b, pair));
        }
      }
      for (p = 0; p < BLOCK; p++) {
        int32_t *to = acc + (size_t)p * padded + r + half;
        _mm_storeu_si128((__m128i *)(void *)to, low[p]);
        _mm_storeu_si128((__m128i *)(void *)(to + 4), high[p]);
      }
    }
  }
}

__attribute__((target("avx2"))) static void multiply_avx2(const int16_t *w, const int32_t *bias,
                                                          const int16_t *x, int x_stride, int rows,
                                                          int width, int32_t *acc) {
  const size_t padded = (size_t)pad16(rows);
  int32_t room[16];
  int r, i, p;
  for (r = 0; r < rows; r += 16) {
    const int32_t *first = bias_at(bias, r, rows, room);
    const int16_t *from = w + 2 * r;
    __m256i low[BLOCK], high[BLOCK];
    for (p = 0; p < BLOCK; p++) {
      low[p] = _mm256_loadu_si256((const __m256i *)(const void *)first);
      high[p] = _mm256_loadu_si256((const __m256i *)(const void *)(first + 8));
    }
    for (i = 0; i < width; i += 2, from += 2u * padded) {
      __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)from);
      __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(from + 16));
      for (p = 0; p < BLOCK; p++) {
        __m256i pair = _mm256_set1_epi32(pair_at(x + (size_t)p * (size_t)x_stride + i));
        low[p] = _mm256_add_epi32(low[p], _mm256_madd_epi16(a, pair));
        high[p] = _mm256_add_epi32(high[p], _mm256_madd_epi16(b, pair));
      }
    }
    for (p = 0; p < BLOCK; p++) {
      int32_t *to = acc + (size_t)p * padded + r;
      _mm256_storeu_si256((__m256i *)(void *)to, low[p]);
      _mm256_storeu_si256((__m256i *)(void *)(to + 8), high[p]);
    }
  }
}
#endif

/* mu and scale index of one latent from the sums of its heads. */
ALWAYS_INLINE void finish_inline(const int32_t *sums, int count, int top, int16_t *mu,
                                 uint8_t *index) {
  int c;
  for (c = 0; c < count; c++) mu[c] = (int16_t)clamp(shift_right(sums[c] + 8, 4), -16384, 16384);
  for (c = 0; c < count; c++)
    index[c] = (uint8_t)clamp(shift_right(sums[count + c] + 128, 8), 0, top);
}

/* Residuals of one latent for the context of later ones; y_hat too unless it is NULL. */
ALWAYS_INLINE void keep_inline(const int16_t *s, const int32_t *step, const int16_t *mu, int count,
                               int16_t *kept, int16_t *y_hat) {
  int c;
  for (c = 0; c < count; c++)
    kept[c] = (int16_t)clamp(shift_right(shift_right(s[c] * step[c] + 32, 6) + 2, 2), -511, 511);
  if (y_hat)
    for (c = 0; c < count; c++)
      y_hat[c] = (int16_t)clamp(shift_right(s[c] * step[c] + 32, 6) + mu[c], -32768, 32767);
}

/* The loops that take time, for the instructions at hand; all give the same integers. */
typedef struct {
  multiply_fn multiply;
  void (*finish)(const int32_t *sums, int count, int top, int16_t *mu, uint8_t *index);
  void (*keep)(const int16_t *s, const int32_t *step, const int16_t *mu, int count, int16_t *kept,
               int16_t *y_hat);
} kernels;

static void finish_base(const int32_t *sums, int count, int top, int16_t *mu, uint8_t *index) {
  finish_inline(sums, count, top, mu, index);
}

static void keep_base(const int16_t *s, const int32_t *step, const int16_t *mu, int count,
                      int16_t *kept, int16_t *y_hat) {
  keep_inline(s, step, mu, count, kept, y_hat);
}

#ifdef DISPATCH_X86
__attribute__((target("avx2"))) static void finish_avx2(const int32_t *sums, int count, int top,
                                                        int16_t *mu, uint8_t *index) {
  finish_inline(sums, count, top, mu, index);
}

__attribute__((target("avx2"))) static void keep_avx2(const int16_t *s, const int32_t *step,
                                                      const int16_t *mu, int count, int16_t *kept,
                                                      int16_t *y_hat) {
  keep_inline(s, step, mu, count, kept, y_hat);
}

static kernels pick_kernels(void) {
  kernels avx2 = {multiply_avx2, finish_avx2, keep_avx2};
  kernels sse2 = {multiply_sse2, finish_base, keep_base};
  return __builtin_cpu_supports("avx2") ? avx2 : sse2;
}
#else
static kernels pick_kernels(void) {
  kernels portable = {multiply_portable, finish_base, keep_base};
  return portable;
}
#endif

/* The latents of a cell (one hyper-latent, 2x2 latents) in the order of coding: dy and dx. */
static const uint8_t CELL_Y[4] = {0, 1, 0, 1}, CELL_X[4] = {0, 1, 1, 0};

/* One row of cells on its way through the hyper-synthesis. Rows of cells beyond `zw` up to a
 * multiple of BLOCK hold zeros or what an earlier row left: computed, never used. */
typedef struct {
  const ecx_model *m;
  kernels use;
  int quality, zw, head_stride;
  int16_t *feature;  /* [cells][4 in order of coding][features, context] */
  int16_t *residual; /* [cells][3][pad_latent], of the latents coded before */
  int32_t bias[2 * MAX_CHANNELS];
  int16_t input[BLOCK * MAX_CHANNELS], hidden[BLOCK * MAX_CHANNELS];
  int32_t acc[BLOCK * 4 * MAX_CHANNELS];
  int16_t mu[BLOCK * MAX_CHANNELS]; /* of the latents in turn */
  uint8_t index[BLOCK * MAX_CHANNELS];
} row_state;

static size_t feature_values(const ecx_model *m, int zw) {
  size_t cells = (size_t)((zw + BLOCK - 1) / BLOCK * BLOCK);
  return cells * 4u * ((size_t)m->pad_features + (size_t)m->pad_context);
}

static size_t residual_values(const ecx_model *m, int zw) {
  return (size_t)((zw + BLOCK - 1) / BLOCK * BLOCK) * 3u * (size_t)m->pad_latent;
}

static size_t row_scratch_bytes(const ecx_model *m, int zw) {
  return 2u * (feature_values(m, zw) + residual_values(m, zw));
}

static void begin_rows(row_state *r, const ecx_model *m, int quality, int zw, void *scratch) {
  size_t M = (size_t)m->latent;
  r->m = m;
  r->use = pick_kernels();
  r->quality = quality;
  r->zw = zw;
  r->head_stride = m->pad_features + m->pad_context;
  r->feature = (int16_t *)scratch;
  r->residual = r->feature + feature_values(m, zw);
  memset(scratch, 0, row_scratch_bytes(m, zw)); /* the padding stays zero from here on */
  memset(r->input, 0, sizeof r->input);
  memset(r->hidden, 0, sizeof r->hidden);
  memcpy(r->bias, m->b3, 4u * M);
  memcpy(r->bias + M, m->index_bias + (size_t)(quality - 1) * M, 4u * M);
}

static int16_t activation(int32_t acc, int shift) {
  return (int16_t)clamp(shift_right(acc + (1 << (shift - 1)), shift), 0, 255);
}

/* One row of hyper-latents -> features of its cells. */
static void features_of_row(row_state *r, const int16_t *z) {
  const ecx_model *m = r->m;
  const int32_t *step = m->step_z + (size_t)(r->quality - 1) * (size_t)m->hyper;
  const int32_t *b1 = m->b1 + (size_t)(r->quality - 1) * (size_t)m->hidden;
  int rows = 4 * m->features, x, p, i, k;
  for (x = 0; x < r->zw; x += BLOCK) {
    int count = r->zw - x < BLOCK ? r->zw - x : BLOCK;
    for (p = 0; p < count; p++, z += m->hyper)
      for (i = 0; i < m->hyper; i++)
        r->input[p * m->pad_hyper + i] =
            (int16_t)clamp(shift_right(z[i] * step[i] + 8, 4), -2047, 2047);
    r->use.multiply(m->w1, b1, r->input, m->pad_hyper, m->hidden, m->pad_hyper, r->acc);
    for (p = 0; p < count; p++)
      for (i = 0; i < m->hidden; i++)
        r->hidden[p * m->pad_hidden + i] = activation(r->acc[p * m->pad_hidden + i], 6);
    r->use.multiply(m->w2, m->b2, r->hidden, m->pad_hidden, rows, m->pad_hidden, r->acc);
    /* Row 4 * f + 2 * dy + dx belongs to feature f of the latent (dy, dx). */
    for (p = 0; p < count; p++)
      for (k = 0; k < 4; k++) {
        int16_t *to = r->feature + (size_t)(4 * (x + p) + k) * (size_t)r->head_stride;
        const int32_t *acc = r->acc + p * pad16(rows) + 2 * CELL_Y[k] + CELL_X[k];
        for (i = 0; i < m->features; i++) to[i] = activation(acc[4 * i], 6);
      }
  }
}

/* mu and scale index of latent k (in order of coding) of BLOCK cells from cell x on. */
static void predict_block(row_state *r, int x, int k) {
  const ecx_model *m = r->m;
  int16_t *feature = r->feature + (size_t)(4 * x + k) * (size_t)r->head_stride;
  int M = m->latent, width = m->pad_features, top = m->levels - 1, p, c;
  if (k > 0) {
    r->use.multiply(m->wc[k - 1], m->bc + (k - 1) * m->context,
                r->residual + (size_t)x * 3u * (size_t)m->pad_latent, 3 * m->pad_latent,
                m->context, k * m->pad_latent, r->acc);
    for (p = 0; p < BLOCK; p++)
      for (c = 0; c < m->context; c++)
        feature[(size_t)(4 * p) * (size_t)r->head_stride + (size_t)(m->pad_features + c)] =
            activation(r->acc[p * m->pad_context + c], 4);
    width = r->head_stride;
  }
  r->use.multiply(m->w3, r->bias, feature, 4 * r->head_stride, 2 * M, width, r->acc);
  for (p = 0; p < BLOCK; p++)
    r->use.finish(r->acc + p * pad16(2 * M), M, top, r->mu + p * M, r->index + p * M);
}

/* Dequantize the symbols of latent k of cell x: remember for later latents of the cell how far it
 * lies from mu, and write y_hat unless it is NULL. */
static void keep_residual(row_state *r, int x, int k, const int16_t *s, const int16_t *mu,
                          int16_t *y_hat) {
  const ecx_model *m = r->m;
  const int32_t *step = m->step_y + (size_t)(r->quality - 1) * (size_t)m->latent;
  int16_t unused[MAX_CHANNELS];
  int16_t *kept =
      k < 3 ? r->residual + (size_t)(3 * x + k) * (size_t)m->pad_latent : unused;
  r->use.keep(s, step, mu, m->latent, kept, y_hat);
}

/* Position of latent k of a cell among those of a row of cells. */
static size_t place(int zw, int x, int k) {
  return (size_t)CELL_Y[k] * 2u * (size_t)zw + 2u * (size_t)x + CELL_X[k];
}

static int valid_z(const ecx_model *m, size_t cells, const int16_t *z) {
  size_t i, count = cells * (size_t)m->hyper;
  for (i = 0; i < count; i++)
    if (z[i] < -ECX_HYPER_LIMIT || z[i] > ECX_HYPER_LIMIT) return 0;
  return 1;
}

size_t ecx_scratch_bytes(const ecx_model *model, int zh, int zw) {
  return valid_size(model, 1, zh, zw) ? row_scratch_bytes(model, zw) : 0;
}

/* What each function below does with a latent whose mu and scale index are known: fill `symbol`.
 * `at` is its first value in (2*zh, 2*zw, M) arrays, `cell` its cell. */
typedef int (*visit_fn)(void *task, size_t at, size_t cell, const int16_t *mu,
                        const uint8_t *level, int16_t *symbol);

/* Visit all latents in the order of coding; y_hat is written unless it is NULL. */
static int walk(row_state *r, int zh, const int16_t *z, visit_fn visit, void *task,
                int16_t *y_hat) {
  const ecx_model *m = r->m;
  size_t M = (size_t)m->latent, zw = (size_t)r->zw;
  int16_t symbol[MAX_CHANNELS];
  int y, x, k, p;
  for (y = 0; y < zh; y++) {
    features_of_row(r, z + (size_t)y * zw * (size_t)m->hyper);
    for (k = 0; k < 4; k++)
      for (x = 0; x < r->zw; x += BLOCK) {
        predict_block(r, x, k);
        for (p = 0; p < BLOCK && x + p < r->zw; p++) {
          size_t at = ((size_t)y * 4u * zw + place(r->zw, x + p, k)) * M;
          const int16_t *mu = r->mu + (size_t)p * M;
          int status = visit(task, at, (size_t)y * zw + (size_t)(x + p), mu,
                             r->index + (size_t)p * M, symbol);
          if (status != ECX_OK) return status;
          keep_residual(r, x + p, k, symbol, mu, y_hat ? y_hat + at : NULL);
        }
      }
  }
  return ECX_OK;
}

/* The checks that predicting, quantizing and pricing share. */
static int check_tile(const ecx_model *m, int quality, int zh, int zw, const int16_t *z,
                      size_t scratch_bytes) {
  if (!valid_size(m, quality, zh, zw)) return ECX_ARGUMENT;
  if (scratch_bytes < row_scratch_bytes(m, zw)) return ECX_CAPACITY;
  return valid_z(m, (size_t)zh * (size_t)zw, z) ? ECX_OK : ECX_ARGUMENT;
}

typedef struct {
  const ecx_model *m;
  const int16_t *s;
  int16_t *mu;
  uint8_t *index;
} predict_task;

static int predict_visit(void *task, size_t at, size_t cell, const int16_t *mu,
                         const uint8_t *level, int16_t *symbol) {
  const predict_task *t = (const predict_task *)task;
  size_t M = (size_t)t->m->latent, c;
  (void)cell;
  memcpy(t->mu + at, mu, 2u * M);
  memcpy(t->index + at, level, M);
  for (c = 0; c < M; c++) symbol[c] = level[c] ? t->s[at + c] : (int16_t)0;
  return ECX_OK;
}

int ecx_predict(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
                const int16_t *s, void *scratch, size_t scratch_bytes, int16_t *mu,
                uint8_t *index) {
  row_state r;
  predict_task task;
  size_t i, count;
  int status = check_tile(model, quality, zh, zw, z, scratch_bytes);
  if (status != ECX_OK) return status;
  count = 4u * (size_t)zh * (size_t)zw * (size_t)model->latent;
  for (i = 0; i < count; i++)
    if (s[i] < -ECX_SYMBOL_LIMIT || s[i] > ECX_SYMBOL_LIMIT) return ECX_ARGUMENT;
  task.m = model;
  task.s = s;
  task.mu = mu;
  task.index = index;
  begin_rows(&r, model, quality, zw, scratch);
  return walk(&r, zh, z, predict_visit, &task, NULL);
}

/* Rounds halves away from zero; NaN becomes 0. */
ALWAYS_INLINE void quantize_latent(const float *y, const int16_t *mu, const uint8_t *index,
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

/* Move symbols towards zero where the bits saved are worth the error (see ecx_quantize). */
static void shrink_latent(const float *y, const int16_t *mu, const uint8_t *index,
                          const float *gain, const float *reluctance, int count, int16_t *s) {
  int c;
  for (c = 0; c < count; c++) {
    int k = s[c] < 0 ? -s[c] : s[c];
    const float *t = reluctance + (size_t)index[c] * ECX_RELUCTANCES;
    float v;
    if (k == 0) continue;
    v = (y[c] - (float)mu[c] * 0.0625f) * gain[c];
    v = v < 0.0f ? -v : v;
    while (k > 0 && v < (float)k - 0.5f + t[(k < ECX_RELUCTANCES ? k : ECX_RELUCTANCES) - 1]) k--;
    s[c] = (int16_t)(s[c] < 0 ? -k : k);
  }
}

/* Quantizing, and what its symbols would cost. */
typedef struct {
  const ecx_model *m;
  const float *y, *gain, *reluctance, *bits;
  float weight;
  int16_t *s;
  uint8_t *index;
  float *cost;
} quantize_task;

static void quantize_into(const quantize_task *t, size_t at, const int16_t *mu,
                          const uint8_t *level, int16_t *symbol) {
  quantize_latent(t->y + at, mu, level, t->gain, t->m->latent, symbol);
  if (t->reluctance)
    shrink_latent(t->y + at, mu, level, t->gain, t->reluctance, t->m->latent, symbol);
}

static int quantize_visit(void *task, size_t at, size_t cell, const int16_t *mu,
                          const uint8_t *level, int16_t *symbol) {
  const quantize_task *t = (const quantize_task *)task;
  size_t M = (size_t)t->m->latent;
  (void)cell;
  quantize_into(t, at, mu, level, symbol);
  memcpy(t->s + at, symbol, 2u * M);
  memcpy(t->index + at, level, M);
  return ECX_OK;
}

int ecx_quantize(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
                 const float *y, const float *reluctance, void *scratch, size_t scratch_bytes,
                 int16_t *s, uint8_t *index) {
  row_state r;
  quantize_task task;
  int status = check_tile(model, quality, zh, zw, z, scratch_bytes);
  if (status != ECX_OK) return status;
  memset(&task, 0, sizeof task);
  task.m = model;
  task.y = y;
  task.gain = model->gain_y + (size_t)(quality - 1) * (size_t)model->latent;
  task.reluctance = reluctance;
  task.s = s;
  task.index = index;
  begin_rows(&r, model, quality, zw, scratch);
  return walk(&r, zh, z, quantize_visit, &task, NULL);
}

size_t ecx_price_entries(const ecx_model *model) {
  int last = model->levels - 1;
  return (size_t)(model->cdf[last] - model->cdf[1]) + 2u * (size_t)model->half_width[last] + 3u;
}

/* Bits of one latent's symbols plus `weight` times their squared errors. */
static float price_latent(const ecx_model *m, const float *y, const int16_t *mu,
                          const uint8_t *index, const float *gain, const float *bits, float weight,
                          const int16_t *s) {
  float rate = 0.0f, error = 0.0f;
  int c;
  for (c = 0; c < m->latent; c++) {
    float v = (y[c] - (float)mu[c] * 0.0625f) * gain[c] - (float)s[c];
    int level = index[c];
    error += v * v;
    if (level) {
      const float *price = bits + (m->cdf[level] - m->cdf[1]);
      int half = m->half_width[level], k = s[c] < 0 ? -s[c] : s[c];
      /* An escape takes its count of nibbles and, mostly, one nibble: 4 bits each. */
      rate += k <= half ? price[s[c] + half] : price[2 * half + 1] + 8.0f;
    }
  }
  return rate + weight * error;
}

static int price_visit(void *task, size_t at, size_t cell, const int16_t *mu,
                       const uint8_t *level, int16_t *symbol) {
  const quantize_task *t = (const quantize_task *)task;
  quantize_into(t, at, mu, level, symbol);
  t->cost[cell] +=
      price_latent(t->m, t->y + at, mu, level, t->gain, t->bits, t->weight, symbol);
  return ECX_OK;
}

int ecx_price(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
              const float *y, const float *reluctance, const float *bits, float weight,
              void *scratch, size_t scratch_bytes, float *cost) {
  row_state r;
  quantize_task task;
  size_t i;
  int status = check_tile(model, quality, zh, zw, z, scratch_bytes);
  if (status != ECX_OK) return status;
  memset(&task, 0, sizeof task);
  task.m = model;
  task.y = y;
  task.gain = model->gain_y + (size_t)(quality - 1) * (size_t)model->latent;
  task.reluctance = reluctance;
  task.bits = bits;
  task.weight = weight;
  task.cost = cost;
  for (i = 0; i < (size_t)zh * (size_t)zw; i++) cost[i] = 0.0f;
  begin_rows(&r, model, quality, zw, scratch);
  return walk(&r, zh, z, price_visit, &task, NULL);
}

/* ---- rANS encoder -------------------------------------------------------------------------- */

/* One coding step: start in the upper, frequency in the lower half. */
typedef struct {
  uint32_t *ops;
  size_t count;
} op_list;

static void push(op_list *o, uint32_t start, uint32_t frequency) {
  o->ops[o->count++] = start << 16 | frequency;
}

/* A symbol beyond the table: escape, then the number of nibbles, then the nibbles, highest first. */
static void push_escape(op_list *o, const uint16_t *cdf, int half, int s) {
  uint32_t u = s < 0 ? ((uint32_t)(-s - half - 1) << 1 | 1u) : (uint32_t)(s - half - 1) << 1;
  uint32_t nibbles = 0, k;
  push(o, cdf[2 * half + 1], TOTAL - cdf[2 * half + 1]);
  while (nibbles < 4 && u >> (4 * nibbles)) nibbles++;
  push(o, nibbles * NIBBLE_FREQUENCY, NIBBLE_FREQUENCY);
  for (k = nibbles; k-- > 0;) push(o, (u >> (4 * k) & 15u) * NIBBLE_FREQUENCY, NIBBLE_FREQUENCY);
}

static void push_symbol(op_list *o, const ecx_model *m, int level, int s) {
  const uint16_t *cdf = m->cdf[level];
  int half = m->half_width[level];
  int k = s + half;
  if (k < 0 || k > 2 * half) {
    push_escape(o, cdf, half, s);
    return;
  }
  push(o, cdf[k], (uint32_t)cdf[k + 1] - cdf[k]);
}

/* The largest size there is: it and those of the binding must fit where size_t has 32 bits. */
#if 4 * OPS_PER_ESCAPE * ECX_MAX_SIDE * ECX_MAX_SIDE * 5 * MAX_CHANNELS > 0x7fffffff
#error "a tile of ECX_MAX_SIDE needs more than 31 bits for its sizes"
#endif

size_t ecx_encode_scratch_bytes(const ecx_model *model, int zh, int zw) {
  size_t cells;
  if (!valid_size(model, 1, zh, zw)) return 0;
  cells = (size_t)zh * (size_t)zw;
  return 4u * OPS_PER_ESCAPE * cells * ((size_t)model->hyper + 4u * (size_t)model->latent);
}

size_t ecx_encode_bound(const ecx_model *model, int zh, int zw) {
  /* Every step moves at most 16 bits out of its state. */
  return 8u + ecx_encode_scratch_bytes(model, zh, zw) / 2u;
}

/* The symbols of a row of cells in the order of coding; 0 where one is out of range. */
static int push_row(op_list *o, const ecx_model *m, int zw, const uint8_t *index,
                    const int16_t *s) {
  int k, x, c;
  for (k = 0; k < 4; k++)
    for (x = 0; x < zw; x++) {
      size_t at = place(zw, x, k) * (size_t)m->latent;
      const uint8_t *level = index + at;
      const int16_t *symbol = s + at;
      for (c = 0; c < m->latent; c++) {
        if (level[c] >= m->levels || symbol[c] < -ECX_SYMBOL_LIMIT || symbol[c] > ECX_SYMBOL_LIMIT)
          return 0;
        if (level[c]) push_symbol(o, m, level[c], symbol[c]);
        else if (symbol[c]) return 0;
      }
    }
  return 1;
}

int ecx_encode(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
               const uint8_t *index, const int16_t *s, void *scratch, size_t scratch_bytes,
               uint8_t *out, size_t capacity, size_t *written) {
  op_list o;
  const uint8_t *index_z;
  size_t cells, i, at;
  uint32_t state[2] = {STATE_LOW, STATE_LOW};
  int c;
  if (!valid_size(model, quality, zh, zw)) return ECX_ARGUMENT;
  if (scratch_bytes < ecx_encode_scratch_bytes(model, zh, zw)) return ECX_CAPACITY;
  o.ops = (uint32_t *)scratch;
  o.count = 0;
  cells = (size_t)zh * (size_t)zw;
  index_z = model->index_z + (size_t)(quality - 1) * (size_t)model->hyper;
  for (i = 0; i < cells; i++, z += model->hyper)
    for (c = 0; c < model->hyper; c++) {
      if (z[c] < -ECX_HYPER_LIMIT || z[c] > ECX_HYPER_LIMIT) return ECX_ARGUMENT;
      push_symbol(&o, model, index_z[c], z[c]);
    }
  for (i = 0; i < (size_t)zh; i++) {
    size_t row = i * 4u * (size_t)zw * (size_t)model->latent;
    if (!push_row(&o, model, zw, index + row, s + row)) return ECX_ARGUMENT;
  }
  /* Backwards, because rANS decodes in the opposite order; step k belongs to state k mod 2.
   *
   * A state x in [2^16, 2^32) stays there. With f <= 2^14 - 3 (a table has four entries at least),
   * start + f <= 2^14: where x >= f * 2^18 a word goes out, and one is enough, as x >> 16 < 2^16.
   * Then x < f * 2^18, so that the new state is at most (2^18 - 1) * 2^14 + (f - 1) + start < 2^32;
   * and x >= 4 * f either way, so that it is at least 4 * 2^14 = 2^16. */
  at = capacity;
  for (i = o.count; i-- > 0;) {
    uint32_t start = o.ops[i] >> 16, f = o.ops[i] & 0xffffu, x = state[i & 1];
    if (x >> (32 - PRECISION) >= f) {
      if (at < 2) return ECX_CAPACITY;
      at -= 2;
      out[at] = (uint8_t)x;
      out[at + 1] = (uint8_t)(x >> 8);
      x >>= 16;
    }
    state[i & 1] = (x / f << PRECISION) + x % f + start;
  }
  if (at < 8) return ECX_CAPACITY;
  for (c = 1; c >= 0; c--)
    for (i = 4; i-- > 0;) out[--at] = (uint8_t)(state[c] >> (8 * i));
  *written = capacity - at;
  memmove(out, out + at, *written);
  return ECX_OK;
}

/* ---- rANS decoder -------------------------------------------------------------------------- */

typedef struct {
  uint32_t current, other; /* the state of the next step, and the one after it */
  const uint8_t *next, *end;
  int status; /* ECX_OK until something is wrong */
} decoder;

/* Undo one step; the two states take turns. Without `checked` the caller has made sure that two
 * bytes are left, and no branch depends on the data.
 *
 * Of any state in [2^16, 2^32) this makes at most f * (2^18 - 1) + f - 1 < 2^32, and at least
 * f * 4 >= 4: one word brings it back to 2^16 or more. */
ALWAYS_INLINE void advance(decoder *d, uint32_t start, uint32_t frequency, int checked) {
  uint32_t x = frequency * (d->current >> PRECISION) + (d->current & (TOTAL - 1)) - start;
  d->current = d->other;
  if (!checked) {
    uint32_t low = x < STATE_LOW, word = u16_at(d->next);
    x = low ? x << 16 | word : x;
    d->next += 2u * low;
  } else if (x < STATE_LOW) {
    if (d->end - d->next < 2) {
      if (d->status == ECX_OK) d->status = ECX_TRUNCATED;
      x = STATE_LOW;
    } else {
      x = x << 16 | u16_at(d->next);
      d->next += 2;
    }
  }
  d->other = x;
}

static uint32_t nibble(decoder *d) {
  uint32_t v = (d->current & (TOTAL - 1)) / NIBBLE_FREQUENCY;
  advance(d, v * NIBBLE_FREQUENCY, NIBBLE_FREQUENCY, 1);
  return v;
}

static int read_escape(decoder *d, int half) {
  uint32_t nibbles = nibble(d), u = 0;
  if (nibbles > 4) {
    if (d->status == ECX_OK) d->status = ECX_CORRUPT;
    return 0;
  }
  while (nibbles-- > 0) u = u << 4 | nibble(d); /* below 2^16 */
  return u & 1u ? -(int)(u >> 1) - half - 1 : (int)(u >> 1) + half + 1;
}

ALWAYS_INLINE int read_symbol(decoder *d, const ecx_model *m, int level, int checked) {
  const uint16_t *cdf = m->cdf[level];
  uint32_t slot = d->current & (TOTAL - 1);
  int half = m->half_width[level];
  int k = m->bucket[level][slot >> (PRECISION - BUCKET_BITS)];
  while (cdf[k + 1] <= slot) k++;
  advance(d, cdf[k], (uint32_t)cdf[k + 1] - cdf[k], checked);
  return k > 2 * half ? read_escape(d, half) : k - half;
}

/* The symbols of `count` channels whose levels are listed; 0 where one is out of range. Where bytes
 * may be missing too, the first thing wrong is what counts. */
ALWAYS_INLINE int read_listed(decoder *d, const ecx_model *m, const uint8_t *level,
                              const int16_t *channel, int count, int limit, int16_t *symbol,
                              int checked) {
  int i, worst = 0;
  for (i = 0; i < count; i++) {
    int s = read_symbol(d, m, level[channel[i]], checked);
    worst |= (s + limit) | (limit - s); /* negative as soon as one symbol is out of range */
    if (checked && worst < 0 && d->status == ECX_OK) d->status = ECX_CORRUPT;
    symbol[channel[i]] = (int16_t)s;
  }
  return worst >= 0;
}

/* Read one position. As long as even the longest codes fit in what is left, ends of data are
 * looked for only between positions. */
static int read_position(decoder *d, const ecx_model *m, const uint8_t *level,
                         const int16_t *channel, int count, int limit, int16_t *symbol) {
  int good;
  if (d->end - d->next >= 2 * OPS_PER_ESCAPE * count)
    good = read_listed(d, m, level, channel, count, limit, symbol, 0);
  else
    good = read_listed(d, m, level, channel, count, limit, symbol, 1);
  if (d->status != ECX_OK) return d->status;
  return good ? ECX_OK : ECX_CORRUPT;
}

static int decode_z(const ecx_model *m, int quality, size_t cells, decoder *d, int16_t *z) {
  const uint8_t *level = m->index_z + (size_t)(quality - 1) * (size_t)m->hyper;
  int16_t channel[MAX_CHANNELS];
  size_t i;
  int c;
  for (c = 0; c < m->hyper; c++) channel[c] = (int16_t)c;
  for (i = 0; i < cells; i++, z += m->hyper) {
    int status = read_position(d, m, level, channel, m->hyper, ECX_HYPER_LIMIT, z);
    if (status != ECX_OK) return status;
  }
  return ECX_OK;
}

typedef struct {
  const ecx_model *m;
  decoder *d;
} decode_task;

static int decode_visit(void *task, size_t at, size_t cell, const int16_t *mu,
                        const uint8_t *level, int16_t *symbol) {
  const decode_task *t = (const decode_task *)task;
  int16_t channel[MAX_CHANNELS];
  int c, count = 0;
  (void)at;
  (void)cell;
  (void)mu;
  memset(symbol, 0, 2u * (size_t)t->m->latent);
  for (c = 0; c < t->m->latent; c++) {
    channel[count] = (int16_t)c;
    count += level[c] != 0;
  }
  return read_position(t->d, t->m, level, channel, count, ECX_SYMBOL_LIMIT, symbol);
}

int ecx_decode(const ecx_model *model, int quality, int zh, int zw, const uint8_t *data,
               size_t length, void *scratch, size_t scratch_bytes, int16_t *z, int16_t *y_hat) {
  row_state r;
  decoder d;
  decode_task task;
  int status;
  if (!valid_size(model, quality, zh, zw)) return ECX_ARGUMENT;
  if (scratch_bytes < row_scratch_bytes(model, zw)) return ECX_CAPACITY;
  if (length < 8) return ECX_TRUNCATED;
  d.current = u32_at(data);
  d.other = u32_at(data + 4);
  d.next = data + 8;
  d.end = data + length;
  d.status = ECX_OK;
  if (d.current < STATE_LOW || d.other < STATE_LOW) return ECX_CORRUPT;
  status = decode_z(model, quality, (size_t)zh * (size_t)zw, &d, z);
  if (status != ECX_OK) return status;
  begin_rows(&r, model, quality, zw, scratch);
  task.m = model;
  task.d = &d;
  status = walk(&r, zh, z, decode_visit, &task, y_hat);
  if (status != ECX_OK) return status;
  /* The encoder began with both states at their lower bound: anything else is not its work. */
  if (d.next != d.end || d.current != STATE_LOW || d.other != STATE_LOW) return ECX_CORRUPT;
  return ECX_OK;
}
