/* Drives fuzz.c where libFuzzer is not at hand: mutations of given inputs, not guided by coverage.
 *
 *     fuzz ROUNDS INPUTS... */
#include "files.h"
#include "fuzz.h"

#include <string.h>

static uint32_t state = 12345u;
static uint32_t rnd(void) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

/* What libFuzzer has better: change, cut, insert. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
  size_t i, at = size ? rnd() % size : 0;
  switch (rnd() % 8) {
    case 0: return size - (size ? rnd() % (size - at) : 0);
    case 1:
      i = rnd() % 16;
      if (i > max_size - size) i = max_size - size;
      memmove(data + at + i, data + at, size - at);
      for (size += i; i > 0; i--) data[at + i - 1] = (uint8_t)rnd();
      return size;
    case 2:
      for (i = at; i < size && i < at + 64; i++) data[i] = (uint8_t)rnd();
      return size;
    case 3:
      for (i = at; i < size && i < at + 4; i++) data[i] = rnd() & 1 ? 0xff : 0;
      return size;
    default:
      for (i = 1 + rnd() % 6; size && i > 0; i--) data[rnd() % size] = (uint8_t)rnd();
      return size;
  }
}

int main(int argc, char **argv) {
  static uint8_t input[INPUT_MAX];
  long round, rounds;
  if (argc < 3) return 2;
  rounds = atol(argv[1]);
  for (round = 0; round < rounds; round++) {
    const char *name = argv[2 + round % (argc - 2)];
    size_t size, i;
    uint8_t *seed = slurp(name, &size);
    if (size > INPUT_MAX) return 3;
    memcpy(input, seed, size);
    free(seed);
    if (round >= argc - 2) /* each as it is first */
      for (i = 1 + rnd() % 3; i > 0; i--)
        size = LLVMFuzzerCustomMutator(input, size, INPUT_MAX, rnd());
    seed = (uint8_t *)malloc(size ? size : 1); /* so that its end is watched */
    if (!seed) return 2;
    memcpy(seed, input, size);
    LLVMFuzzerTestOneInput(seed, size);
    free(seed);
  }
  puts("done");
  return 0;
}
