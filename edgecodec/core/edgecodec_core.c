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
  int latent, hyper, hidden, features, levels;
  const int16_t *half_width; /* [levels] */
  const uint16_t *cdf[MAX_LEVELS]; /* 2 * half_width + 3 entries each; level 0 has none */
  const uint16_t *bucket[MAX_LEVELS]; /* first symbol that may hold a slot with these top bits */
  const int16_t *w1, *w2, *w3; /* rows padded to a multiple of 16 */
  int pad1, pad2, pad3;
  const int32_t *b1, *b2, *b3; /* b1 [100][hidden], b2 [4 features], b3 [M] of mu */
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
  int latent, hyper, hidden, features, levels;
  size_t half_width, frequencies, entries, weights, biases;
  size_t total;
} layout;

/* Find every array of the tables. Returns 0 where sizes do not add up to `length`. */
static int read_layout(const uint8_t *t, size_t length, layout *l) {
  static const uint8_t formats[8] = {4, 4, 4, 6, 2, 6, 4, 2};
  size_t at;
  int i;
  if (length < HEADER_BYTES || memcmp(t, MAGIC, 8) != 0 || u16_at(t + 8) != 1) return 0;
  l->latent = (int)u16_at(t + 10);
  l->hyper = (int)u16_at(t + 12);
  l->hidden = (int)u16_at(t + 14);
  l->features = (int)u16_at(t + 16);
  l->levels = t[19];
  if (t[18] != PRECISION || l->levels < 2 || l->levels > MAX_LEVELS) return 0;
  if (memcmp(t + 20, formats, 8) != 0 || u32_at(t + 28) != 0) return 0;
  if (l->latent < 1 || l->latent > MAX_CHANNELS || l->hyper < 1 || l->hyper > MAX_CHANNELS ||
      l->hidden < 1 || l->hidden > MAX_CHANNELS || l->features < 1 || l->features > MAX_CHANNELS)
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
        2u * (size_t)l->latent * (size_t)l->features;
  l->biases = at;
  at += 4u * (ECX_QUALITIES * (size_t)l->hidden + 4u * (size_t)l->features + (size_t)l->latent);
  at += 4u * ECX_QUALITIES * 3u * (size_t)l->latent;     /* index bias, step, gain of y */
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
  n += aligned(2u * (size_t)l.hidden * (size_t)pad16(l.hyper));
  n += aligned(2u * 4u * (size_t)l.features * (size_t)pad16(l.hidden));
  n += aligned(2u * 2u * m * (size_t)pad16(l.features));
  n += aligned(4u * ECX_QUALITIES * (size_t)l.hidden) + aligned(16u * (size_t)l.features);
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

static const float *copy_f32(arena *a, const uint8_t **from, size_t count) {
  float *to = (float *)take(a, 4 * count);
  size_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits = u32_at(*from + 4 * i);
    memcpy(&to[i], &bits, 4);
  }
  *from += 4 * count;
  return to;
}

static const int16_t *copy_weights(arena *a, const uint8_t **from, int rows, int columns) {
  int width = pad16(columns), r, c;
  int16_t *to = (int16_t *)take(a, 2u * (size_t)rows * (size_t)width);
  for (r = 0; r < rows; r++)
    for (c = 0; c < width; c++)
      to[r * width + c] =
          c < columns ? (int16_t)((*from)[r * columns + c] ^ 0x80) - 0x80 : (int16_t)0;
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
  if (need == 0 || !read_layout(tables, length, &l)) return ECX_TABLES;
  if (!memory || memory_bytes < need) return ECX_CAPACITY;
  memset(memory, 0, need);
  a.next = (uint8_t *)memory + aligned(sizeof(ecx_model));
  m->latent = l.latent;
  m->hyper = l.hyper;
  m->hidden = l.hidden;
  m->features = l.features;
  m->levels = l.levels;
  m->pad1 = pad16(l.hyper);
  m->pad2 = pad16(l.hidden);
  m->pad3 = pad16(l.features);
  if (!build_cdfs(m, &a, tables, &l)) return ECX_TABLES;
  from = tables + l.weights;
  m->w1 = copy_weights(&a, &from, l.hidden, l.hyper);
  m->w2 = copy_weights(&a, &from, 4 * l.features, l.hidden);
  m->w3 = copy_weights(&a, &from, 2 * l.latent, l.features);
  m->b1 = copy_i32(&a, &from, ECX_QUALITIES * (size_t)l.hidden);
  m->b2 = copy_i32(&a, &from, 4 * (size_t)l.features);
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
  m->gain_y = copy_f32(&a, &from, ECX_QUALITIES * (size_t)l.latent);
  /* With these bounds no accumulator of the hyper-synthesis can leave 32 bits. */
  for (i = 0; i < ECX_QUALITIES * (size_t)l.hidden; i++)
    if (m->b1[i] < -(1 << 23) || m->b1[i] > 1 << 23) return ECX_TABLES;
  for (i = 0; i < 4 * (size_t)l.features; i++)
    if (m->b2[i] < -(1 << 23) || m->b2[i] > 1 << 23) return ECX_TABLES;
  for (i = 0; i < (size_t)l.latent; i++)
    if (m->b3[i] < -(1 << 23) || m->b3[i] > 1 << 23) return ECX_TABLES;
  for (i = 0; i < ECX_QUALITIES * (size_t)l.latent; i++)
    if (m->index_bias[i] < -(1 << 23) || m->index_bias[i] > 1 << 23) return ECX_TABLES;
  return ECX_OK;
}

