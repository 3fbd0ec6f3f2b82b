/* Mutations that know what the input of fuzz.c is made of: most random tables would be refused at
 * their first bytes, so they are put right again, as a checksum would be. */
#include "fuzz.h"

#include <string.h>

#define MOST_CHANNELS 20
#define MOST_LEVELS 12
#define MOST_HALF 14

static uint32_t state;
static uint32_t rnd(uint32_t below) {
  state = state * 1664525u + 1013904223u;
  return (uint32_t)((uint64_t)state * below >> 32);
}

static size_t u16_at(const uint8_t *p) { return (size_t)p[0] | (size_t)p[1] << 8; }

static void put_u16(uint8_t *p, size_t v) {
  p[0] = (uint8_t)v;
  p[1] = (uint8_t)(v >> 8);
}

static int32_t i32_at(const uint8_t *p) {
  return (int32_t)(int16_t)u16_at(p + 2) * 65536 + (int32_t)u16_at(p);
}

static void put_i32(uint8_t *p, int32_t v) {
  put_u16(p, (size_t)((uint32_t)v & 0xffffu));
  put_u16(p + 2, (size_t)((uint32_t)v >> 16));
}

typedef struct {
  size_t m, z, h, f, c, levels;
} counts;

static size_t weights(const counts *n) {
  return n->h * n->z + 4 * n->f * n->h + 6 * n->c * n->m + 2 * n->m * (n->f + n->c);
}

/* Bring `count` integers of 4 bytes into a range; one in eight of those outside goes to an end. */
static uint8_t *bound(uint8_t *p, size_t count, int32_t low, int32_t high) {
  for (; count > 0; count--, p += 4) {
    int32_t v = i32_at(p);
    if (v >= low && v <= high) continue;
    v = rnd(8) ? low + (int32_t)((uint32_t)v % (uint32_t)(high - low + 1)) : v < low ? low : high;
    put_i32(p, v);
  }
  return p;
}

/* Make a row of frequencies add up. */
static void repair_row(uint8_t *row, size_t count) {
  long sum = 0, most = 0;
  size_t i, at = count / 2;
  for (i = 0; i < count; i++) {
    long f = (long)u16_at(row + 2 * i);
    if (f == 0 || f > 16384 / (long)count) f = 1 + f % (16384 / (long)count);
    put_u16(row + 2 * i, (size_t)f);
    sum += f;
    if (f > most) most = f, at = i;
  }
  /* Shares of 2^14 / count each cannot exceed it together, so that the sum only has to grow. */
  put_u16(row + 2 * at, (size_t)(most + 16384 - sum));
  if (rnd(64) == 0 && at) { /* the right sum, but a symbol that cannot be coded */
    put_u16(row + 2 * at, u16_at(row + 2 * at) + u16_at(row));
    put_u16(row, 0);
  }
}

