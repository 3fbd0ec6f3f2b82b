/* See edgecodec_core.h and docs/FORMAT.md. */
#include "edgecodec_core.h"

#include <string.h>

#include "dispatch.h"

/* ---- fixed numbers of the format ---------------------------------------------------------- */

#define PRECISION 14 /* probabilities are multiples of 2^-14 */
#define TOTAL (1u << PRECISION)
#define STATE_LOW (1u << 16) /* rANS states live in [2^16, 2^32) between symbols */
#define BUCKET_BITS 7
#define BUCKETS (1 << BUCKET_BITS)
#define NIBBLE_FREQUENCY (TOTAL >> 4)
#define MAX_HALF_WIDTH 2047
#define HEADER_BYTES 32
#define OPS_PER_ESCAPE 6 /* the escape, the number of nibbles, at most four nibbles */

static const uint8_t MAGIC[8] = {0x89, 'E', 'C', 'T', '\r', '\n', 0x1a, '\n'};

/* ---- pixels ------------------------------------------------------------------------------- */

/* A row of single pixels lies in memory as one row of a square as wide as the picture. */
int ecx_pack(const float *levels, int side, size_t width, int rows, uint8_t *samples,
             size_t stride) {
  square_row r;
  r.levels = levels;
  r.width = width;
  r.stride = stride;
  r.samples = samples;
  r.side = side == 1 ? (int)width : side;
  r.rows = rows;
  return pack_row(&r);
}

/* ---- the model ------------------------------------------------------------------------------ */

/* What a decoder needs to know of the slots with the same BUCKET_BITS top bits: the symbol of the
 * first of them, where it starts, its frequency, and what to add for that of the next symbol.
 * Frequencies of escapes are 0 here. */
typedef struct {
  uint16_t start, frequency, next;
  int16_t symbol;
} find_entry;

/* What an encoder needs to know of a symbol; `inverse` is floor(2^46 / frequency) + 1. */
typedef struct {
  uint64_t inverse;
  uint16_t start, frequency;
} code_entry;

/* The latents of a cell (one hyper-latent, 2x2 latents) in the order of coding: dy and dx. */
static const uint8_t CELL_Y[4] = {0, 1, 0, 1}, CELL_X[4] = {0, 1, 1, 0};

