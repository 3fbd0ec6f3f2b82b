/* What a build of the core makes of given cases, one line each: it must be the same in every build.
 *
 *     cases FILE
 *
 * The last line is `pack 0` where pixels are packed as they should be.
 *
 * FILE: u32 length of tables, tables, then cases to the end: i32 quality, rows, columns, length of a
 * substream; z and symbols, 16 bits each; y, floats; the substream. All little-endian. */
#include "edgecodec_core.h"
#include "files.h"

#include <string.h>

static uint32_t sum_bytes(uint32_t sum, const uint8_t *p, size_t n) {
  size_t i;
  for (i = 0; i < n; i++) sum = (sum ^ p[i]) * 16777619u;
  return sum;
}

static unsigned long checksum16(const int16_t *values, size_t n) {
  uint32_t sum = 2166136261u;
  size_t i;
  for (i = 0; i < n; i++) {
    uint8_t bytes[2];
    bytes[0] = (uint8_t)((uint16_t)values[i] & 255u);
    bytes[1] = (uint8_t)((uint16_t)values[i] >> 8);
    sum = sum_bytes(sum, bytes, 2);
  }
  return (unsigned long)sum;
}

static unsigned long checksum8(const uint8_t *p, size_t n) {
  return (unsigned long)sum_bytes(2166136261u, p, n);
}

static uint32_t u32_at(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void *room(size_t n) {
  void *p = calloc(n ? n : 1, 1);
  if (!p) exit(2);
  return p;
}

static const uint8_t *values16(const uint8_t *from, int16_t *to, size_t n) {
  size_t i;
  for (i = 0; i < n; i++, from += 2) {
    int v = from[0] | from[1] << 8;
    to[i] = (int16_t)(v < 32768 ? v : v - 65536);
  }
  return from;
}

static const uint8_t *floats(const uint8_t *from, float *to, size_t n) {
  size_t i;
  for (i = 0; i < n; i++, from += 4) {
    uint32_t bits = u32_at(from);
    memcpy(&to[i], &bits, 4);
  }
  return from;
}

static const uint8_t *one_case(const ecx_model *m, const uint8_t *p) {
  int q = (int)u32_at(p), zh = (int)u32_at(p + 4), zw = (int)u32_at(p + 8);
  size_t length = u32_at(p + 12), written = 0, cells = (size_t)zh * (size_t)zw;
  size_t nz = cells * (size_t)ecx_hyper_channels(m), ny = 4 * cells * (size_t)ecx_latent_channels(m);
  size_t need = ecx_scratch_bytes(m, zh, zw), encode_need = ecx_encode_scratch_bytes(m, zh, zw);
  size_t capacity = ecx_encode_bound(m, zh, zw);
  int16_t *z = (int16_t *)room(2 * nz), *s = (int16_t *)room(2 * ny), *a = (int16_t *)room(2 * ny);
  int16_t *z_hat = (int16_t *)room(2 * nz);
  uint8_t *index = (uint8_t *)room(ny), *out = (uint8_t *)room(capacity);
  float *y = (float *)room(4 * ny);
  void *scratch = room(need > encode_need ? need : encode_need);
  int status = 0;
  p = floats(values16(values16(p + 16, z, nz), s, ny), y, ny);
  status = ecx_predict(m, q, zh, zw, z, s, scratch, need, a, index);
  printf("predict %d %lu %lu ", status, checksum16(a, ny), checksum8(index, ny));
  status = ecx_encode(m, q, zh, zw, z, index, s, scratch, encode_need, out, capacity, &written);
  printf("encode %d %lu %lu ", status, (unsigned long)written, checksum8(out, written));
  status = ecx_decode(m, q, zh, zw, p, length, scratch, need, z_hat, a);
  printf("decode %d ", status);
  if (status == ECX_OK) printf("%lu %lu ", checksum16(z_hat, nz), checksum16(a, ny));
  status = ecx_quantize(m, q, zh, zw, z, y, NULL, scratch, need, s, index);
  printf("quantize %d %lu %lu\n", status, checksum16(s, ny), checksum8(index, ny));
  free(z);
  free(s);
  free(a);
  free(z_hat);
  free(index);
  free(out);
  free(y);
  free(scratch);
  return p + length;
}

/* What ecx_pack is to make of a level: 0 of NaN. */
static uint8_t sample_of(float level, int *finite) {
  uint32_t bits;
  float v = level + 0.5f;
  memcpy(&bits, &level, 4);
  bits &= 0x7fffffffu;
  if (bits >= 0x7f800000u) *finite = 0;
  if (bits > 0x7f800000u) return 0;
  return v <= 0.0f ? 0 : v >= 255.0f ? 255 : (uint8_t)v;
}

static void fill(float *levels, size_t n, uint32_t *seed, int strange) {
  static const uint32_t STRANGE[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00001u};
  size_t i;
  for (i = 0; i < n; i++) {
    *seed = *seed * 1664525u + 1013904223u;
    levels[i] = (float)((int)(*seed >> 16) - 16384) / 128.0f; /* halves among them */
  }
  if (strange) memcpy(levels + (*seed >> 8) % n, STRANGE + (*seed >> 4 & 3u), 4);
}

/* One row of squares; returns how many bytes are wrong. */
static int wrong_bytes(int side, size_t width, int rows, uint32_t *seed, int strange) {
  const size_t squares = (width + (size_t)side - 1) / (size_t)side, stride = 4 * width + 5;
  const size_t n = squares * 3 * (size_t)side * (size_t)side;
  float *levels = (float *)room(n * sizeof *levels);
  uint8_t *samples = (uint8_t *)room((size_t)rows * stride);
  size_t x, c;
  int y, wrong, finite = 1;
  fill(levels, n, seed, strange);
  memset(samples, 7, (size_t)rows * stride);
  wrong = ecx_pack(levels, side, width, rows, samples, stride);
  for (y = 0; y < rows; y++)
    for (x = 0; x < stride; x++) {
      const size_t at = x / 4, i = at % (size_t)side + (size_t)(y * side);
      uint8_t right = 7;
      c = x % 4;
      if (x < 4 * width)
        right = c == 3 ? 255
                       : sample_of(levels[(at / (size_t)side * (size_t)(side * side) + i) * 3 + c],
                                   &finite);
      if (samples[(size_t)y * stride + x] != right) wrong += 2;
    }
  wrong -= finite;
  free(levels);
  free(samples);
  return wrong;
}

static int pack_all(void) {
  static const int SIDES[] = {1, 2, 3, 4, 8, 16};
  uint32_t seed = 1;
  size_t k, width;
  int rows, wrong = 0;
  for (k = 0; k < sizeof SIDES / sizeof *SIDES; k++)
    for (rows = 1; rows <= SIDES[k]; rows += 3)
      for (width = 1; width < 70; width += width < 34 ? 1 : 7) {
        wrong |= wrong_bytes(SIDES[k], width, rows, &seed, 0);
        wrong |= wrong_bytes(SIDES[k], width, rows, &seed, 1);
      }
  return wrong;
}

int main(int argc, char **argv) {
  size_t n, bytes;
  uint8_t *file;
  const uint8_t *p;
  ecx_model *model;
  if (argc != 2) return 2;
  file = slurp(argv[1], &n);
  p = file + 4 + u32_at(file);
  bytes = ecx_model_bytes(file + 4, u32_at(file));
  model = (ecx_model *)room(bytes);
  if (ecx_model_init(model, bytes, file + 4, u32_at(file)) != ECX_OK) return 3;
  while (p < file + n) p = one_case(model, p);
  printf("pack %d\n", pack_all());
  free(model);
  free(file);
  return 0;
}
