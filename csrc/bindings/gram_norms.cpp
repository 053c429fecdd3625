#include <algorithm>
#include <tuple>
#include <vector>

#include "../kernels/isa.h"
#include "padded_rows.h"
#include "parallel.h"

namespace llr_fast {
namespace {

using torch::stable::copy_;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using Tensors = std::vector<Tensor>;

// a a^T with padded rows: blocks of rows up to the diagonal, and their mirror image.
template <class T>
Tensor padded_square(const Tensor& a) {
  constexpr int64_t block = 128;
  const int64_t n = a.size(0);
  Tensor out = new_zeros(a, {n, padded<T>(n)});
  for (int64_t start = 0; start < n; start += block) {
    const int64_t rows = std::min(block, n - start);
    const Tensor left = part(out, 0, start, rows);
    mm_out(part(left, 1, 0, start + rows), part(a, 0, start, rows), transposed(part(a, 0, 0, start + rows)));
    Tensor above = part(part(out, 0, 0, start), 1, start, rows);
    copy_(above, transposed(part(left, 1, 0, start)));
  }
  return out;
}

template <class T>
struct Chain {
  Tensors weights, slopes, padded_weights, padded_transposes, crosses;
  Tensor gram;
  std::vector<int64_t> widths;
  int64_t batch, neurons = 0;
  bool total;

  Chain(const Tensors& weights_, const Tensors& slopes_, bool total_) : total(total_) {
    STD_TORCH_CHECK(!weights_.empty() && slopes_.size() + 1 == weights_.size(), "gram_norms: one slope between layers");
    const ScalarType dtype = weights_[0].scalar_type();
    for (const Tensor& w : weights_) {
      STD_TORCH_CHECK(w.dim() == 2 && w.scalar_type() == dtype && (widths.empty() || w.size(1) == widths.back()),
                      "gram_norms: weights do not chain");
      weights.push_back(torch::stable::contiguous(w));
      widths.push_back(w.size(0));
      neurons += w.size(0);
    }
    batch = slopes_.empty() ? 1 : slopes_[0].size(0);
    for (const Tensor& s : slopes_) {
      STD_TORCH_CHECK(
          s.dim() == 2 && s.scalar_type() == dtype && s.size(0) == batch && s.size(1) == widths[slopes.size()],
          "gram_norms: slopes do not fit the weights");
      slopes.push_back(torch::stable::contiguous(s));
    }
    gram = padded_square<T>(weights[0]);
    for (size_t l = 1; l < weights.size(); ++l) {
      padded_weights.push_back(with_padded_rows<T>(weights[l]));
      padded_transposes.push_back(with_padded_rows<T>(transposed(weights[l])));
      if (total) crosses.push_back(padded_square<T>(transposed(weights[l])));
    }
  }

  int64_t layers() const { return widths.size(); }
  int64_t row() const { return total ? layers() : neurons; }
  // Each thread has seven matrices of its own for every layer.
  int64_t threads() const {
    int64_t elements = 0;
    for (const int64_t n : widths) elements += 7 * n * n;
    return thread_count<T>(batch, elements);
  }
};

template <class T>
struct Gradients {
  Tensor gram;
  Tensors weights, crosses, slopes;

