/* Give the core everything an attacker and a careless caller could; sanitizers watch.
 *
 * A target for libFuzzer, and for fuzz_main.c where that is not at hand. Blocks have exactly the
 * size asked for, so that every step outside is seen, and hold rubbish that differs from call to
 * call, so that a value read before it was written shows in the results. The core without special
 * instructions (plain.c) must do the same. */
#include "fuzz.h"
#include "edgecodec_core.h"
#include "files.h"

#include <string.h>

#define REQUIRE(condition) ((condition) ? (void)0 : fail(__LINE__))

int plain_decode(const ecx_model *model, int quality, int zh, int zw, const uint8_t *data,
                 size_t length, void *scratch, size_t scratch_bytes, int16_t *z, int16_t *y_hat);
int plain_quantize(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
                   const float *y, const float *reluctance, void *scratch, size_t scratch_bytes,
                   int16_t *s, uint8_t *index);

static void fail(int line) {
  fprintf(stderr, "fuzz.c:%d: the core broke a promise\n", line);
  abort();
}

static uint32_t noise;
static uint32_t rnd(void) {
  noise ^= noise << 13;
  noise ^= noise >> 17;
  noise ^= noise << 5;
  return noise;
}

static void *exactly(size_t n) {
  void *p = malloc(n ? n : 1);
  if (!p) exit(2);
  memset(p, (int)(rnd() % 256), n);
  return p;
}

/* The data of an input, taken byte by byte; zeros behind their end. */
typedef struct {
  const uint8_t *next;
  size_t left;
} source;

static int take(source *from) {
  if (!from->left) return 0;
  from->left--;
  return *from->next++;
}

typedef struct {
  const ecx_model *model;
  const uint8_t *tables;
  size_t n_tables;
  int quality, zh, zw;
  size_t nz, ny; /* values of z and of the latents; none where the arguments are broken */
  size_t need;
  int good; /* whether quality and size exist */
} job;

/* 1..4 x 1..8 cells; the last byte values are sizes that do not exist. */
static void tile_of(job *j, int byte) {
  j->zh = 1 + (byte & 3);
  j->zw = 1 + (byte >> 2 & 7);
  if (byte >= 0xf8) j->zw = byte & 1 ? 0 : ECX_MAX_SIDE + 1;
  if (byte >= 0xfc) j->zh = -1;
  j->good = byte < 0xf8 && j->quality >= 1 && j->quality <= ECX_QUALITIES;
  j->nz = j->ny = 0;
  if (byte < 0xf8) {
    size_t cells = (size_t)j->zh * (size_t)j->zw;
    j->nz = cells * (size_t)ecx_hyper_channels(j->model);
    j->ny = 4u * cells * (size_t)ecx_latent_channels(j->model);
  }
  j->need = ecx_scratch_bytes(j->model, j->zh, j->zw);
  REQUIRE(byte < 0xf8 ? j->need > 0 : j->need == 0);
}

typedef struct {
  int16_t *z, *y_hat;
  int status;
} decoded;

static decoded decode_once(const job *j, const uint8_t *data, size_t n, int plain) {
  decoded d;
  void *scratch = exactly(j->need);
  d.z = (int16_t *)exactly(2 * j->nz);
  d.y_hat = (int16_t *)exactly(2 * j->ny);
  d.status = (plain ? plain_decode : ecx_decode)(j->model, j->quality, j->zh, j->zw, data, n,
                                                 scratch, j->need, d.z, d.y_hat);
  REQUIRE(d.status == ECX_OK || d.status == ECX_TRUNCATED || d.status == ECX_CORRUPT ||
          d.status == ECX_ARGUMENT);
  REQUIRE(j->good == (d.status != ECX_ARGUMENT));
  if (j->need && rnd() % 16 == 0)
    REQUIRE(ecx_decode(j->model, j->quality, j->zh, j->zw, data, n, scratch, rnd() % j->need, d.z,
                       d.y_hat) != ECX_OK);
  free(scratch);
  return d;
}

static void forget(decoded *d) {
  free(d->z);
  free(d->y_hat);
}

/* Decode a copy that ends where its block ends, with both builds. */
static decoded decode(const job *j, const uint8_t *data, size_t n) {
  uint8_t *copy = (uint8_t *)exactly(n);
  decoded a, b;
  memcpy(copy, data, n);
  a = decode_once(j, copy, n, 0);
  b = decode_once(j, copy, n, 1);
  free(copy);
  REQUIRE(a.status == b.status);
  if (a.status == ECX_OK)
    REQUIRE(!memcmp(a.z, b.z, 2 * j->nz) && !memcmp(a.y_hat, b.y_hat, 2 * j->ny));
  forget(&b);
  return a;
}

