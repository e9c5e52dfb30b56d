// libcublasLt.so.13 for machines without a GPU: products of bf16 matrices with sums in F32, as smelt asks for them. A
// product happens as late as it may (see late.cpp). The order of a sum changes with the number of columns of C, as the
// choice of algorithms does in NVIDIA's library.
#include <vector>

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

extern "C" {
int smelt_sim_before_late(void* stream);
int smelt_sim_late(void* stream, int (*finish)(void* argument, int may_wait), void* argument);
int smelt_sim_check(const char* what, const void* p, size_t bytes, void* stream);
int smelt_sim_poison(void* p, size_t bytes);
int smelt_sim_load(void* to_host, const void* from, size_t bytes);
int smelt_sim_store(void* to, const void* from_host, size_t bytes);
}

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, TRANSA = 3, TRANSB = 4, MAX_WORKSPACE_BYTES = 1 };
constexpr size_t WORKSPACE = 4096;

struct Object {
  uint64_t magic;
};
template <uint64_t MAGIC>
struct Of : Object {
  Of() : Object{MAGIC} {}
  ~Of() { magic = 0; }
  static bool is(const Object* o) { return o && o->magic == MAGIC; }
};
struct Library : Of<0x1b> {};
struct Product : Of<0xd5> {
  int transposed[2] = {0, 0};
};
struct Layout : Of<0x1a> {
  int type;
  uint64_t rows, cols;
  int64_t pitch;
};
struct Preference : Of<0x9f> {
  size_t workspace = 0;
};
struct Algorithm {
  uint64_t data[8];
};
struct Choice {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

int refuse(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));
int refuse(int status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "simulator: cuBLASLt: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  return status;
}

struct Sizes {
  uint64_t m, n, k;  // of C by columns: m rows
};

// 0, or why the matrices cannot be multiplied.
int sizes_of(const Product* p, const Layout* a, const Layout* b, const Layout* c, Sizes* s) {
  if (!Product::is(p) || !Layout::is(a) || !Layout::is(b) || !Layout::is(c)) {
    return refuse(INVALID_VALUE, "a descriptor is not one");
  }
  if (a->type != R_16BF || b->type != R_16BF || c->type != R_32F) return refuse(NOT_SUPPORTED, "these types");
  for (const Layout* l : {a, b, c}) {
    if (!l->rows || !l->cols || l->pitch < (int64_t)l->rows) return refuse(INVALID_VALUE, "a matrix has no such pitch");
  }
  auto dims = [](const Layout* l, int transposed, uint64_t* rows, uint64_t* cols) {
    *rows = transposed ? l->cols : l->rows;
    *cols = transposed ? l->rows : l->cols;
  };
  uint64_t also_k;
  dims(a, p->transposed[0], &s->m, &s->k);
  dims(b, p->transposed[1], &also_k, &s->n);
  if (also_k != s->k || c->rows != s->m || c->cols != s->n) return refuse(INVALID_VALUE, "the matrices do not fit");
  return SUCCESS;
}

size_t elements(const Layout& l) { return (size_t)l.pitch * (l.cols - 1) + l.rows; }

float of_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

struct Late {
  Product product;
  Layout layouts[3];
  Sizes sizes;
  const void *a, *b;
  void* c;
  float alpha, beta;
};

int finish(void* argument, int) {
  Late* late = (Late*)argument;
  const auto& [a, b, c] = late->layouts;
  std::vector<uint16_t> from_a(elements(a)), from_b(elements(b));
  std::vector<float> to(elements(c));
  if (smelt_sim_load(from_a.data(), late->a, from_a.size() * 2) ||
      smelt_sim_load(from_b.data(), late->b, from_b.size() * 2) ||
      smelt_sim_load(to.data(), late->c, to.size() * 4)) {
    return 1;  // said by the driver
  }
  auto at = [](const std::vector<uint16_t>& from, const Layout& l, int transposed, uint64_t row, uint64_t col) {
    if (transposed) std::swap(row, col);
    return of_bf16(from[(size_t)l.pitch * col + row]);
  };
  const Sizes& s = late->sizes;
  uint64_t parts = 1 + s.n % 3;  // of the sum
  for (uint64_t j = 0; j < s.n; j++) {
    for (uint64_t i = 0; i < s.m; i++) {
      float sum = 0;
      for (uint64_t part = 0; part < parts; part++) {
        float of_part = 0;
        for (uint64_t k = part; k < s.k; k += parts) {
          of_part +=
              at(from_a, a, late->product.transposed[0], i, k) * at(from_b, b, late->product.transposed[1], k, j);
        }
        sum += of_part;
      }
      float& value = to[(size_t)c.pitch * j + i];
      value = late->alpha * sum + (late->beta == 0 ? 0 : late->beta * value);
    }
  }
  for (uint64_t j = 0; j < s.n; j++) {
    size_t column = (size_t)c.pitch * j;
    if (smelt_sim_store((float*)late->c + column, to.data() + column, s.m * 4)) return 1;
  }
  delete late;
  return 1;
}

}  // namespace