  Gradients(const Chain<T>& chain, int64_t threads, bool slopes_need_gradient) {
    const auto& n = chain.widths;
    gram = new_zeros(chain.gram, {threads, n[0], padded<T>(n[0])});
    for (size_t l = 1; l < n.size(); ++l) {
      weights.push_back(new_zeros(gram, {threads, n[l], padded<T>(n[l - 1])}));
      if (chain.total) crosses.push_back(new_zeros(gram, {threads, n[l - 1], padded<T>(n[l - 1])}));
      if (slopes_need_gradient) slopes.push_back(new_zeros(chain.slopes[l - 1], {chain.batch, n[l - 1]}));
    }
  }
};

// Calls the kernel for the whole batch, each thread on samples of its own. `norms` and `upstream` may be null.
template <class T>
void run_batch(const Chain<T>& chain, T* norms, const T* upstream, Gradients<T>* gradients, int64_t threads) {
  // The first layer has neither of these.
  std::vector<const T*> weight{nullptr}, weight_transposed{nullptr}, cross{nullptr}, slope;
  for (const Tensor& w : chain.padded_weights) weight.push_back(data<T>(w));
  for (const Tensor& w : chain.padded_transposes) weight_transposed.push_back(data<T>(w));
  for (const Tensor& c : chain.crosses) cross.push_back(data<T>(c));
  for (const Tensor& s : chain.slopes) slope.push_back(data<T>(s));
  const bool slopes_need_gradient = gradients && !gradients->slopes.empty();
  const DenseChain<T> view{chain.layers(), chain.widths.data(),      data<T>(chain.gram),
                           weight.data(),  weight_transposed.data(), chain.total ? cross.data() : nullptr,
                           slope.data(),   slopes_need_gradient};

  const auto kernel = kernels<T>().gram_norms;
  const auto work = [&](int64_t thread, int64_t first, int64_t last) {
    GramNorms<T> task{chain.row(), norms, upstream, nullptr, nullptr, nullptr, nullptr};
    std::vector<T*> weight_gradient{nullptr}, cross_gradient{nullptr}, slope_gradient;
    if (gradients) {
      const auto share = [&](const Tensor& t) { return mutable_data<T>(t) + thread * t.stride(0); };
      for (const Tensor& g : gradients->weights) weight_gradient.push_back(share(g));
      for (const Tensor& g : gradients->crosses) cross_gradient.push_back(share(g));
      for (const Tensor& g : gradients->slopes) slope_gradient.push_back(mutable_data<T>(g));
      task.gram_gradient = share(gradients->gram);
      task.weight_gradient = weight_gradient.data();
      task.cross_gradient = cross_gradient.data();
      task.slope_gradient = slope_gradient.data();
    }
    kernel(view, task, first, last);
  };
  share_batch(chain.batch, threads, work);

  if (!norms) return;
  const T* gram = data<T>(chain.gram);
  const int64_t n = chain.widths[0], diagonal = padded<T>(n) + 1;
  for (int64_t b = 0; b < chain.batch; ++b) {
    T* row = norms + b * chain.row();
    if (chain.total) row[0] = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (chain.total)
        row[0] += gram[i * diagonal];
      else
        row[i] = gram[i * diagonal];
    }
  }
}

// From the kernel's gradients to those by the weights.
template <class T>
Tensors weight_gradients(const Chain<T>& chain, const Gradients<T>& gradients, const T* upstream) {
  const int64_t n = chain.widths[0];
  const Tensor gram = summed(gradients.gram, n);
  T* diagonal = mutable_data<T>(gram);
  for (int64_t b = 0; b < chain.batch; ++b)
    for (int64_t i = 0; i < n; ++i) diagonal[i * (n + 1)] += 2 * upstream[b * chain.row() + (chain.total ? 0 : i)];
  Tensors out{mm(gram, chain.weights[0])};
  for (size_t l = 1; l < chain.weights.size(); ++l) {
    const int64_t below = chain.widths[l - 1];
    out.push_back(summed(gradients.weights[l - 1], below));
    if (chain.total) out[l] = add(out[l], mm(chain.weights[l], summed(gradients.crosses[l - 1], below)));
  }
  return out;
}

template <class T>
Tensor norms_of(const Tensors& weights, const Tensors& slopes, bool total) {
  const Chain<T> chain(weights, slopes, total);
  Tensor norms = new_empty(chain.gram, {chain.batch, chain.row()});
  run_batch<T>(chain, mutable_data<T>(norms), nullptr, nullptr, chain.threads());
  return norms;
}

using NormsAndGradients = std::tuple<Tensor, Tensors, Tensors>;

template <class T>
NormsAndGradients gradients_of(const Tensor& upstream_, const Tensors& weights, const Tensors& slopes, bool total,
                               bool needs_slopes, bool needs_norms) {
  const Chain<T> chain(weights, slopes, total);
  const Tensor upstream = torch::stable::contiguous(upstream_);
  STD_TORCH_CHECK(upstream.scalar_type() == chain.weights[0].scalar_type() && upstream.dim() == 2 &&
                      upstream.size(0) == chain.batch && upstream.size(1) == chain.row(),
                  "gram_norms: upstream gradient does not fit");
  const int64_t threads = chain.threads();
  Gradients<T> gradients(chain, threads, needs_slopes);
  Tensor norms = new_empty(chain.gram, {needs_norms ? chain.batch : 0, chain.row()});
  run_batch<T>(chain, needs_norms ? mutable_data<T>(norms) : nullptr, data<T>(upstream), &gradients, threads);
  return {norms, weight_gradients(chain, gradients, data<T>(upstream)), gradients.slopes};
}

bool is_double(const Tensors& weights) {
  STD_TORCH_CHECK(!weights.empty(), "gram_norms: no weights");
  const ScalarType dtype = weights[0].scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "gram_norms: expected float32 or float64");
  return dtype == ScalarType::Double;
}