int ecx_latent_channels(const ecx_model *model) { return model->latent; }
int ecx_hyper_channels(const ecx_model *model) { return model->hyper; }

static int valid_size(const ecx_model *m, int quality, int zh, int zw) {
  return m && quality >= 1 && quality <= ECX_QUALITIES && zh >= 1 && zw >= 1 &&
         zh <= ECX_MAX_SIDE && zw <= ECX_MAX_SIDE;
}

/* ---- hyper-synthesis ---------------------------------------------------------------------- */

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__) && !defined(ECX_NO_DISPATCH)
#define DISPATCH_AVX2 1
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static
#endif

/* acc[p * rows + r] = bias[r] + sum over i of w[r][i] * x[p][i], for BLOCK inputs at once.
 * 16-bit factors and 32-bit sums: what compilers turn into multiply-add instructions. Separate
 * pointers, because `x[width + i]` would keep them from it where int is allowed to wrap. */
ALWAYS_INLINE void multiply_block(const int16_t *w, const int32_t *bias, const int16_t *x, int rows,
                                  int width, int32_t *acc) {
  const size_t n = (size_t)width;
  const int16_t *x1 = x + n, *x2 = x1 + n, *x3 = x2 + n;
  size_t i;
  int r;
  for (r = 0; r < rows; r++, w += n) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
    for (i = 0; i < n; i++) {
      a0 += (int32_t)w[i] * x[i];
      a1 += (int32_t)w[i] * x1[i];
      a2 += (int32_t)w[i] * x2[i];
      a3 += (int32_t)w[i] * x3[i];
    }
    acc[r] = bias[r] + a0;
    acc[rows + r] = bias[r] + a1;
    acc[2 * rows + r] = bias[r] + a2;
    acc[3 * rows + r] = bias[r] + a3;
  }
}

static void multiply_base(const int16_t *w, const int32_t *bias, const int16_t *x, int rows,
                          int width, int32_t *acc) {
  multiply_block(w, bias, x, rows, width, acc);
}

typedef void (*multiply_fn)(const int16_t *, const int32_t *, const int16_t *, int, int, int32_t *);

#ifdef DISPATCH_AVX2
__attribute__((target("avx2"))) static void multiply_avx2(const int16_t *w, const int32_t *bias,
                                                          const int16_t *x, int rows, int width,
                                                          int32_t *acc) {
  multiply_block(w, bias, x, rows, width, acc);
}
static multiply_fn pick_multiply(void) {
  return __builtin_cpu_supports("avx2") ? multiply_avx2 : multiply_base;
}
#else
static multiply_fn pick_multiply(void) { return multiply_base; }
#endif

typedef struct {
  int16_t input[BLOCK * MAX_CHANNELS], hidden[BLOCK * MAX_CHANNELS];
  int16_t feature[4 * BLOCK * MAX_CHANNELS];
  int32_t acc[BLOCK * 4 * MAX_CHANNELS];
  int32_t bias[2 * MAX_CHANNELS];
} network_scratch;

static int16_t activation(int32_t acc) {
  return (int16_t)clamp(shift_right(acc + 32, 6), 0, 255);
}

