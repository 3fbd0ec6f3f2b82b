/* The input of the fuzz target, and what its mutator and drivers share.
 *
 *   0      what to do, bits: 1 decode the data, 2 encode what the data say, 4 with broken arguments
 *   1      quality + 1, modulo 104: four of them do not exist
 *   2      size of the tile, see tile_of
 *   3, 4   length n of the tables, little-endian; 0 takes those of the file named by ECX_TABLES
 *   5      tables, n bytes; then the data */
#ifndef EDGECODEC_TEST_FUZZ_H
#define EDGECODEC_TEST_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#define INPUT_HEAD 5
#define INPUT_MAX 20000

/* What libFuzzer calls, and gives. */
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t max_size, unsigned int seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#endif
