/* Python binding of the core, for the stable ABI of CPython 3.11 and later.
 *
 * Arrays come in through the buffer protocol; shapes are checked here against the sizes given, so
 * that no call can read or write outside them. The GIL is released while the core works.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "edgecodec_core.h"

PyObject *edgecodec_share(PyObject *self, PyObject *bytes); /* share.c */

static const char CAPSULE[] = "edgecodec.core.model";

typedef struct {
  void *raw;
  ecx_model *model;
} holder;

/* A line of the cache: what the core likes best for its memory. */
enum { ALIGNMENT = 64 };

/* A latent has 16 x 16 pixels: no square of pixels that are made together is larger. */
enum { MAX_SQUARE = 16 };

static void *align(void *raw) {
  return (void *)(((uintptr_t)raw + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
}

static void destroy(PyObject *capsule) {
  holder *h = (holder *)PyCapsule_GetPointer(capsule, CAPSULE);
  if (!h) return;
  PyMem_Free(h->raw);
  PyMem_Free(h);
}

static const ecx_model *model_of(PyObject *capsule) {
  holder *h = (holder *)PyCapsule_GetPointer(capsule, CAPSULE);
  return h ? h->model : NULL;
}

static const char *explain(int status) {
  switch (status) {
    case ECX_TRUNCATED: return "truncated";
    case ECX_CORRUPT: return "corrupt";
    case ECX_ARGUMENT: return "argument";
    case ECX_CAPACITY: return "capacity";
    case ECX_TABLES: return "tables";
    default: return "unknown";
  }
}

static PyObject *fail(int status) {
  PyErr_SetString(PyExc_ValueError, explain(status));
  return NULL;
}

static PyObject *load(PyObject *self, PyObject *args) {
  const uint8_t *tables;
  Py_ssize_t length;
  size_t need;
  int status;
  holder *h;
  (void)self;
  if (!PyArg_ParseTuple(args, "y#", (const char **)&tables, &length)) return NULL;
  need = ecx_model_bytes(tables, (size_t)length);
  if (!need) return fail(ECX_TABLES);
  h = (holder *)PyMem_Malloc(sizeof(holder));
  if (!h) return PyErr_NoMemory();
  h->raw = PyMem_Malloc(need + ALIGNMENT);
  if (!h->raw) {
    PyMem_Free(h);
    return PyErr_NoMemory();
  }
  h->model = (ecx_model *)align(h->raw);
  status = ecx_model_init(h->model, need, tables, (size_t)length);
  if (status != ECX_OK) {
    PyMem_Free(h->raw);
    PyMem_Free(h);
    return fail(status);
  }
  return PyCapsule_New(h, CAPSULE, destroy);
}

static PyObject *channels(PyObject *self, PyObject *capsule) {
  const ecx_model *m = model_of(capsule);
  (void)self;
  if (!m) return NULL;
  return Py_BuildValue("(ii)", ecx_latent_channels(m), ecx_hyper_channels(m));
}

/* Sizes of z and of the latents in values; -1 with an error set where they are out of range.
 * At most 2^25 values of 4 bytes each, which 32-bit Py_ssize_t holds. */
static int counts(const ecx_model *m, int zh, int zw, Py_ssize_t *z, Py_ssize_t *y) {
  if (zh < 1 || zw < 1 || zh > ECX_MAX_SIDE || zw > ECX_MAX_SIDE) {
    fail(ECX_ARGUMENT);
    return -1;
  }
  *z = (Py_ssize_t)zh * zw * ecx_hyper_channels(m);
  *y = (Py_ssize_t)4 * zh * zw * ecx_latent_channels(m);
  return 0;
}

static int check(const Py_buffer *b, Py_ssize_t values, Py_ssize_t size, const char *name) {
  if (b->len == values * size) return 0;
  PyErr_Format(PyExc_ValueError, "%s has %zd bytes, expected %zd", name, b->len, values * size);
  return -1;
}

/* Scratch of the functions that walk through a tile, to be aligned; NULL with an error set. */
static void *new_scratch(const ecx_model *m, int zh, int zw, size_t *bytes) {
  void *scratch = PyMem_Malloc((*bytes = ecx_scratch_bytes(m, zh, zw)) + ALIGNMENT);
  if (!scratch) PyErr_NoMemory();
  return scratch;
}

static PyObject *end_walk(int status, void *scratch) {
  PyMem_Free(scratch);
  return status == ECX_OK ? Py_NewRef(Py_None) : fail(status);
}

/* No thresholds at all round to the nearest. */
static int check_reluctance(const ecx_model *m, const Py_buffer *b) {
  return b->len == 0 ? 0 : check(b, (Py_ssize_t)ecx_levels(m) * ECX_RELUCTANCES, 4, "reluctance");
}

static const float *reluctance_of(const Py_buffer *b) {
  return b->len ? (const float *)b->buf : NULL;
}

static PyObject *predict(PyObject *self, PyObject *args) {
  PyObject *capsule, *result = NULL;
  const ecx_model *m;
  Py_buffer z, s, mu, index;
  Py_ssize_t nz, ny;
  size_t scratch_bytes;
  void *scratch;
  int q, zh, zw, status;
  (void)self;
  if (!PyArg_ParseTuple(args, "Oiiiy*y*w*w*", &capsule, &q, &zh, &zw, &z, &s, &mu, &index))
    return NULL;
  m = model_of(capsule);
  if (m && !counts(m, zh, zw, &nz, &ny) && !check(&z, nz, 2, "z") && !check(&s, ny, 2, "s") &&
      !check(&mu, ny, 2, "mu") && !check(&index, ny, 1, "index")) {
    scratch = new_scratch(m, zh, zw, &scratch_bytes);
    if (scratch) {
      Py_BEGIN_ALLOW_THREADS
      status = ecx_predict(m, q, zh, zw, (const int16_t *)z.buf, (const int16_t *)s.buf,
                           align(scratch), scratch_bytes, (int16_t *)mu.buf, (uint8_t *)index.buf);
      Py_END_ALLOW_THREADS
      result = end_walk(status, scratch);
    }
  }
  PyBuffer_Release(&z);
  PyBuffer_Release(&s);
  PyBuffer_Release(&mu);
  PyBuffer_Release(&index);
  return result;
}

static PyObject *quantize(PyObject *self, PyObject *args) {
  PyObject *capsule, *result = NULL;
  const ecx_model *m;
  Py_buffer z, y, reluctance, s, index;
  Py_ssize_t nz, ny;
  size_t scratch_bytes;
  void *scratch;
  int q, zh, zw, status;
  (void)self;
  if (!PyArg_ParseTuple(args, "Oiiiy*y*y*w*w*", &capsule, &q, &zh, &zw, &z, &y, &reluctance, &s,
                        &index))
    return NULL;
  m = model_of(capsule);
  if (m && !counts(m, zh, zw, &nz, &ny) && !check(&z, nz, 2, "z") && !check(&y, ny, 4, "y") &&
      !check_reluctance(m, &reluctance) &&
      !check(&s, ny, 2, "s") && !check(&index, ny, 1, "index")) {
    scratch = new_scratch(m, zh, zw, &scratch_bytes);
    if (scratch) {
      Py_BEGIN_ALLOW_THREADS
      status = ecx_quantize(m, q, zh, zw, (const int16_t *)z.buf, (const float *)y.buf,
                            reluctance_of(&reluctance), align(scratch), scratch_bytes,
                            (int16_t *)s.buf, (uint8_t *)index.buf);
      Py_END_ALLOW_THREADS
      result = end_walk(status, scratch);
    }
  }
  PyBuffer_Release(&z);
  PyBuffer_Release(&y);
  PyBuffer_Release(&reluctance);
  PyBuffer_Release(&s);
  PyBuffer_Release(&index);
  return result;
}

static PyObject *price(PyObject *self, PyObject *args) {
  PyObject *capsule, *result = NULL;
  const ecx_model *m;
  Py_buffer z, y, reluctance, bits, cost;
  Py_ssize_t nz, ny;
  size_t scratch_bytes;
  float weight;
  void *scratch;
  int q, zh, zw, status;
  (void)self;
  if (!PyArg_ParseTuple(args, "Oiiiy*y*y*y*fw*", &capsule, &q, &zh, &zw, &z, &y, &reluctance,
                        &bits, &weight, &cost))
    return NULL;
  m = model_of(capsule);
  if (m && !counts(m, zh, zw, &nz, &ny) && !check(&z, nz, 2, "z") && !check(&y, ny, 4, "y") &&
      !check_reluctance(m, &reluctance) &&
      !check(&bits, (Py_ssize_t)ecx_price_entries(m), 4, "bits") &&
      !check(&cost, (Py_ssize_t)zh * zw, 4, "cost")) {
    scratch = new_scratch(m, zh, zw, &scratch_bytes);
    if (scratch) {
      Py_BEGIN_ALLOW_THREADS
      status = ecx_price(m, q, zh, zw, (const int16_t *)z.buf, (const float *)y.buf,
                         reluctance_of(&reluctance),
                         (const float *)bits.buf, weight, align(scratch), scratch_bytes,
                         (float *)cost.buf);
      Py_END_ALLOW_THREADS
      result = end_walk(status, scratch);
    }
  }
  PyBuffer_Release(&z);
  PyBuffer_Release(&y);
  PyBuffer_Release(&reluctance);
  PyBuffer_Release(&bits);
  PyBuffer_Release(&cost);
  return result;
}

static PyObject *encode_locked(const ecx_model *m, int q, int zh, int zw, const Py_buffer *z,
                               const Py_buffer *index, const Py_buffer *s) {
  size_t scratch_bytes = ecx_encode_scratch_bytes(m, zh, zw);
  size_t capacity = ecx_encode_bound(m, zh, zw), written = 0;
  void *scratch = PyMem_Malloc(scratch_bytes);
  uint8_t *out = (uint8_t *)PyMem_Malloc(capacity);
  PyObject *result = NULL;
  int status;
  if (!scratch || !out) {
    PyErr_NoMemory();
  } else {
    Py_BEGIN_ALLOW_THREADS
    status = ecx_encode(m, q, zh, zw, (const int16_t *)z->buf, (const uint8_t *)index->buf,
                        (const int16_t *)s->buf, scratch, scratch_bytes, out, capacity, &written);
    Py_END_ALLOW_THREADS
    result = status == ECX_OK
                 ? PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)written)
                 : fail(status);
  }
  PyMem_Free(scratch);
  PyMem_Free(out);
  return result;
}

