/* A program as a phone app would be: tables and a substream in, status and checksum of y_hat out.
 *
 *     decode TABLES DATA QUALITY ROWS COLUMNS
 *
 * On its way it looks for every answer there is to buffers that are too small. */
#include "edgecodec_core.h"
#include "files.h"

static uint32_t checksum(const int16_t *values, size_t count) {
  uint32_t sum = 2166136261u;
  size_t i;
  for (i = 0; i < count; i++) {
    sum = (sum ^ ((uint32_t)values[i] & 255u)) * 16777619u;
    sum = (sum ^ (((uint32_t)values[i] >> 8) & 255u)) * 16777619u;
  }
  return sum;
}

int main(int argc, char **argv) {
  size_t n_tables, n_data, need, encode_need, count, cells, written;
  uint8_t *tables, *data, *index, *out;
  ecx_model *model;
  int q, zh, zw, status;
  int16_t *z, *s, *y_hat;
  float *y;
  void *scratch;
  if (argc != 6) return 2;
  tables = slurp(argv[1], &n_tables);
  data = slurp(argv[2], &n_data);
  q = atoi(argv[3]);
  zh = atoi(argv[4]);
  zw = atoi(argv[5]);
  need = ecx_model_bytes(tables, n_tables);
  model = (ecx_model *)malloc(need);
  if (ecx_model_init(model, need - 1, tables, n_tables) != ECX_CAPACITY) return 3;
  if (ecx_model_init(NULL, need, tables, n_tables) != ECX_CAPACITY) return 4;
  if (ecx_model_init(model, need, tables, n_tables - 1) != ECX_TABLES) return 5;
  if (ecx_model_init(model, need, tables, n_tables) != ECX_OK) return 6;
  free(tables); /* the model has its own copy */
  cells = (size_t)zh * (size_t)zw;
  count = 4u * cells * (size_t)ecx_latent_channels(model);
  z = (int16_t *)calloc(cells * (size_t)ecx_hyper_channels(model), 2);
  s = (int16_t *)calloc(count, 2);
  y_hat = (int16_t *)calloc(count, 2);
  y = (float *)calloc(count, sizeof *y);
  index = (uint8_t *)calloc(count, 1);
  need = ecx_scratch_bytes(model, zh, zw);
  encode_need = ecx_encode_scratch_bytes(model, zh, zw);
  scratch = malloc(need > encode_need ? need : encode_need);
  out = (uint8_t *)malloc(ecx_encode_bound(model, zh, zw));

  if (ecx_predict(model, q, zh, zw, z, s, scratch, need - 1, y_hat, index) != ECX_CAPACITY)
    return 10;
  if (ecx_quantize(model, q, zh, zw, z, y, NULL, scratch, need - 1, s, index) != ECX_CAPACITY)
    return 11;
  if (ecx_decode(model, q, zh, zw, data, n_data, scratch, need - 1, z, y_hat) != ECX_CAPACITY)
    return 12;
  if (ecx_encode(model, q, zh, zw, z, index, s, scratch, encode_need - 1, out, 8, &written) !=
      ECX_CAPACITY)
    return 13;
  if (ecx_decode(model, q, zh, ECX_MAX_SIDE + 1, data, n_data, scratch, need, z, y_hat) !=
      ECX_ARGUMENT)
    return 14;
  if (ecx_scratch_bytes(model, zh, ECX_MAX_SIDE + 1) || ecx_scratch_bytes(NULL, zh, zw)) return 15;
  if (ecx_predict(model, q, zh, zw, z, s, scratch, need, y_hat, index) != ECX_OK) return 16;
  s[count - 1] = ECX_SYMBOL_LIMIT + 1;
  if (ecx_predict(model, q, zh, zw, z, s, scratch, need, y_hat, index) != ECX_ARGUMENT) return 17;
  z[0] = -ECX_HYPER_LIMIT - 1;
  if (ecx_quantize(model, q, zh, zw, z, y, NULL, scratch, need, s, index) != ECX_ARGUMENT)
    return 18;

  status = ecx_decode(model, q, zh, zw, data, n_data, scratch, need, z, y_hat);
  printf("%d %lu\n", status, (unsigned long)checksum(y_hat, count));
  free(data);
  free(model);
  free(z);
  free(s);
  free(y_hat);
  free(y);
  free(index);
  free(scratch);
  free(out);
  return 0;
}
