/* Bytes of Python for others to use where they lie, as the Arrow C data interface describes them
 * (https://arrow.apache.org/docs/format/CDataInterface.html: names and order of the fields).
 *
 * Pillow takes over the memory of a picture so, without a copy.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

struct ArrowSchema {
  const char *format, *name, *metadata;
  int64_t flags, n_children;
  struct ArrowSchema **children, *dictionary;
  void (*release)(struct ArrowSchema *);
  void *private_data;
};

struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void **buffers;
  struct ArrowArray **children, *dictionary;
  void (*release)(struct ArrowArray *);
  void *private_data;
};

typedef struct {
  const void *buffers[2];
  Py_buffer bytes;
} shared;

static void release_schema(struct ArrowSchema *schema) { schema->release = NULL; }

/* Whoever takes the structure out of its capsule may call this from any thread. */
static void release_array(struct ArrowArray *array) {
  PyGILState_STATE state = PyGILState_Ensure();
  shared *s = (shared *)array->private_data;
  array->release = NULL;
  PyBuffer_Release(&s->bytes);
  PyMem_Free(s);
  PyGILState_Release(state);
}

static void destroy_schema(PyObject *capsule) {
  PyMem_Free(PyCapsule_GetPointer(capsule, "arrow_schema"));
}

static void destroy_array(PyObject *capsule) {
  struct ArrowArray *array = (struct ArrowArray *)PyCapsule_GetPointer(capsule, "arrow_array");
  if (array && array->release) array->release(array);
  PyMem_Free(array);
}

static PyObject *schema_capsule(void) {
  static const char bytes[] = "C", nameless[] = "";
  PyObject *capsule;
  struct ArrowSchema *schema = (struct ArrowSchema *)PyMem_Calloc(1, sizeof *schema);
  if (!schema) return PyErr_NoMemory();
  schema->format = bytes;
  schema->name = nameless;
  schema->release = release_schema;
  capsule = PyCapsule_New(schema, "arrow_schema", destroy_schema);
  if (!capsule) PyMem_Free(schema);
  return capsule;
}

/* Makes `array` share the bytes of an object, until it is released. */
static int share_bytes(PyObject *owner, struct ArrowArray *array) {
  shared *s = (shared *)PyMem_Calloc(1, sizeof *s);
  if (!s) {
    PyErr_NoMemory();
    return -1;
  }
  if (PyObject_GetBuffer(owner, &s->bytes, PyBUF_SIMPLE)) {
    PyMem_Free(s);
    return -1;
  }
  s->buffers[1] = s->bytes.buf;
  array->length = s->bytes.len;
  array->n_buffers = 2;
  array->buffers = s->buffers;
  array->release = release_array;
  array->private_data = s;
  return 0;
}

static PyObject *array_capsule(PyObject *owner) {
  PyObject *capsule = NULL;
  struct ArrowArray *array = (struct ArrowArray *)PyMem_Calloc(1, sizeof *array);
  if (!array) return PyErr_NoMemory();
  if (!share_bytes(owner, array)) {
    capsule = PyCapsule_New(array, "arrow_array", destroy_array);
    if (!capsule) array->release(array);
  }
  if (!capsule) PyMem_Free(array);
  return capsule;
}

PyObject *edgecodec_share(PyObject *self, PyObject *bytes);
PyObject *edgecodec_share(PyObject *self, PyObject *bytes) {
  PyObject *schema, *array, *result = NULL;
  (void)self;
  schema = schema_capsule();
  if (!schema) return NULL;
  array = array_capsule(bytes);
  if (array) {
    result = PyTuple_Pack(2, schema, array);
    Py_DECREF(array);
  }
  Py_DECREF(schema);
  return result;
}