/* Numbers of all kinds: small ones, any bits (NaN, infinite, huge), whole numbers. */
static float take_float(source *from) {
  int kind = take(from);
  uint32_t bits;
  float value;
  if (kind < 200) return (float)(kind - 100) * 0.3125f;
  bits = (uint32_t)kind << 24 | (uint32_t)take(from) << 16 | (uint32_t)take(from) << 8;
  if (kind < 228) bits ^= 0x80000000u;
  if (kind < 250) {
    memcpy(&value, &bits, 4);
    return value;
  }
  return (float)(int32_t)(bits >> 8) - 8.0e6f;
}

static float *take_floats(source *from, size_t count) {
  float *to = (float *)exactly(4 * count);
  size_t i;
  for (i = 0; i < count; i++) to[i] = take_float(from);
  return to;
}

/* docs/FORMAT.md, section Latents, with steps read from the tables themselves. */
static void check_latents(const job *j, const int16_t *s, const int16_t *mu, const int16_t *y_hat) {
  size_t m = (size_t)ecx_latent_channels(j->model), z = (size_t)ecx_hyper_channels(j->model), i;
  const uint8_t *step = j->tables + j->n_tables - 900 * z - 400 * m + 4 * (size_t)(j->quality - 1) * m;
  for (i = 0; i < j->ny; i++) {
    const uint8_t *p = step + 4 * (i % m);
    int64_t width = (int64_t)p[0] | (int64_t)p[1] << 8 | (int64_t)p[2] << 16;
    int64_t v = s[i] * width + 32;
    v = (v >= 0 ? v / 64 : -((63 - v) / 64)) + mu[i];
    v = v < -32768 ? -32768 : v > 32767 ? 32767 : v;
    REQUIRE(v == y_hat[i]);
  }
}

/* Change the bytes of a substream as the rest of the data say, and decode them. */
static void decode_damaged(const job *j, uint8_t *stream, size_t n, source *from) {
  decoded d;
  if (!from->left) return;
  while (from->left >= 3 && n) {
    size_t at = (size_t)take(from) << 8;
    at = (at | (size_t)take(from)) % n;
    stream[at] = (uint8_t)(stream[at] ^ take(from));
  }
  d = decode(j, stream, from->left == 2 ? (size_t)take(from) % (n + 1) : n);
  forget(&d);
}

/* Symbols to bytes and back. */
static void write_and_read(const job *j, source *from, const int16_t *z, const int16_t *s,
                           const uint8_t *index, const int16_t *mu) {
  size_t bytes = ecx_encode_scratch_bytes(j->model, j->zh, j->zw), written = 0;
  size_t capacity = ecx_encode_bound(j->model, j->zh, j->zw);
  void *scratch = exactly(bytes);
  uint8_t *out = (uint8_t *)exactly(capacity);
  decoded d;
  REQUIRE(ecx_encode(j->model, j->quality, j->zh, j->zw, z, index, s, scratch, bytes, out,
                     capacity, &written) == ECX_OK);
  REQUIRE(written >= 8 && written <= capacity);
  d = decode(j, out, written);
  REQUIRE(d.status == ECX_OK && !memcmp(d.z, z, 2 * j->nz));
  check_latents(j, s, mu, d.y_hat);
  forget(&d);
  if (rnd() % 4 == 0) { /* a buffer that is too small */
    size_t room = rnd() % 2 ? written - 1 - rnd() % 8 : rnd() % written;
    uint8_t *less = (uint8_t *)exactly(room);
    REQUIRE(ecx_encode(j->model, j->quality, j->zh, j->zw, z, index, s, scratch, bytes, less, room,
                       &written) == ECX_CAPACITY);
    free(less);
  }
  decode_damaged(j, out, written, from);
  free(scratch);
  free(out);
}

/* Values no quantizer gives: refused, or written and read without harm. */
static void encode_broken(const job *j, source *from, int16_t *z, int16_t *s, uint8_t *index) {
  size_t bytes = ecx_encode_scratch_bytes(j->model, j->zh, j->zw), written = 0;
  size_t capacity = ecx_encode_bound(j->model, j->zh, j->zw);
  void *scratch = exactly(bytes);
  uint8_t *out = (uint8_t *)exactly(capacity);
  int status, wild = take(from) << 8;
  wild |= take(from);
  z[rnd() % j->nz] = (int16_t)(take(from) & 1 ? wild : wild % 128);
  s[rnd() % j->ny] = (int16_t)wild;
  index[rnd() % j->ny] = (uint8_t)(take(from) % (ecx_levels(j->model) + 2));
  status = ecx_encode(j->model, j->quality, j->zh, j->zw, z, index, s, scratch, bytes, out,
                      capacity, &written);
  REQUIRE(status == ECX_OK || status == ECX_ARGUMENT);
  if (status == ECX_OK) {
    decoded d = decode(j, out, written);
    forget(&d);
  }
  free(scratch);
  free(out);
}