static PyObject *encode(PyObject *self, PyObject *args) {
  PyObject *capsule, *result = NULL;
  const ecx_model *m;
  Py_buffer z, index, s;
  Py_ssize_t nz, ny;
  int q, zh, zw;
  (void)self;
  if (!PyArg_ParseTuple(args, "Oiiiy*y*y*", &capsule, &q, &zh, &zw, &z, &index, &s)) return NULL;
  m = model_of(capsule);
  if (m && !counts(m, zh, zw, &nz, &ny) && !check(&z, nz, 2, "z") &&
      !check(&index, ny, 1, "index") && !check(&s, ny, 2, "s"))
    result = encode_locked(m, q, zh, zw, &z, &index, &s);
  PyBuffer_Release(&z);
  PyBuffer_Release(&index);
  PyBuffer_Release(&s);
  return result;
}

static PyObject *decode(PyObject *self, PyObject *args) {
  PyObject *capsule, *result = NULL;
  const ecx_model *m;
  Py_buffer data, z, y;
  Py_ssize_t nz, ny;
  size_t scratch_bytes;
  void *scratch;
  int q, zh, zw, status;
  (void)self;
  if (!PyArg_ParseTuple(args, "Oiiiy*w*w*", &capsule, &q, &zh, &zw, &data, &z, &y)) return NULL;
  m = model_of(capsule);
  if (m && !counts(m, zh, zw, &nz, &ny) && !check(&z, nz, 2, "z") && !check(&y, ny, 2, "y_hat")) {
    scratch = new_scratch(m, zh, zw, &scratch_bytes);
    if (scratch) {
      Py_BEGIN_ALLOW_THREADS
      status = ecx_decode(m, q, zh, zw, (const uint8_t *)data.buf, (size_t)data.len,
                          align(scratch), scratch_bytes, (int16_t *)z.buf, (int16_t *)y.buf);
      Py_END_ALLOW_THREADS
      result = end_walk(status, scratch);
    }
  }
  PyBuffer_Release(&data);
  PyBuffer_Release(&z);
  PyBuffer_Release(&y);
  return result;
}

