/* Give the core everything an attacker and a careless caller could; sanitizers watch.
 *
 *     fuzz TABLES DATA ROUNDS
 *
 * Blocks have exactly the size asked for, so that every step outside is seen, and hold rubbish that
 * differs from call to call, so that a value read before it was written shows in the results. */
#include "edgecodec_core.h"
#include "files.h"

#include <string.h>

static uint32_t state = 12345u;
static uint32_t rnd(void) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

static void *exactly(size_t n) {
  void *p = malloc(n ? n : 1);
  if (!p) exit(2);
  memset(p, (int)(rnd() % 256), n);
  return p;
}

static uint8_t *damaged(const uint8_t *from, size_t length, size_t *out) {
  size_t n = rnd() % 4 ? length : rnd() % (length + 1), i;
  uint8_t *p = (uint8_t *)exactly(n);
  memcpy(p, from, n);
  for (i = rnd() % 6; n && i > 0; i--) p[rnd() % n] = (uint8_t)rnd();
  if (n && rnd() % 8 == 0)
    for (i = 0; i < n; i++) p[i] = (uint8_t)rnd();
  *out = n;
  return p;
}

static size_t hypers(const ecx_model *m, int zh, int zw) {
  return (size_t)zh * (size_t)zw * (size_t)ecx_hyper_channels(m);
}

static size_t latents(const ecx_model *m, int zh, int zw) {
  return 4u * (size_t)zh * (size_t)zw * (size_t)ecx_latent_channels(m);
}

static int decode_once(const ecx_model *m, int q, int zh, int zw, const uint8_t *data, size_t n,
                       int16_t *z, int16_t *y) {
  size_t need = ecx_scratch_bytes(m, zh, zw);
  void *scratch = exactly(need);
  int status = ecx_decode(m, q, zh, zw, data, n, scratch, need, z, y);
  if (need && ecx_decode(m, q, zh, zw, data, n, scratch, rnd() % need, z, y) == ECX_OK) abort();
  if (status > 0 || status < ECX_TABLES) abort();
  free(scratch);
  return status;
}

static void decode(const ecx_model *m, int q, int zh, int zw, const uint8_t *data, size_t n) {
  size_t nz = hypers(m, zh, zw), ny = latents(m, zh, zw);
  int16_t *z = (int16_t *)exactly(2 * nz), *y = (int16_t *)exactly(2 * ny);
  int16_t *z2 = (int16_t *)exactly(2 * nz), *y2 = (int16_t *)exactly(2 * ny);
  int status = decode_once(m, q, zh, zw, data, n, z, y);
  if (decode_once(m, q, zh, zw, data, n, z2, y2) != status) abort();
  if (status == ECX_OK && (memcmp(z, z2, 2 * nz) || memcmp(y, y2, 2 * ny))) abort();
  free(z);
  free(y);
  free(z2);
  free(y2);
}

static void fill_floats(float *to, size_t count) {
  size_t i;
  for (i = 0; i < count; i++) {
    uint32_t bits = rnd() % 3 ? 0x3f800000u + rnd() % 0x08000000u : rnd();
    if (rnd() % 2) bits ^= 0x80000000u;
    memcpy(&to[i], &bits, 4); /* some are NaN, infinite, huge */
  }
}

/* From floats to bytes and back; whatever was quantized must be what predict sees again. */
static void encode(const ecx_model *m) {
  int zh = 1 + (int)(rnd() % 2), zw = 1 + (int)(rnd() % 6), q = 1 + (int)(rnd() % 100), status;
  size_t nz = hypers(m, zh, zw), ny = latents(m, zh, zw), written = 0, i;
  size_t need = ecx_scratch_bytes(m, zh, zw), encode_need = ecx_encode_scratch_bytes(m, zh, zw);
  size_t bound = rnd() % 4 ? ecx_encode_bound(m, zh, zw) : rnd() % 3000;
  size_t thresholds = (size_t)ecx_levels(m) * ECX_RELUCTANCES;
  int16_t *z = (int16_t *)exactly(2 * nz), *s = (int16_t *)exactly(2 * ny);
  int16_t *mu = (int16_t *)exactly(2 * ny);
  uint8_t *index = (uint8_t *)exactly(ny), *again = (uint8_t *)exactly(ny);
  uint8_t *out = (uint8_t *)exactly(bound);
  float *y = (float *)exactly(4 * ny), *reluctance = (float *)exactly(4 * thresholds);
  void *scratch = exactly(need), *ops = exactly(encode_need);
  int wild = rnd() % 8 == 0;
  for (i = 0; i < nz; i++) z[i] = (int16_t)((int)(rnd() % 255) - 127);
  fill_floats(y, ny);
  for (i = 0; i < thresholds; i++) reluctance[i] = (float)(rnd() % 1000) / 1000.0f;
  if (wild) fill_floats(reluctance, thresholds);
  if (ecx_quantize(m, q, zh, zw, z, y, rnd() % 2 ? reluctance : NULL, scratch, need, s, index) !=
      ECX_OK)
    abort();
  for (i = 0; i < ny; i++)
    if (s[i] < -ECX_SYMBOL_LIMIT || s[i] > ECX_SYMBOL_LIMIT || (s[i] && !index[i])) abort();
  memset(scratch, (int)(rnd() % 256), need);
  if (ecx_predict(m, q, zh, zw, z, s, scratch, need, mu, again) != ECX_OK) abort();
  if (memcmp(index, again, ny)) abort();
  if (rnd() % 4 == 0) s[rnd() % ny] = (int16_t)rnd();
  status = ecx_predict(m, q, zh, zw, z, s, scratch, need, mu, again);
  if (status != ECX_OK && status != ECX_ARGUMENT) abort();
  status = ecx_encode(m, q, zh, zw, z, index, s, ops, encode_need, out, bound, &written);
  if (status == ECX_OK) {
    if (written > bound) abort();
    decode(m, q, zh, zw, out, written);
  } else if (status != ECX_ARGUMENT && status != ECX_CAPACITY) {
    abort();
  }
  free(z);
  free(s);
  free(mu);
  free(index);
  free(again);
  free(out);
  free(y);
  free(reluctance);
  free(scratch);
  free(ops);
}

static ecx_model *model_of(const uint8_t *tables, size_t length) {
  size_t need = ecx_model_bytes(tables, length);
  ecx_model *model = (ecx_model *)exactly(need);
  if (ecx_model_init(model, need, tables, length) == ECX_OK) return model;
  free(model);
  return NULL;
}

int main(int argc, char **argv) {
  size_t n_tables, n_data, n;
  uint8_t *tables, *data, *p;
  ecx_model *model, *other;
  int round, rounds;
  if (argc != 4) return 2;
  tables = slurp(argv[1], &n_tables);
  data = slurp(argv[2], &n_data);
  rounds = atoi(argv[3]);
  model = model_of(tables, n_tables);
  if (!model) return 3;
  for (round = 0; round < rounds; round++) {
    p = damaged(data, n_data, &n);
    decode(model, (int)(rnd() % 102), 1 + (int)(rnd() % 2), 1 + (int)(rnd() % 6), p, n);
    free(p);
    if (round % 4 == 0) encode(model);
    if (round % 16 == 0) {
      p = damaged(tables, n_tables, &n);
      other = model_of(p, n);
      free(p);
      if (other) {
        encode(other);
        decode(other, 60, 1, 3, data, n_data);
      }
      free(other);
    }
  }
  free(model);
  free(tables);
  free(data);
  puts("done");
  return 0;
}