/* Turn anything into tables that load, of the length returned; `room` is enough for the smallest. */
static size_t repair_tables(uint8_t *t, size_t room) {
  static const uint8_t head[10] = {0x89, 'E', 'C', 'T', '\r', '\n', 0x1a, '\n', 2, 0};
  static const uint8_t formats[10] = {4, 4, 4, 6, 2, 6, 4, 2, 2, 0};
  size_t field[5], i, total, entries = 0;
  uint8_t *p;
  counts n;
  memcpy(t, head, sizeof head);
  memcpy(t + 22, formats, sizeof formats);
  t[20] = 14;
  if (t[21] < 2 || t[21] > MOST_LEVELS) t[21] = (uint8_t)(2 + t[21] % (MOST_LEVELS - 1));
  n.levels = t[21];
  for (i = 0; i < 5; i++) {
    field[i] = u16_at(t + 10 + 2 * i);
    if (field[i] < 1 || field[i] > MOST_CHANNELS) field[i] = 1 + field[i] % MOST_CHANNELS;
  }
  put_u16(t + 32, 0);
  for (i = 1; i < n.levels; i++) {
    size_t half = u16_at(t + 32 + 2 * i);
    if (half < 1 || half > MOST_HALF) put_u16(t + 32 + 2 * i, half = 1 + half % MOST_HALF);
    entries += 2 * half + 2;
  }
  for (;;) {
    n.m = field[0], n.z = field[1], n.h = field[2], n.f = field[3], n.c = field[4];
    total = 32 + 2 * n.levels + 2 * entries + weights(&n);
    total += 4 * (100 * n.h + 4 * n.f + 3 * n.c + n.m) + 800 * n.m + 900 * n.z;
    if (total <= room) break;
    for (i = 0; i < 5; i++) field[i] = (field[i] + 1) / 2;
  }
  for (i = 0; i < 5; i++) put_u16(t + 10 + 2 * i, field[i]);
  p = t + 32 + 2 * n.levels;
  for (i = 1; i < n.levels; i++) {
    size_t count = 2 * u16_at(t + 32 + 2 * i) + 2;
    repair_row(p, count);
    p += 2 * count;
  }
  p += weights(&n);
  p = bound(p, 100 * n.h + 4 * n.f + 3 * n.c + n.m + 100 * n.m, -(1 << 23), 1 << 23);
  p = bound(p, 100 * n.m, 1, 131071);
  p = bound(p, 100 * n.z, 1, 32767);
  for (i = 0; i < 100 * n.z; i++)
    if (p[i] < 1 || p[i] >= n.levels) p[i] = (uint8_t)(1 + p[i] % (n.levels - 1));
  return total;
}

/* Mutate the tables, mostly so that they load; the data move with their end. */
static size_t mutate_tables(uint8_t *input, size_t size, size_t max_size) {
  static uint8_t data[INPUT_MAX], tables[INPUT_MAX];
  size_t n = u16_at(input + 3), rest, room, lies;
  if (n > size - INPUT_HEAD) n = size - INPUT_HEAD;
  rest = size - INPUT_HEAD - n;
  if (rest > max_size / 4) rest = max_size / 4;
  memcpy(data, input + size - rest, rest);
  room = max_size - INPUT_HEAD - rest;
  memset(tables, (int)rnd(256), sizeof tables);
  if (n > room) n = room;
  memcpy(tables, input + INPUT_HEAD, n);
  n = LLVMFuzzerMutate(tables, n, room);
  if (rnd(8)) n = repair_tables(tables, room);
  if (rnd(4) == 0) /* small lies in what is right otherwise */
    for (lies = 1 + rnd(3); n && lies > 0; lies--) {
      uint8_t *at = tables + (rnd(2) ? n - 1 - rnd((uint32_t)n) / 2 : rnd((uint32_t)n));
      *at = (uint8_t)(rnd(2) ? *at + 1u : rnd(16));
    }
  put_u16(input + 3, n);
  memcpy(input + INPUT_HEAD, tables, n);
  memcpy(input + INPUT_HEAD + n, data, rest);
  return INPUT_HEAD + n + rest;
}

size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t max_size, unsigned int seed) {
  size_t n, begin;
  state = seed;
  if (max_size > INPUT_MAX) max_size = INPUT_MAX;
  if (size > max_size) size = max_size;
  if (size < INPUT_HEAD || max_size < 8000) return LLVMFuzzerMutate(input, size, max_size);
  switch (rnd(5)) {
    case 0: return LLVMFuzzerMutate(input, size, max_size);
    case 1: input[rnd(3)] = (uint8_t)rnd(256); return size;
    case 2: return mutate_tables(input, size, max_size);
    default:
      n = u16_at(input + 3);
      begin = INPUT_HEAD + (n > size - INPUT_HEAD ? size - INPUT_HEAD : n);
      return begin + LLVMFuzzerMutate(input + begin, size - begin, max_size - begin);
  }
}