NormsAndGradients gradients_of(const Tensor& upstream, const Tensors& weights, const Tensors& slopes, bool total,
                               bool needs_slopes, bool needs_norms) {
  const auto compute = is_double(weights) ? gradients_of<double> : gradients_of<float>;
  return compute(upstream, weights, slopes, total, needs_slopes, needs_norms);
}

Tensor gram_norms(Tensors weights, Tensors slopes, bool total) {
  return (is_double(weights) ? norms_of<double> : norms_of<float>)(weights, slopes, total);
}

std::tuple<Tensors, Tensors> gram_norms_backward(Tensor upstream, Tensors weights, Tensors slopes, bool total,
                                                 bool needs_slopes) {
  auto [norms, by_weights, by_slopes] =
      gradients_of(upstream, weights, slopes, total, needs_slopes, /*needs_norms=*/false);
  return {std::move(by_weights), std::move(by_slopes)};
}

NormsAndGradients gram_norms_total(Tensors weights, Tensors slopes, bool needs_slopes) {
  is_double(weights);  // raises where there are none
  const std::vector<int64_t> shape{slopes.empty() ? 1 : slopes[0].size(0), static_cast<int64_t>(weights.size())};
  const Tensor ones = torch::stable::full(shape, 1.0, weights[0].scalar_type());
  auto [sums, by_weights, by_slopes] =
      gradients_of(ones, weights, slopes, /*total=*/true, needs_slopes, /*needs_norms=*/true);
  return {torch::stable::sum(sums, std::vector<int64_t>{0, 1}), std::move(by_weights), std::move(by_slopes)};
}

std::tuple<Tensors, Tensors> gram_norms_total_backward(Tensor d_total, Tensors weights, Tensors slopes,
                                                       Tensors by_weights, Tensors by_slopes) {
  for (Tensor& g : by_weights) g = multiply(g, d_total);
  for (Tensor& g : by_slopes) g = multiply(g, d_total);
  return {std::move(by_weights), std::move(by_slopes)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def("gram_norms(Tensor[] weights, Tensor[] slopes, bool total) -> Tensor");
  m.def(
      "gram_norms_backward(Tensor d_norms, Tensor[] weights, Tensor[] slopes, bool total, bool needs_slopes)"
      " -> (Tensor[], Tensor[])");
  m.def("gram_norms_total(Tensor[] weights, Tensor[] slopes, bool needs_slopes) -> (Tensor, Tensor[], Tensor[])");
  m.def(
      "gram_norms_total_backward(Tensor d_total, Tensor[] weights, Tensor[] slopes, Tensor[] d_weights, Tensor[] "
      "d_slopes)"
      " -> (Tensor[], Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("gram_norms", TORCH_BOX(&gram_norms));
  m.impl("gram_norms_backward", TORCH_BOX(&gram_norms_backward));
  m.impl("gram_norms_total", TORCH_BOX(&gram_norms_total));
  m.impl("gram_norms_total_backward", TORCH_BOX(&gram_norms_total_backward));
}

}  // namespace llr_fast