/* Whether a buffer holds rows of positions, each without gaps, of values of `size` bytes. */
static int is_picture(const Py_buffer *b, Py_ssize_t size) {
  return b->ndim == 3 && b->itemsize == size && b->strides[2] == size &&
         b->strides[1] == size * b->shape[2] && b->strides[0] % size == 0 &&
         (uintptr_t)b->buf % (size_t)size == 0;
}

/* The side of the squares that hold a picture of this shape; 0 where there is none. */
static int side_of(const Py_ssize_t *squares, const Py_ssize_t *picture) {
  int side = 1, i;
  while (3 * side * side < squares[2] && side < MAX_SQUARE) side++;
  if (squares[2] != 3 * side * side || picture[2] != 4) return 0;
  for (i = 0; i < 2; i++)
    if (squares[i] != (picture[i] + side - 1) / side) return 0;
  return side;
}

/* Returns whether all levels are finite; -1 where the buffers do not fit. */
static int pack_rows(const Py_buffer *levels, const Py_buffer *samples) {
  const Py_ssize_t height = samples->shape[0];
  const int side = side_of(levels->shape, samples->shape);
  Py_ssize_t y;
  int finite = 1;
  if (!side || !is_picture(levels, 4) || !is_picture(samples, 1) || samples->strides[0] < 0)
    return -1;
  Py_BEGIN_ALLOW_THREADS
  for (y = 0; y * side < height; y++) {
    const Py_ssize_t below = height - y * side;
    finite &= ecx_pack(
        (const float *)(const void *)((const char *)levels->buf + y * levels->strides[0]), side,
        (size_t)samples->shape[1], below < side ? (int)below : side,
        (uint8_t *)samples->buf + y * side * samples->strides[0], (size_t)samples->strides[0]);
  }
  Py_END_ALLOW_THREADS
  return finite;
}

