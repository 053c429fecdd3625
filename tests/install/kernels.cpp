// Runs the kernels of one instruction set on numbers that every machine draws alike, and prints what they compute.
#include <cstdio>
#include <vector>

#include "cut_polygons.h"
#include "isa.h"
#include "padding.h"

using namespace llr_fast;

static uint32_t state = 1;

static double uniform() {  // from -1 to 1, exact in both types
  state = state * 1664525u + 1013904223u;
  return static_cast<double>(static_cast<int32_t>(state) >> 12) / (1 << 19);
}

// Rows that start on cache lines, where the kernels ask for it.
template <class T>
struct Array {
  int64_t rows, width, stride, size;
  std::vector<T> memory;
  T* first;

  Array(int64_t rows_, int64_t width_, bool pad = false, bool draw = true)
      : rows(rows_),
        width(width_),
        stride(pad ? padded<T>(width_) : width_),
        size(rows * stride),
        memory(size + kCacheLine, T(0)) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    first = memory.data() + ((kCacheLine - address % kCacheLine) % kCacheLine) / sizeof(T);
    for (int64_t i = 0; draw && i < rows; ++i)
      for (int64_t j = 0; j < width; ++j) first[i * stride + j] = static_cast<T>(uniform());
  }
  Array(const Array&) = delete;
};

template <class T>
static void print(const char* name, const T* first, int64_t count) {
  std::printf("%s %d", name, static_cast<int>(sizeof(T)));
  for (int64_t i = 0; i < count; ++i) std::printf(" %.17g", static_cast<double>(first[i]));
  std::printf("\n");
}

template <class T>
static void print(const char* name, const Array<T>& a) {
  print(name, a.first, a.size);
}

static int64_t items(int64_t n) { return (n + kTangentBlock - 1) / kTangentBlock; }

template <class T>
static void activations(int64_t K, int64_t B, int64_t n) {
  Array<T> tangents(K * B, n), slope(B, n), out(K * B, n), stat(B, n), d_out(K * B, n), d_stat(B, n);
  Array<T> d_tangents(K * B, n), d_slope(B, n);
  for (const Statistic statistic : {Statistic::sum_squares, Statistic::sum_abs, Statistic::max_abs}) {
    const Tangents<T> t{K, 1, B * n, B * n, 0, tangents.first, slope.first, statistic, false};
    kernels<T>().tangent_activation(t, out.first, stat.first, 0, items(B * n));
    print("tangent_activation", out), print("tangent_activation.stat", stat);
    const TangentGradients<T> g{d_out.first, d_stat.first, stat.first, d_tangents.first, d_slope.first, false};
    kernels<T>().tangent_activation_backward(t, g, 0, items(B * n));
    print("tangent_activation_backward", d_tangents), print("tangent_activation_backward.slope", d_slope);
  }
  Array<T> z(1, n), own(K, n), masked(K, n), above(1, n), sums(items(n), 2), d_sums(1, 2), d_masked(K, n), d_z(1, n);
  Array<T> d_own(K, n), d_factor(1, 1, false, false), factor(1, 1);
  std::vector<int8_t> code(n);
  const Ramp<T> ramp{T(0), T(0.75), T(0.125), {nullptr, 1, 1}};
  const RollActivation<T> a{ramp, {factor.first, 1, 1}, K, n, z.first, own.first, false};
  kernels<T>().roll_activation(a, {above.first, masked.first, code.data(), sums.first}, 0, items(n));
  print("roll_activation", above), print("roll_activation.masked", masked), print("roll_activation.sums", sums);
  print("roll_activation.code", code.data(), n);
  const RollGradients<T> g{d_out.first, d_masked.first, d_sums.first,  code.data(),
                           d_z.first,   d_own.first,    d_factor.first};
  kernels<T>().roll_activation_backward(a, g, 0, items(n));
  print("roll_activation_backward", d_z), print("roll_activation_backward.tangents", d_own);
  print("roll_activation_backward.factor", d_factor);
}

template <class T>
static void pools() {
  constexpr int64_t N = 2, K = 3, inner = 5, space = 6 * 7, size = 3 * 3;
  Array<T> z(N, space * inner), tangents(K, N * space * inner), out(N, size * inner), winning(K, N * size * inner);
  Array<T> sums(N, 2), d_out(N, size * inner), d_winning(K, N * size * inner), d_sums(1, 2);
  Array<T> d_z(N, space * inner), d_tangents(K, N * space * inner);
  std::vector<int32_t> index(N * size * inner);
  const Windows windows{{1, 6, 7}, {1, 2, 3}, {1, 2, 2}, {0, 0, 0}, {1, 1, 1}, {1, 3, 3}};
  const RollMaxPool<T> a{windows, K, N, inner, z.first, tangents.first};
  kernels<T>().roll_max_pool(a, {out.first, winning.first, index.data(), sums.first}, 0, N);
  print("roll_max_pool", out), print("roll_max_pool.winning", winning), print("roll_max_pool.sums", sums);
  print("roll_max_pool.index", index.data(), N * size * inner);
  kernels<T>().roll_max_pool_backward(
      a, {d_out.first, d_winning.first, d_sums.first, index.data(), d_z.first, d_tangents.first}, 0, N);
  print("roll_max_pool_backward", d_z), print("roll_max_pool_backward.tangents", d_tangents);
}