struct ecx_model {
  int latent, hyper, hidden, features, context, levels;
  const int16_t *half_width; /* [levels] */
  const uint16_t *cdf[MAX_LEVELS]; /* 2 * half_width + 3 entries each; level 0 has none */
  const find_entry *find; /* [levels][BUCKETS] */
  const code_entry *code; /* of all symbols and escapes, level after level, then of nibbles */
  uint32_t nibble;               /* where in `code` the nibbles are */
  int32_t code_base[MAX_LEVELS]; /* where in `code` symbol 0 of a level is */
  int16_t code_half[MAX_LEVELS]; /* half_width, and 0 beyond the last level */
  kernels use;
  /* Weights as the kernels want them, columns padded with zeros to multiples of 16: those of w3
   * are features, then context; those of wc[k] are k + 1 latents. w2[k] and b2[k] belong to the
   * features of latent k in order of coding. */
  const void *w1, *w2[4], *w3, *wc[3];
  int pad_hyper, pad_hidden, pad_features, pad_context, pad_latent;
  const int32_t *b1, *b2[4], *b3; /* b1 [100][hidden], b2 [4][features], b3 [M] of mu */
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

static int32_t i32_at(const uint8_t *p) {
  uint32_t u = u32_at(p);
  return u < 0x80000000u ? (int32_t)u : -(int32_t)(0xffffffffu - u) - 1;
}

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

/* To lines of the cache, which vectors of weights should not straddle. */
static size_t aligned(size_t n) { return (n + 63u) & ~(size_t)63u; }

size_t ecx_model_bytes(const uint8_t *tables, size_t length) {
  layout l;
  size_t m, n;
  if (!tables || !read_layout(tables, length, &l)) return 0;
  m = (size_t)l.latent;
  n = aligned(sizeof(ecx_model)) + aligned(2u * (size_t)l.levels);
  n += aligned(2u * (l.entries + (size_t)l.levels));
  n += aligned(sizeof(find_entry) * BUCKETS * (size_t)l.levels);
  n += aligned(sizeof(code_entry) * (l.entries + 16u));
  n += 2u * (size_t)pad16(l.hidden) * (size_t)pad16(l.hyper);
  n += 4u * 2u * (size_t)pad16(l.features) * (size_t)pad16(l.hidden);
  n += 6u * 2u * (size_t)pad16(l.context) * (size_t)pad16(l.latent);
  n += 2u * (size_t)pad16(2 * l.latent) * (size_t)(pad16(l.features) + pad16(l.context));
  n += aligned(4u * ECX_QUALITIES * (size_t)l.hidden) + 4u * aligned(4u * (size_t)l.features);
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

/* How a matrix lies in the tables and in a model. */
typedef struct {
  const uint8_t *from;
  int row_stride; /* from one row to the next in the tables */
  int rows, group, columns; /* of all columns in the model, see multiply_fn */
} matrix;

/* Copy a block of columns, which lands at column `at`. */
static void copy_block(void *to, const matrix *w, int first, int columns, int at) {
  int r, c;
  for (r = 0; r < w->rows; r++)
    for (c = 0; c < columns; c++) {
      int column = at + c, g = w->group;
      size_t place = (size_t)(r / 16) * 16u * (size_t)w->columns +
                     (size_t)(column / g * 16 * g + r % 16 * g + column % g);
      int16_t v = (int16_t)((int16_t)(w->from[r * w->row_stride + first + c] ^ 0x80) - 0x80);
      if (g == 4) ((int8_t *)to)[place] = (int8_t)v;
      else ((int16_t *)to)[place] = v;
    }
}

/* Room for a matrix, of 16-bit weights at most. */
static void *take_weights(arena *a, const matrix *w) {
  return take(a, 2u * (size_t)pad16(w->rows) * (size_t)w->columns);
}

/* A matrix of `parts` blocks of columns, each padded to a multiple of 16. */
static const void *copy_weights(arena *a, const uint8_t **from, int rows, int columns, int parts,
                                int group) {
  int width = pad16(columns), k;
  matrix w = {*from, parts * columns, rows, group, parts * width};
  void *to = take_weights(a, &w);
  for (k = 0; k < parts; k++) copy_block(to, &w, k * columns, columns, k * width);
  *from += (size_t)rows * (size_t)columns * (size_t)parts;
  return to;
}

/* The four matrices of the features: row 4 * f + 2 * dy + dx of the tables belongs to feature f of
 * the latent (dy, dx). */
static void copy_features(ecx_model *m, arena *a, const uint8_t **from) {
  int k;
  for (k = 0; k < 4; k++) {
    matrix w = {*from + (2 * CELL_Y[k] + CELL_X[k]) * m->hidden, 4 * m->hidden, m->features,
                m->use.group, m->pad_hidden};
    void *to = take_weights(a, &w);
    copy_block(to, &w, 0, m->hidden, 0);
    m->w2[k] = to;
  }
  *from += 4u * (size_t)m->features * (size_t)m->hidden;
}

static void copy_feature_biases(ecx_model *m, arena *a, const uint8_t **from) {
  int k, i;
  for (k = 0; k < 4; k++) {
    int32_t *to = (int32_t *)take(a, 4u * (size_t)m->features);
    for (i = 0; i < m->features; i++)
      to[i] = i32_at(*from + 4u * (size_t)(4 * i + 2 * CELL_Y[k] + CELL_X[k]));
    m->b2[k] = to;
  }
  *from += 16u * (size_t)m->features;
}

/* A matrix of two blocks of different widths: features, then context. */
static const void *copy_heads(ecx_model *m, arena *a, const uint8_t **from) {
  int rows = 2 * m->latent, columns = m->features + m->context;
  matrix w = {*from, columns, rows, m->use.group, m->pad_features + m->pad_context};
  void *to = take_weights(a, &w);
  copy_block(to, &w, 0, m->features, 0);
  copy_block(to, &w, m->features, m->context, m->pad_features);
  *from += (size_t)rows * (size_t)columns;
  return to;
}

static void set_code(code_entry *e, uint32_t start, uint32_t frequency) {
  e->inverse = ((uint64_t)1 << 46) / frequency + 1u;
  e->start = (uint16_t)start;
  e->frequency = (uint16_t)frequency;
}

/* What a decoder and an encoder look up of one level. */
static void build_lookups(const uint16_t *cdf, int half, find_entry *find, code_entry *code) {
  int count = 2 * half + 2, k, b;
  for (k = 0; k < count; k++) set_code(code + k, cdf[k], (uint32_t)cdf[k + 1] - cdf[k]);
  for (k = 0, b = 0; b < BUCKETS; b++) {
    int first, next;
    while (cdf[k + 1] <= (uint32_t)b << (PRECISION - BUCKET_BITS)) k++;
    first = k + 1 < count ? cdf[k + 1] - cdf[k] : 0;
    next = k + 2 < count ? cdf[k + 2] - cdf[k + 1] : 0;
    find[b].start = cdf[k];
    find[b].frequency = (uint16_t)first;
    find[b].next = (uint16_t)next;
    find[b].symbol = (int16_t)(k - half);
  }
}

/* Cumulative frequencies and the lookups of each level; 0 where a sum is wrong. */
static int build_cdfs(ecx_model *m, arena *a, const uint8_t *t, const layout *l) {
  const uint8_t *from = t + l->frequencies;
  int16_t *half = (int16_t *)take(a, 2u * (size_t)l->levels);
  uint16_t *cdf = (uint16_t *)take(a, 2u * (l->entries + (size_t)l->levels));
  find_entry *find = (find_entry *)take(a, sizeof(find_entry) * BUCKETS * (size_t)l->levels);
  code_entry *first = (code_entry *)take(a, sizeof(code_entry) * (l->entries + 16u)), *code = first;
  int i, k;
  m->half_width = half;
  for (i = 0; i < l->levels; i++)
    half[i] = i ? (int16_t)u16_at(t + l->half_width + 2 * (size_t)i) : (int16_t)0;
  m->cdf[0] = cdf;
  m->find = find;
  m->code = code;
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
    build_lookups(cdf, half[i], find + i * BUCKETS, code);
    m->cdf[i] = cdf;
    m->code_base[i] = (int32_t)(code - first) + half[i];
    m->code_half[i] = half[i];
    cdf += count + 1;
    code += count;
  }
  m->nibble = (uint32_t)(code - first);
  for (k = 0; k < 16; k++) set_code(code + k, (uint32_t)k * NIBBLE_FREQUENCY, NIBBLE_FREQUENCY);
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
  m->use = pick_kernels();
  m->w1 = copy_weights(&a, &from, l.hidden, l.hyper, 1, 2);
  copy_features(m, &a, &from);
  for (k = 0; k < 3; k++) m->wc[k] = copy_weights(&a, &from, l.context, l.latent, k + 1, 2);
  m->w3 = copy_heads(m, &a, &from);
  m->b1 = copy_i32(&a, &from, ECX_QUALITIES * (size_t)l.hidden);
  copy_feature_biases(m, &a, &from);
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
  /* With these bounds no sum leaves 32 bits, whatever its order and however many products an
   * instruction adds at once, as no partial sum exceeds the sum of all magnitudes. Bias and rounding are at most 2^23 + 128, weights at most 128 in magnitude:
   *   hidden    512 * 128 * 2047         < 2^27, with bias < 2^28
   *   features  512 * 128 * 255          < 2^24, with bias < 2^25
   *   context   3 * 512 * 128 * 511      < 2^27, with bias < 2^27
   *   heads     (512 + 512) * 128 * 255  < 2^25, with bias < 2^26
   * Steps: 127 * 32767 + 8 < 2^22 for z and 8191 * 131071 + 32 < 2^30 for s.
   * tests/format/test_coder_bounds.py gets there. */
  for (i = 0; i < ECX_QUALITIES * (size_t)l.hidden; i++)
    if (m->b1[i] < -(1 << 23) || m->b1[i] > 1 << 23) return ECX_TABLES;
  for (k = 0; k < 4; k++)
    for (i = 0; i < (size_t)l.features; i++)
      if (m->b2[k][i] < -(1 << 23) || m->b2[k][i] > 1 << 23) return ECX_TABLES;
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

/* One row of cells on its way through the hyper-synthesis. Rows of cells beyond `zw` up to a
 * multiple of BLOCK hold zeros or what an earlier row left: computed, never used. */
typedef struct {
  const ecx_model *m;
  int quality, zw, head_stride;
  int32_t *acc, *bias;       /* bias [2 M], of the heads */
  int16_t *feature;          /* [cells][4 in order of coding][features, context] */
  int16_t *residual;         /* [cells][3][pad_latent], of the latents coded before */
  int16_t *input, *hidden;   /* [BLOCK][pad_hyper], [BLOCK][pad_hidden] */
  int16_t mu[BLOCK * MAX_CHANNELS]; /* of the latents in turn */
  uint8_t index[BLOCK * MAX_CHANNELS];
} row_state;

static size_t padded_cells(int zw) { return (size_t)((zw + BLOCK - 1) / BLOCK * BLOCK); }

static size_t feature_values(const ecx_model *m, int zw) {
  return padded_cells(zw) * 4u * ((size_t)m->pad_features + (size_t)m->pad_context);
}

static size_t residual_values(const ecx_model *m, int zw) {
  return padded_cells(zw) * 3u * (size_t)m->pad_latent;
}

/* Sums of the largest product. */
static size_t acc_values(const ecx_model *m) {
  int rows = pad16(2 * m->latent);
  if (m->pad_hidden > rows) rows = m->pad_hidden;
  if (m->pad_features > rows) rows = m->pad_features;
  if (m->pad_context > rows) rows = m->pad_context;
  return BLOCK * (size_t)rows;
}

static size_t row_scratch_bytes(const ecx_model *m, int zw) {
  return 4u * (acc_values(m) + 2u * (size_t)m->latent) +
         2u * (feature_values(m, zw) + residual_values(m, zw) +
               BLOCK * ((size_t)m->pad_hyper + (size_t)m->pad_hidden));
}

static void begin_rows(row_state *r, const ecx_model *m, int quality, int zw, void *scratch) {
  size_t M = (size_t)m->latent;
  r->m = m;
  r->quality = quality;
  r->zw = zw;
  r->head_stride = m->pad_features + m->pad_context;
  r->acc = (int32_t *)scratch;
  r->bias = r->acc + acc_values(m);
  r->feature = (int16_t *)(void *)(r->bias + 2u * M);
  r->residual = r->feature + feature_values(m, zw);
  r->input = r->residual + residual_values(m, zw);
  r->hidden = r->input + BLOCK * m->pad_hyper;
  memset(scratch, 0, row_scratch_bytes(m, zw)); /* the padding stays zero from here on */
  memcpy(r->bias, m->b3, 4u * M);
  memcpy(r->bias + M, m->index_bias + (size_t)(quality - 1) * M, 4u * M);
}

/* One row of hyper-latents -> features of its cells. */
static void features_of_row(row_state *r, const int16_t *z) {
  const ecx_model *m = r->m;
  const int32_t *step = m->step_z + (size_t)(r->quality - 1) * (size_t)m->hyper;
  const int32_t *b1 = m->b1 + (size_t)(r->quality - 1) * (size_t)m->hidden;
  int x, p, i, k;
  for (x = 0; x < r->zw; x += BLOCK) {
    int count = r->zw - x < BLOCK ? r->zw - x : BLOCK;
    for (p = 0; p < count; p++, z += m->hyper)
      for (i = 0; i < m->hyper; i++)
        r->input[p * m->pad_hyper + i] =
            (int16_t)clamp(shift_right(z[i] * step[i] + 8, 4), -2047, 2047);
    m->use.multiply(m->w1, m->pad_hyper, b1, r->input, m->pad_hyper, m->hidden, m->pad_hyper,
                    r->acc);
    for (p = 0; p < BLOCK; p++)
      m->use.activate(r->acc + p * m->pad_hidden, m->hidden, 6, r->hidden + p * m->pad_hidden);
    for (k = 0; k < 4; k++) {
      int16_t *to = r->feature + (size_t)(4 * x + k) * (size_t)r->head_stride;
      m->use.multiply_bytes(m->w2[k], m->pad_hidden, m->b2[k], r->hidden, m->pad_hidden,
                            m->features, m->pad_hidden, r->acc);
      for (p = 0; p < BLOCK; p++, to += 4 * r->head_stride)
        m->use.activate(r->acc + p * m->pad_features, m->features, 6, to);
    }
  }
}

/* mu and scale index of latent k (in order of coding) of BLOCK cells from cell x on. */
static void predict_block(row_state *r, int x, int k) {
  const ecx_model *m = r->m;
  int16_t *feature = r->feature + (size_t)(4 * x + k) * (size_t)r->head_stride;
  int M = m->latent, width = m->pad_features, top = m->levels - 1, p;
  if (k > 0) {
    int16_t *to = feature + m->pad_features;
    m->use.multiply(m->wc[k - 1], k * m->pad_latent, m->bc + (k - 1) * m->context,
                    r->residual + (size_t)x * 3u * (size_t)m->pad_latent, 3 * m->pad_latent,
                    m->context, k * m->pad_latent, r->acc);
    for (p = 0; p < BLOCK; p++, to += 4 * r->head_stride)
      m->use.activate(r->acc + p * m->pad_context, m->context, 4, to);
    width = r->head_stride;
  }
  m->use.multiply_bytes(m->w3, r->head_stride, r->bias, feature, 4 * r->head_stride, 2 * M, width,
                        r->acc);
  for (p = 0; p < BLOCK; p++)
    m->use.finish(r->acc + p * pad16(2 * M), M, top, r->mu + p * M, r->index + p * M);
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
  m->use.keep(s, step, mu, m->latent, kept, y_hat);
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
  t->m->use.quantize(t->y + at, mu, level, t->gain, t->m->latent, symbol);
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

/* Coding steps, each a place in the model's `code`. */
typedef struct {
  uint32_t *ops;
  size_t count;
} op_list;

/* A symbol beyond the table: escape, then the number of nibbles, then the nibbles, highest first. */
static void push_escape(op_list *o, const ecx_model *m, int level, int s) {
  int half = m->code_half[level];
  uint32_t u = s < 0 ? ((uint32_t)(-s - half - 1) << 1 | 1u) : (uint32_t)(s - half - 1) << 1;
  uint32_t nibbles = 0, k;
  o->ops[o->count++] = (uint32_t)(m->code_base[level] + half + 1);
  while (nibbles < 4 && u >> (4 * nibbles)) nibbles++;
  o->ops[o->count++] = m->nibble + nibbles;
  for (k = nibbles; k-- > 0;) o->ops[o->count++] = m->nibble + (u >> (4 * k) & 15u);
}

static void push_symbol(op_list *o, const ecx_model *m, int level, int s) {
  int half = m->code_half[level];
  if (s < -half || s > half) push_escape(o, m, level, s);
  else o->ops[o->count++] = (uint32_t)(m->code_base[level] + s);
}

/* The symbols of one position; 0 where one is out of range, or not 0 at level 0. */
static int push_position(op_list *o, const ecx_model *m, const uint8_t *level, const int16_t *s,
                         int channels, int limit) {
  int c, n = m->use.select(level, s, channels, m->code_base, m->code_half, m->levels,
                           o->ops + o->count);
  if (n >= 0) {
    o->count += (size_t)n;
    return 1;
  }
  for (c = 0; c < channels; c++) {
    if (level[c] >= m->levels || s[c] < -limit || s[c] > limit) return 0;
    if (level[c]) push_symbol(o, m, level[c], s[c]);
    else if (s[c]) return 0;
  }
  return 1;
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

/* Undo what one step of the decoder does: moves a word out of the state where it must. The caller
 * has made sure that there is room for one.
 *
 * A state x in [2^16, 2^32) stays there. With f <= 2^14 - 3 (a table has four entries at least),
 * start + f <= 2^14: where x >= f * 2^18 a word goes out, and one is enough, as x >> 16 < 2^16.
 * Then x < f * 2^18, so that the new state is at most (2^18 - 1) * 2^14 + (f - 1) + start < 2^32;
 * and x >= 4 * f either way, so that it is at least 4 * 2^14 = 2^16.
 *
 * The quotient is exact: with i = 2^46 / f + e, 0 < e <= 1, x * i / 2^46 = x / f + x * e / 2^46, and
 * x * e / 2^46 < f * 2^18 / 2^46 < 1 / f. The product is below 2^64: x <= f * 2^18 - 1, so that
 * x * i <= 2^64 + f * 2^18 - 2^46 / f - 1, of which f * 2^18 < 2^46 / f as f < 2^14. */
ALWAYS_INLINE uint32_t put(uint32_t x, const code_entry *e, uint8_t **to) {
  uint32_t f = e->frequency, full = x >> (32 - PRECISION) >= f, q;
  uint8_t *word = *to - 2;
  word[0] = (uint8_t)x;
  word[1] = (uint8_t)(x >> 8);
  *to -= full << 1;
  x >>= full << 4;
  q = (uint32_t)(x * e->inverse >> 46);
  return x + e->start + q * (TOTAL - f);
}

int ecx_encode(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
               const uint8_t *index, const int16_t *s, void *scratch, size_t scratch_bytes,
               uint8_t *out, size_t capacity, size_t *written) {
  op_list o;
  const uint8_t *index_z;
  const code_entry *code = model->code;
  size_t cells, i, M = (size_t)model->latent;
  uint32_t even = STATE_LOW, odd = STATE_LOW; /* of steps 0, 2, ... and of steps 1, 3, ... */
  uint8_t *at;
  int x, k;
  if (!valid_size(model, quality, zh, zw)) return ECX_ARGUMENT;
  if (scratch_bytes < ecx_encode_scratch_bytes(model, zh, zw)) return ECX_CAPACITY;
  o.ops = (uint32_t *)scratch;
  o.count = 0;
  cells = (size_t)zh * (size_t)zw;
  index_z = model->index_z + (size_t)(quality - 1) * (size_t)model->hyper;
  for (i = 0; i < cells; i++, z += model->hyper)
    if (!push_position(&o, model, index_z, z, model->hyper, ECX_HYPER_LIMIT)) return ECX_ARGUMENT;
  for (i = 0; i < (size_t)zh; i++)
    for (k = 0; k < 4; k++)
      for (x = 0; x < zw; x++) {
        size_t place_of = (i * 4u * (size_t)zw + place(zw, x, k)) * M;
        if (!push_position(&o, model, index + place_of, s + place_of, model->latent,
                           ECX_SYMBOL_LIMIT))
          return ECX_ARGUMENT;
      }
  /* Room for what all steps may move out: none has to look. */
  if (capacity < 8u + 2u * o.count) return ECX_CAPACITY;
  /* Backwards, because rANS decodes in the opposite order. */
  at = out + capacity;
  i = o.count;
  if (i & 1u) even = put(even, code + o.ops[--i], &at);
  for (; i > 0; i -= 2) {
    odd = put(odd, code + o.ops[i - 1], &at);
    even = put(even, code + o.ops[i - 2], &at);
  }
  for (k = 4; k-- > 0;) *--at = (uint8_t)(odd >> (8 * k));
  for (k = 4; k-- > 0;) *--at = (uint8_t)(even >> (8 * k));
  *written = capacity - (size_t)(at - out);
  memmove(out, at, *written);
  return ECX_OK;
}

/* ---- rANS decoder -------------------------------------------------------------------------- */

typedef struct {
  uint32_t current, other; /* the state of the next step, and the one after it */
  const uint8_t *next, *end;
  int status; /* ECX_OK until something is wrong */
} decoder;

/* Undo one step with a slot that lies `rest` behind the start of its symbol; the two states take
 * turns.
 *
 * Of any state in [2^16, 2^32) this makes at most f * (2^18 - 1) + f - 1 < 2^32, and at least
 * f * 4 >= 4: one word brings it back to 2^16 or more. */
static void advance(decoder *d, uint32_t rest, uint32_t frequency) {
  uint32_t x = frequency * (d->current >> PRECISION) + rest;
  d->current = d->other;
  if (x < STATE_LOW) {
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
  uint32_t slot = d->current & (TOTAL - 1);
  advance(d, slot % NIBBLE_FREQUENCY, NIBBLE_FREQUENCY);
  return slot / NIBBLE_FREQUENCY;
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

/* A symbol from `symbol` on, which is not above what the slot stands for. */
static int read_rare(decoder *d, const ecx_model *m, int level, int symbol) {
  int half = m->code_half[level];
  const uint16_t *cdf = m->cdf[level] + half;
  uint32_t slot = d->current & (TOTAL - 1);
  while (cdf[symbol + 1] <= slot) symbol++;
  advance(d, slot - cdf[symbol], (uint32_t)cdf[symbol + 1] - cdf[symbol]);
  return symbol > half ? read_escape(d, half) : symbol;
}

/* The symbols of the `count` channels listed; the caller has made sure that all bytes they can take
 * are there. Most slots belong to one of two symbols of their bucket. Returns 0 where an escape
 * leads out of the range, which no table of y does (MAX_HALF_WIDTH < ECX_SYMBOL_LIMIT). */
static int read_listed(decoder *d, const ecx_model *m, const uint8_t *level,
                       const int16_t *channel, int count, int limit, int16_t *symbol) {
  const find_entry *find = m->find;
  uint32_t current = d->current, other = d->other;
  const uint8_t *next = d->next;
  int i, good = 1;
  for (i = 0; i < count; i++) {
    const int c = channel[i];
    const uint32_t bucket = current >> (PRECISION - BUCKET_BITS) & (BUCKETS - 1);
    const find_entry *e = find + level[c] * BUCKETS + bucket;
    uint32_t high = current >> PRECISION, rest = (current & (TOTAL - 1)) - e->start, x;
    if (rest < (uint32_t)e->frequency + e->next) {
      int beyond = rest >= e->frequency;
      symbol[c] = (int16_t)(e->symbol + beyond);
      x = beyond ? e->next * high + rest - e->frequency : e->frequency * high + rest;
      current = other;
      if (x < STATE_LOW) {
        x = x << 16 | u16_at(next);
        next += 2;
      }
      other = x;
    } else {
      int s;
      d->current = current;
      d->other = other;
      d->next = next;
      s = read_rare(d, m, level[c], e->symbol);
      good &= s >= -limit && s <= limit;
      symbol[c] = (int16_t)s;
      current = d->current;
      other = d->other;
      next = d->next;
    }
  }
  d->current = current;
  d->other = other;
  d->next = next;
  return good;
}

/* The same where bytes may be missing: the first thing wrong is what counts. */
static void read_listed_checked(decoder *d, const ecx_model *m, const uint8_t *level,
                                const int16_t *channel, int count, int limit, int16_t *symbol) {
  int i;
  for (i = 0; i < count; i++) {
    int c = channel[i], bucket = (int)(d->current >> (PRECISION - BUCKET_BITS) & (BUCKETS - 1));
    int s = read_rare(d, m, level[c], m->find[level[c] * BUCKETS + bucket].symbol);
    if ((s < -limit || s > limit) && d->status == ECX_OK) d->status = ECX_CORRUPT;
    symbol[c] = (int16_t)s;
  }
}

/* Read one position. As long as even the longest codes fit in what is left, ends of data are
 * looked for only between positions. */
static int read_position(decoder *d, const ecx_model *m, const uint8_t *level,
                         const int16_t *channel, int count, int limit, int16_t *symbol) {
  if (d->end - d->next < 2 * OPS_PER_ESCAPE * count) {
    read_listed_checked(d, m, level, channel, count, limit, symbol);
    return d->status;
  }
  if (!read_listed(d, m, level, channel, count, limit, symbol)) return ECX_CORRUPT;
  return d->status;
}

static int decode_z(const ecx_model *m, int quality, size_t cells, decoder *d, int16_t *z) {
  const uint8_t *level = m->index_z + (size_t)(quality - 1) * (size_t)m->hyper;
  int16_t channel[MAX_CHANNELS];
  size_t i;
  int c, wild = 0;
  for (c = 0; c < m->hyper; c++) channel[c] = (int16_t)c;
  for (i = 0; i < cells; i++, z += m->hyper) {
    int status = read_position(d, m, level, channel, m->hyper, ECX_HYPER_LIMIT, z);
    if (status != ECX_OK) return status;
    /* Tables may reach further than hyper-latents do. */
    for (c = 0; c < m->hyper; c++) wild |= (z[c] + ECX_HYPER_LIMIT) | (ECX_HYPER_LIMIT - z[c]);
    if (wild < 0) return ECX_CORRUPT;
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
  int16_t channel[MAX_CHANNELS + 16];
  int count = t->m->use.list(level, t->m->latent, channel);
  (void)at;
  (void)cell;
  (void)mu;
  memset(symbol, 0, 2u * (size_t)t->m->latent);
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
