/* edgecodec core: bytes <-> latents, in integers only, the same on every machine.
 *
 * Portable C99; of the library it uses memcpy, memmove, memset and memcmp. No allocation, no
 * globals, no I/O: the caller owns all memory, and a model, once initialised, is read-only and may
 * be shared by threads. Calls take up to 32 KiB of stack. docs/FORMAT.md specifies what is computed
 * here.
 *
 * Shapes: hyper-latents z (zh, zw, Z); everything else (2*zh, 2*zw, M), channels last.
 */
#ifndef EDGECODEC_CORE_H
#define EDGECODEC_CORE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ECX_QUALITIES 100
#define ECX_SYMBOL_LIMIT 8191 /* symbols of y lie in [-limit, limit] */
#define ECX_HYPER_LIMIT 127   /* symbols of z lie in [-limit, limit] */
#define ECX_RELUCTANCES 4     /* thresholds per scale index */
#define ECX_MAX_SIDE 128      /* hyper-latents per side of a tile of 4096 pixels */

enum {
  ECX_OK = 0,
  ECX_TRUNCATED = -1, /* the bytes end before the symbols do */
  ECX_CORRUPT = -2,   /* the bytes are not what the encoder wrote */
  ECX_ARGUMENT = -3,  /* quality, size or symbol out of range */
  ECX_CAPACITY = -4,  /* a buffer of the caller is too small */
  ECX_TABLES = -5     /* the tables are damaged or of another version */
};

typedef struct ecx_model ecx_model;

/* Bytes of memory a model needs, or 0 where the tables are unusable. */
size_t ecx_model_bytes(const uint8_t *tables, size_t length);

/* Build a model in `memory` (aligned to 16, better to 64; of at least ecx_model_bytes). The tables are copied.
 * Returns ECX_OK, ECX_TABLES or ECX_CAPACITY. */
int ecx_model_init(void *memory, size_t memory_bytes, const uint8_t *tables, size_t length);

/* Channels M of y and Z of z; number of scale indexes. */
int ecx_latent_channels(const ecx_model *model);
int ecx_hyper_channels(const ecx_model *model);
int ecx_levels(const ecx_model *model);

/* Bytes of scratch that ecx_predict, ecx_quantize and ecx_decode need; `scratch` is aligned to 4,
 * better to 64. */
size_t ecx_scratch_bytes(const ecx_model *model, int zh, int zw);

/* Hyper-synthesis: z and s -> mu in units of 1/16 and scale index, all but z of (2*zh, 2*zw, M).
 * Each latent depends on z and on the symbols coded before it; symbols at index 0 count as 0. */
int ecx_predict(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
                const int16_t *s, void *scratch, size_t scratch_bytes, int16_t *mu,
                uint8_t *index);

/* Encoder side, not normative: symbols s = round((y - mu) * gain), 0 where index is 0, and the
 * scale indexes that ecx_encode wants. With `reluctance`, [levels][ECX_RELUCTANCES], a symbol of
 * magnitude k is lowered to k - 1 while |(y - mu) * gain| < k - 1/2 + reluctance[index][k - 1]; the
 * last entry stands for all larger k. NULL rounds to the nearest. Later latents of a cell see what
 * became of the earlier ones. */
int ecx_quantize(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
                 const float *y, const float *reluctance, void *scratch, size_t scratch_bytes,
                 int16_t *s, uint8_t *index);

/* Encoder side: what quantizing y with these hyper-latents would cost, one number per cell:
 * the bits of its latents' symbols plus `weight` times their squared errors in steps. `bits` holds
 * for each scale index from 1 the bits of its symbols -w..w and of the escape, and one unused entry:
 * ecx_price_entries numbers in all. */
size_t ecx_price_entries(const ecx_model *model);
int ecx_price(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
              const float *y, const float *reluctance, const float *bits, float weight,
              void *scratch, size_t scratch_bytes, float *cost);

/* Bytes of scratch and of output that ecx_encode may need for a tile. */
size_t ecx_encode_scratch_bytes(const ecx_model *model, int zh, int zw);
size_t ecx_encode_bound(const ecx_model *model, int zh, int zw);

/* Write z and s as one substream at `out`; its length goes to *written. `scratch` is aligned to 4.
 * Room for less than 8 bytes and 2 per coding step is refused, even where the substream would fit:
 * ecx_encode_bound is always enough. */
int ecx_encode(const ecx_model *model, int quality, int zh, int zw, const int16_t *z,
               const uint8_t *index, const int16_t *s, void *scratch, size_t scratch_bytes,
               uint8_t *out, size_t capacity, size_t *written);

/* Read a substream: z, and y_hat in units of 1/16, the input of the synthesis. */
int ecx_decode(const ecx_model *model, int quality, int zh, int zw, const uint8_t *data,
               size_t length, void *scratch, size_t scratch_bytes, int16_t *z, int16_t *y_hat);

/* Levels as a synthesis gives them to samples: the integer part of clip(v + 0.5, 0, 255).
 *
 * `levels` is a row of squares of `side` x `side` pixels, one after the other, each with its pixels in
 * rows and of each pixel red, green and blue; side 1 is a row of pixels. Written are the first `rows`
 * (at most side) rows of `width` pixels of them, `stride` bytes apart; the last square may reach
 * beyond. A pixel takes 4 bytes, red, green, blue and 255, as pictures lie in memory on most systems.
 * Returns 1 where all levels that became samples were finite, else 0; NaN makes 0. */
int ecx_pack(const float *levels, int side, size_t width, int rows, uint8_t *samples,
             size_t stride);

#ifdef __cplusplus
}
#endif
#endif