template <class T>
static void products(int64_t K, int64_t B, int64_t n, int64_t O) {
  Array<T> slope(B, n), weight(O, n, true), transposed(n, O, true, false), tangents(K * B, n, true);
  for (int64_t i = 0; i < B * n; i += 2) slope.first[i] = 0;  // neurons that are not active
  for (int64_t o = 0; o < O; ++o)
    for (int64_t j = 0; j < n; ++j) transposed.first[j * transposed.stride + o] = weight.first[o * weight.stride + j];
  const MaskedLinear<T> m{.K = K,
                          .B = B,
                          .n = n,
                          .outputs = O,
                          .k_stride = B * tangents.stride,
                          .b_stride = tangents.stride,
                          .tangents = tangents.first,
                          .slope = slope.first,
                          .weight = weight.first,
                          .weight_transposed = transposed.first,
                          .statistic = Statistic::sum_squares};
  Array<T> out(K * B, O), stat(B, O), d_out(K * B, O), d_tangents(K * B, n, true, false), d_weight(O, n, true, false);
  kernels<T>().masked_linear(m, out.first, stat.first, 0, B);
  print("masked_linear", out), print("masked_linear.stat", stat);
  kernels<T>().masked_linear_backward(
      m, {d_out.first, d_tangents.first, B * d_tangents.stride, d_tangents.stride, d_weight.first}, 0, B);
  print("masked_linear_backward", d_tangents), print("masked_linear_backward.weight", d_weight);

  Array<T> gram(n, n, true), products(B * O, O), diagonal(B, O), d_diagonal(B, O), d_products(B * O, O);
  Array<T> d_gram(n, n, true, false), d_slope(B, n, false, false), d_layer(O, n, true, false);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) gram.first[i * gram.stride + j] = gram.first[j * gram.stride + i];
  const GramLinear<T> l{n, O, gram.first, 0, slope.first, weight.first, transposed.first};
  kernels<T>().gram_linear(l, products.first, diagonal.first, 0, B);
  print("gram_linear", products), print("gram_linear.diagonal", diagonal);
  kernels<T>().gram_linear_backward(
      l, {d_products.first, d_diagonal.first, d_gram.first, 0, d_slope.first, d_layer.first}, 0, B);
  print("gram_linear_backward", d_gram), print("gram_linear_backward.slope", d_slope);
  print("gram_linear_backward.weight", d_layer);

  const int64_t widths[] = {n, O};
  const T *weights[] = {nullptr, weight.first}, *transposes[] = {nullptr, transposed.first};
  const T* slopes[] = {slope.first, nullptr};
  const DenseChain<T> chain{2, widths, gram.first, weights, transposes, nullptr, slopes, false};
  Array<T> norms(B, n + O, false, false);
  kernels<T>().gram_norms(chain, {n + O, norms.first, nullptr, nullptr, nullptr, nullptr, nullptr}, 0, B);
  for (int64_t b = 0; b < B; ++b) print("gram_norms", norms.first + b * (n + O) + n, O);
}

template <class T>
static void ratios_and_lines(int64_t n) {
  Array<T> distance(1, n), norm(1, n), ratio(1, n), a(1, n), b(1, n), c(1, n);
  Array<float> wide(1, n);
  for (int64_t i = 0; i < n; i += 7) norm.first[i] = 0;
  kernels<T>().margin_ratios(distance.first, norm.first, n, ratio.first), print("margin_ratios", ratio);
  kernels<T>().margin_ratios_by_float(distance.first, wide.first, n, ratio.first),
      print("margin_ratios_by_float", ratio);
  const T square[] = {-1, -1, 1, -1, 1, 1, -1, 1};
  std::vector<int64_t> found(n + 1);
  const int64_t count = kernels<T>().crossing_lines({a.first, b.first, c.first}, n, square, 4, T(1e-3), found.data());
  print("crossing_lines", found.data(), count);
}

static void polygons(int64_t n) {
  Array<double> lines(3, n);
  const std::vector<LayerOfLines> layers{
      {n, n, {lines.first, lines.first + lines.stride, lines.first + 2 * lines.stride}}};
  const double square[] = {-1, -1, 1, -1, 1, 1, -1, 1}, centre[] = {0, 0};
  PolygonCutter cutter(layers, 1e-9);
  cutter.cut(0, square, 4, centre);
  const Parts& parts = cutter.parts();
  print("cut_polygons.sizes", parts.sizes.data(), parts.sizes.size());
  print("cut_polygons", parts.vertices.data(), parts.vertices.size());
  print("cut_polygons.centres", parts.centres.data(), parts.centres.size());
}

template <class T>
static void all() {
  for (const int64_t n : {1, 5, 64, 2061}) activations<T>(3, 2, n);
  pools<T>();
  for (const int64_t n : {1, 7, 33}) products<T>(5, 3, n, n + 2);
  products<T>(40, 2, 70, 20);
  ratios_and_lines<T>(203);
}

int main() {
  std::fprintf(stderr, "%s\n", instruction_set().name);
  all<float>();
  all<double>();
  polygons(12);
}