static PyObject *pack(PyObject *self, PyObject *args) {
  PyObject *from, *to, *result = NULL;
  Py_buffer levels, samples;
  int finite;
  (void)self;
  if (!PyArg_ParseTuple(args, "OO", &from, &to)) return NULL;
  if (PyObject_GetBuffer(from, &levels, PyBUF_STRIDES | PyBUF_FORMAT)) return NULL;
  if (!PyObject_GetBuffer(to, &samples, PyBUF_STRIDES | PyBUF_WRITABLE)) {
    if (levels.ndim != 3 || samples.ndim != 3 || !levels.format || levels.format[0] != 'f' ||
        (finite = pack_rows(&levels, &samples)) < 0)
      fail(ECX_ARGUMENT);
    else
      result = PyBool_FromLong(finite);
    PyBuffer_Release(&samples);
  }
  PyBuffer_Release(&levels);
  return result;
}

static PyMethodDef methods[] = {
    {"load", load, METH_VARARGS, "load(tables) -> model"},
    {"channels", channels, METH_O, "channels(model) -> (latent, hyper)"},
    {"predict", predict, METH_VARARGS, "predict(model, quality, zh, zw, z, s, mu, index)"},
    {"quantize", quantize, METH_VARARGS,
     "quantize(model, quality, zh, zw, z, y, reluctance, s, index)"},
    {"price", price, METH_VARARGS,
     "price(model, quality, zh, zw, z, y, reluctance, bits, weight, cost)"},
    {"encode", encode, METH_VARARGS, "encode(model, quality, zh, zw, z, index, s) -> bytes"},
    {"decode", decode, METH_VARARGS, "decode(model, quality, zh, zw, data, z, y_hat)"},
    {"share", edgecodec_share, METH_O, "share(bytes) -> (schema, array), for __arrow_c_array__"},
    {"pack", pack, METH_VARARGS, "pack(levels, samples) -> bool"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_binding", "The C core of edgecodec.", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__binding(void);
PyMODINIT_FUNC PyInit__binding(void) { return PyModule_Create(&module); }