/* One block of up to BLOCK hyper-latents -> their features, [4 * block position + sub][features]. */
static void features_of(const ecx_model *m, int quality, const int16_t *z, int count,
                        multiply_fn multiply, network_scratch *n) {
  const int32_t *step = m->step_z + (size_t)(quality - 1) * (size_t)m->hyper;
  const int32_t *b1 = m->b1 + (size_t)(quality - 1) * (size_t)m->hidden;
  int rows = 4 * m->features, p, i, sub;
  memset(n->input, 0, 2u * BLOCK * (size_t)m->pad1);
  memset(n->hidden, 0, 2u * BLOCK * (size_t)m->pad2);
  memset(n->feature, 0, 2u * 4u * BLOCK * (size_t)m->pad3);
  for (p = 0; p < count; p++)
    for (i = 0; i < m->hyper; i++)
      n->input[p * m->pad1 + i] =
          (int16_t)clamp(shift_right(z[p * m->hyper + i] * step[i] + 8, 4), -2047, 2047);
  multiply(m->w1, b1, n->input, m->hidden, m->pad1, n->acc);
  for (p = 0; p < count; p++)
    for (i = 0; i < m->hidden; i++)
      n->hidden[p * m->pad2 + i] = activation(n->acc[p * m->hidden + i]);
  multiply(m->w2, m->b2, n->hidden, rows, m->pad2, n->acc);
  /* Pixel shuffle: row 4 * f + 2 * dy + dx belongs to feature f of the position (dy, dx). */
  for (p = 0; p < count; p++)
    for (i = 0; i < m->features; i++)
      for (sub = 0; sub < 4; sub++)
        n->feature[(4 * p + sub) * m->pad3 + i] = activation(n->acc[p * rows + 4 * i + sub]);
}

/* mu and scale index of one row of hyper-latents: two rows of latents. */
static void hyper_row(const ecx_model *m, int quality, int zw, const int16_t *z, int16_t *mu,
                      uint8_t *index, multiply_fn multiply, network_scratch *n) {
  int M = m->latent, width = 2 * zw, x, p, sub, c, top = m->levels - 1;
  memcpy(n->bias, m->b3, 4u * (size_t)M);
  memcpy(n->bias + M, m->index_bias + (size_t)(quality - 1) * (size_t)M, 4u * (size_t)M);
  for (x = 0; x < zw; x += BLOCK) {
    int count = zw - x < BLOCK ? zw - x : BLOCK;
    features_of(m, quality, z + (size_t)x * (size_t)m->hyper, count, multiply, n);
    for (p = 0; p < count; p++) {
      multiply(m->w3, n->bias, n->feature + 4 * p * m->pad3, 2 * M, m->pad3, n->acc);
      for (sub = 0; sub < 4; sub++) {
        size_t at = ((size_t)(sub >> 1) * (size_t)width + (size_t)(2 * (x + p) + (sub & 1))) *
                    (size_t)M;
        const int32_t *acc = n->acc + sub * 2 * M;
        for (c = 0; c < M; c++)
          mu[at + (size_t)c] = (int16_t)clamp(shift_right(acc[c] + 8, 4), -16384, 16384);
        for (c = 0; c < M; c++)
          index[at + (size_t)c] = (uint8_t)clamp(shift_right(acc[M + c] + 128, 8), 0, top);
      }
    }
  }
}

int ecx_hyper(const ecx_model *model, int quality, int zh, int zw, const int16_t *z, int16_t *mu,
              uint8_t *index) {
  network_scratch n;
  multiply_fn multiply = pick_multiply();
  size_t i, row, count;
  int y;
  if (!valid_size(model, quality, zh, zw)) return ECX_ARGUMENT;
  row = (size_t)zw * (size_t)model->hyper;
  count = (size_t)zh * row;
  for (i = 0; i < count; i++)
    if (z[i] < -ECX_HYPER_LIMIT || z[i] > ECX_HYPER_LIMIT) return ECX_ARGUMENT;
  for (y = 0; y < zh; y++) {
    size_t at = (size_t)y * 4u * (size_t)zw * (size_t)model->latent;
    hyper_row(model, quality, zw, z + (size_t)y * row, mu + at, index + at, multiply, &n);
  }
  return ECX_OK;
}