static void price(const job *j, source *from, const int16_t *z, const float *y,
                  const float *reluctance) {
  size_t cells = (size_t)j->zh * (size_t)j->zw;
  float *bits = take_floats(from, ecx_price_entries(j->model)), *cost = (float *)exactly(4 * cells);
  void *scratch = exactly(j->need);
  REQUIRE(ecx_price(j->model, j->quality, j->zh, j->zw, z, y, reluctance, bits, take_float(from),
                    scratch, j->need, cost) == ECX_OK);
  free(bits);
  free(cost);
  free(scratch);
}

/* From floats to bytes and back; whatever was quantized must be what predict sees again. */
static void encode(const job *j, source *from, int broken) {
  int16_t *z = (int16_t *)exactly(2 * j->nz), *s = (int16_t *)exactly(2 * j->ny);
  int16_t *s2 = (int16_t *)exactly(2 * j->ny), *mu = (int16_t *)exactly(2 * j->ny);
  uint8_t *index = (uint8_t *)exactly(j->ny), *again = (uint8_t *)exactly(j->ny);
  void *scratch = exactly(j->need);
  float *y, *reluctance = NULL;
  size_t i;
  int kind = take(from), status;
  for (i = 0; i < j->nz; i++) z[i] = (int16_t)(take(from) % 255 - 127);
  y = take_floats(from, j->ny);
  if (kind & 1) reluctance = take_floats(from, (size_t)ecx_levels(j->model) * ECX_RELUCTANCES);
  status = ecx_quantize(j->model, j->quality, j->zh, j->zw, z, y, reluctance, scratch, j->need, s,
                        index);
  REQUIRE(status == (j->good ? ECX_OK : ECX_ARGUMENT));
  if (j->good) {
    REQUIRE(plain_quantize(j->model, j->quality, j->zh, j->zw, z, y, reluctance, scratch, j->need,
                           s2, again) == ECX_OK);
    REQUIRE(!memcmp(s, s2, 2 * j->ny) && !memcmp(index, again, j->ny));
    for (i = 0; i < j->ny; i++)
      REQUIRE(s[i] >= -ECX_SYMBOL_LIMIT && s[i] <= ECX_SYMBOL_LIMIT && (index[i] || !s[i]));
    REQUIRE(ecx_predict(j->model, j->quality, j->zh, j->zw, z, s, scratch, j->need, mu, again) ==
            ECX_OK);
    REQUIRE(!memcmp(index, again, j->ny));
    if (kind & 2) price(j, from, z, y, reluctance);
    if (broken) encode_broken(j, from, z, s, index);
    else write_and_read(j, from, z, s, index, mu);
  }
  free(z);
  free(s);
  free(s2);
  free(mu);
  free(index);
  free(again);
  free(scratch);
  free(y);
  free(reluctance);
}

/* A model from a copy of the tables that is gone before the model is used; NULL where refused. */
static ecx_model *model_of(const uint8_t *tables, size_t n) {
  uint8_t *copy = (uint8_t *)exactly(n);
  size_t need;
  ecx_model *model;
  int status;
  memcpy(copy, tables, n);
  need = ecx_model_bytes(copy, n);
  model = (ecx_model *)exactly(need);
  if (need && rnd() % 8 == 0)
    REQUIRE(ecx_model_init(model, need - 1, copy, n) == ECX_CAPACITY);
  status = ecx_model_init(model, need, copy, n);
  REQUIRE(status == ECX_OK || status == ECX_TABLES);
  free(copy);
  if (status == ECX_OK) return model;
  free(model);
  return NULL;
}

/* The tables of the file in ECX_TABLES; they and their model stay. */
static const ecx_model *given_model(const uint8_t **tables, size_t *n) {
  static uint8_t *content;
  static size_t length;
  static ecx_model *model;
  if (!content && getenv("ECX_TABLES")) {
    content = slurp(getenv("ECX_TABLES"), &length);
    model = model_of(content, length);
    REQUIRE(model);
  }
  *tables = content;
  *n = length;
  return model;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
  job j;
  source from;
  ecx_model *own = NULL;
  size_t i, n;
  if (size < INPUT_HEAD) return 0;
  noise = 2166136261u;
  for (i = 0; i < size; i++) noise = (noise ^ input[i]) * 16777619u;
  if (!noise) noise = 1;
  n = (size_t)input[3] | (size_t)input[4] << 8;
  if (n > size - INPUT_HEAD) n = size - INPUT_HEAD;
  from.next = input + INPUT_HEAD + n;
  from.left = size - INPUT_HEAD - n;
  if (n) {
    j.tables = input + INPUT_HEAD;
    j.n_tables = n;
    j.model = own = model_of(j.tables, n);
  } else {
    j.model = given_model(&j.tables, &j.n_tables);
  }
  if (!j.model) return 0;
  j.quality = input[1] % 104 - 1;
  tile_of(&j, input[2]);
  if (input[0] & 1) {
    decoded d = decode(&j, from.next, from.left);
    forget(&d);
  }
  if (input[0] & 2) encode(&j, &from, input[0] & 4);
  free(own);
  return 0;
}
