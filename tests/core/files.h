/* What the test programs share: how they read files. */
#ifndef EDGECODEC_TEST_FILES_H
#define EDGECODEC_TEST_FILES_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint8_t *slurp(const char *name, size_t *length) {
  FILE *f = fopen(name, "rb");
  uint8_t *data;
  if (!f) exit(2);
  fseek(f, 0, SEEK_END);
  *length = (size_t)ftell(f);
  rewind(f);
  data = (uint8_t *)malloc(*length ? *length : 1);
  if (!data || fread(data, 1, *length, f) != *length) exit(2);
  fclose(f);
  return data;
}

#endif