/* Rounds halves away from zero; NaN becomes 0. */
ALWAYS_INLINE void quantize_position(const float *y, const int16_t *mu, const uint8_t *index,
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

int ecx_quantize(const ecx_model *model, int quality, int zh, int zw, const float *y,
                 const int16_t *mu, const uint8_t *index, int16_t *s) {
  const float *gain;
  size_t p, positions, M;
  if (!valid_size(model, quality, zh, zw)) return ECX_ARGUMENT;
  M = (size_t)model->latent;
  gain = model->gain_y + (size_t)(quality - 1) * M;
  positions = 4u * (size_t)zh * (size_t)zw;
  for (p = 0; p < positions; p++)
    quantize_position(y + p * M, mu + p * M, index + p * M, gain, (int)M, s + p * M);
  return ECX_OK;
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
  for (i = 0; i < 4u * cells * (size_t)model->latent; i++) {
    if (index[i] >= model->levels || s[i] < -ECX_SYMBOL_LIMIT || s[i] > ECX_SYMBOL_LIMIT)
      return ECX_ARGUMENT;
    if (index[i]) push_symbol(&o, model, index[i], s[i]);
    else if (s[i]) return ECX_ARGUMENT;
  }
  /* Backwards, because rANS decodes in the opposite order; step k belongs to state k mod 2. */
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
 * bytes are left, and no branch depends on the data. */
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
  while (nibbles-- > 0) u = u << 4 | nibble(d);
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

/* The symbols of `count` channels whose levels are listed; 0 where one is out of range. */
ALWAYS_INLINE int read_listed(decoder *d, const ecx_model *m, const uint8_t *level,
                              const int16_t *channel, int count, int limit, int16_t *symbol,
                              int checked) {
  int i, worst = 0;
  for (i = 0; i < count; i++) {
    int s = read_symbol(d, m, level[channel[i]], checked);
    worst |= (s + limit) | (limit - s); /* negative as soon as one symbol is out of range */
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

size_t ecx_decode_scratch_bytes(const ecx_model *model, int zh, int zw) {
  if (!valid_size(model, 1, zh, zw)) return 0;
  /* mu and scale index of two rows of latents. */
  return 4u * (size_t)zw * (size_t)model->latent * 3u;
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

static int decode_y_position(const ecx_model *m, const int32_t *step, const uint8_t *level,
                             const int16_t *mu, decoder *d, int16_t *y_hat) {
  int16_t channel[MAX_CHANNELS], symbol[MAX_CHANNELS];
  int c, count = 0, status;
  memset(symbol, 0, 2u * (size_t)m->latent);
  for (c = 0; c < m->latent; c++) {
    channel[count] = (int16_t)c;
    count += level[c] != 0;
  }
  status = read_position(d, m, level, channel, count, ECX_SYMBOL_LIMIT, symbol);
  if (status != ECX_OK) return status;
  for (c = 0; c < m->latent; c++)
    y_hat[c] = (int16_t)clamp(shift_right(symbol[c] * step[c] + 32, 6) + mu[c], -32768, 32767);
  return ECX_OK;
}

int ecx_decode(const ecx_model *model, int quality, int zh, int zw, const uint8_t *data,
               size_t length, void *scratch, size_t scratch_bytes, int16_t *z, int16_t *y_hat) {
  network_scratch n;
  multiply_fn multiply = pick_multiply();
  decoder d;
  int16_t *mu = (int16_t *)scratch;
  uint8_t *index;
  const int32_t *step;
  size_t row, x, M;
  int y, status;
  if (!valid_size(model, quality, zh, zw)) return ECX_ARGUMENT;
  if (scratch_bytes < ecx_decode_scratch_bytes(model, zh, zw)) return ECX_CAPACITY;
  if (length < 8) return ECX_TRUNCATED;
  d.current = u32_at(data);
  d.other = u32_at(data + 4);
  d.next = data + 8;
  d.end = data + length;
  d.status = ECX_OK;
  if (d.current < STATE_LOW || d.other < STATE_LOW) return ECX_CORRUPT;
  status = decode_z(model, quality, (size_t)zh * (size_t)zw, &d, z);
  if (status != ECX_OK) return status;
  M = (size_t)model->latent;
  row = 4u * (size_t)zw; /* positions in two rows of latents */
  index = (uint8_t *)(mu + row * M);
  step = model->step_y + (size_t)(quality - 1) * M;
  for (y = 0; y < zh; y++) {
    hyper_row(model, quality, zw, z + (size_t)y * (size_t)zw * (size_t)model->hyper, mu, index,
              multiply, &n);
    for (x = 0; x < row; x++, y_hat += M) {
      status = decode_y_position(model, step, index + x * M, mu + x * M, &d, y_hat);
      if (status != ECX_OK) return status;
    }
  }
  /* The encoder began with both states at their lower bound: anything else is not its work. */
  if (d.next != d.end || d.current != STATE_LOW || d.other != STATE_LOW) return ECX_CORRUPT;
  return ECX_OK;
}