API size_t cublasLtGetVersion() { return 130100; }
API int cublasLtCreate(Library** library) {
  *library = new Library;
  return SUCCESS;
}
API int cublasLtDestroy(Library* library) {
  if (!Library::is(library)) return refuse(INVALID_VALUE, "destroy of what is not a handle");
  delete library;
  return SUCCESS;
}
API int cublasLtMatmulDescCreate(Product** product, int compute, int scale) {
  if (compute != COMPUTE_32F || scale != R_32F) return refuse(NOT_SUPPORTED, "sums other than F32");
  *product = new Product;
  return SUCCESS;
}
API int cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t bytes) {
  if (!Product::is(product) || bytes != 4) return refuse(INVALID_VALUE, "an attribute of a product");
  if (attribute != TRANSA && attribute != TRANSB) return refuse(NOT_SUPPORTED, "attribute %d", attribute);
  memcpy(&product->transposed[attribute - TRANSA], value, 4);
  return SUCCESS;
}
API int cublasLtMatmulDescDestroy(Product* product) {
  if (!Product::is(product)) return refuse(INVALID_VALUE, "destroy of what is not a product");
  delete product;
  return SUCCESS;
}
API int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t pitch) {
  *layout = new Layout;
  (*layout)->type = type;
  (*layout)->rows = rows;
  (*layout)->cols = cols;
  (*layout)->pitch = pitch;
  return SUCCESS;
}
API int cublasLtMatrixLayoutDestroy(Layout* layout) {
  if (!Layout::is(layout)) return refuse(INVALID_VALUE, "destroy of what is not a layout");
  delete layout;
  return SUCCESS;
}
API int cublasLtMatmulPreferenceCreate(Preference** preference) {
  *preference = new Preference;
  return SUCCESS;
}
API int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
  if (!Preference::is(preference) || attribute != MAX_WORKSPACE_BYTES || bytes != sizeof(size_t)) {
    return refuse(INVALID_VALUE, "an attribute of a preference");
  }
  memcpy(&preference->workspace, value, sizeof(size_t));
  return SUCCESS;
}
API int cublasLtMatmulPreferenceDestroy(Preference* preference) {
  if (!Preference::is(preference)) return refuse(INVALID_VALUE, "destroy of what is not a preference");
  delete preference;
  return SUCCESS;
}

API int cublasLtMatmulAlgoGetHeuristic(Library* library, Product* product, Layout* a, Layout* b, Layout* c, Layout* d,
                                       Preference* preference, int wanted, Choice* choice, int* found) {
  *found = 0;
  Sizes s;
  if (!Library::is(library) || !Preference::is(preference) || wanted < 1 || c != d) {
    return refuse(INVALID_VALUE, "what it is to choose for");
  }
  if (int status = sizes_of(product, a, b, c, &s)) return status;
  if (preference->workspace < WORKSPACE) return refuse(NOT_SUPPORTED, "less memory than %zu bytes", WORKSPACE);
  *choice = Choice{{{s.m, s.n, s.k, 0x6c74}}, WORKSPACE, SUCCESS, 1.f, {}};
  *found = 1;
  return SUCCESS;
}

API int cublasLtMatmul(Library* library, Product* product, const float* alpha, const void* a, Layout* a_layout,
                       const void* b, Layout* b_layout, const float* beta, const void* c, Layout* c_layout, void* d,
                       Layout* d_layout, const Algorithm* algorithm, void* workspace, size_t bytes, void* stream) {
  Sizes s;
  if (!Library::is(library) || c != d || c_layout != d_layout) return refuse(INVALID_VALUE, "what it is to multiply");
  if (int status = sizes_of(product, a_layout, b_layout, c_layout, &s)) return status;
  const uint64_t* of = algorithm->data;
  if (of[0] != s.m || of[1] != s.n || of[2] != s.k || of[3] != 0x6c74) {
    return refuse(INVALID_VALUE, "the algorithm was chosen for another product");
  }
  if (bytes < WORKSPACE)
    return refuse(INVALID_VALUE, "%zu bytes of workspace, the algorithm wants %zu", bytes, WORKSPACE);
  if (int error = smelt_sim_before_late(stream)) return refuse(EXECUTION_FAILED, "the stream: error %d", error);
  if (smelt_sim_check("cuBLASLt reads a", a, elements(*a_layout) * 2, stream) ||
      smelt_sim_check("cuBLASLt reads b", b, elements(*b_layout) * 2, stream) ||
      smelt_sim_check("cuBLASLt writes c", d, elements(*c_layout) * 4, stream) ||
      smelt_sim_check("cuBLASLt's workspace", workspace, WORKSPACE, stream)) {
    return EXECUTION_FAILED;
  }
  smelt_sim_poison(workspace, WORKSPACE);
  Late* late = new Late{*product, {*a_layout, *b_layout, *c_layout}, s, a, b, d, *alpha, *beta};
  if (int error = smelt_sim_late(stream, finish, late)) return refuse(EXECUTION_FAILED, "the stream: error %d", error);
  return SUCCESS;
}
