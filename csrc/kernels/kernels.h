// The kernels for CPUs, which are compiled once for each instruction set, and what they take.
#pragma once
#include <cstdint>

namespace llr_fast {

// A chain of dense layers and its batch; arrays hold one entry per layer. The rows of matrices are padded.
template <class T>
struct DenseChain {
  int64_t layers;
  const int64_t* width;
  const T* gram;                      // W_1 W_1^T, all that is needed of the first layer
  const T* const* weight;             // W_l [n_l, n_{l-1}]
  const T* const* weight_transposed;  // [n_{l-1}, n_l]
  const T* const* cross;              // W_l^T W_l, for sums over the neurons of each layer; else null
  const T* const* slope;              // [B, n_l], not padded; none for the last layer
  bool slopes_need_gradient;
};

// What to compute: `norms` and `upstream` have a row per sample, of all neurons or, with `cross`, of all layers;
// either may be null. Their entries for the first layer, which the batch shares, are the caller's business.
template <class T>
struct GramNorms {
  int64_t row;
  T* norms;
  const T* upstream;
  // Gradients are added to these; those by gram and cross doubled, as they are symmetric products of the weights.
  T* gram_gradient;
  T* const* weight_gradient;
  T* const* cross_gradient;
  T* const* slope_gradient;
};

// Gram matrices of a layer, slopes [B, n] of its activation, and the layer after it. The rows of matrices are padded.
template <class T>
struct GramLinear {
  int64_t n, outputs;
  const T* gram;        // [B or 1, n, n]
  int64_t gram_stride;  // from sample to sample; 0 where they share one
  const T* slope;
  const T* weight;             // [O, n]
  const T* weight_transposed;  // [n, O]
};

// Of what arrives from above, which is not padded, one may be null. Gradients are added; those that are null are not
// wanted. That by slope needs the one by weight.
template <class T>
struct GramLinearGradients {
  const T *d_out, *d_diagonal;  // [B, O, O] and [B, O]
  T* d_gram;
  int64_t d_gram_stride;
  T *d_slope, *d_weight;
};

enum class Statistic { sum_squares, sum_abs, max_abs };

// Tangents [K, B, n] and slopes [B, n] of an activation. Strides are in elements; b_stride is 0 where samples share.
template <class T>
struct Tangents {
  int64_t K, B, n, k_stride, b_stride;
  const T* tangents;
  const T* slope;
  Statistic statistic;
  bool past_cache;  // the output is too large to be found there later
};

template <class T>
struct TangentGradients {
  const T *d_out, *d_stat, *stat;  // d_out and d_stat may be null
  T* d_tangents;
  T* d_slope;   // may be null
  bool summed;  // d_tangents is [K, 1, n]: the sum over the batch
};

// Tangents [K, B, n] and slopes [B, n] of an activation, and the layer after it. Strides are as above, and the rows of
// all but the slopes are padded.
template <class T>
struct MaskedLinear {
  int64_t K, B, n, outputs, k_stride, b_stride;
  const T *tangents, *slope;
  const T* weight;             // [O, n]
  const T* weight_transposed;  // [n, O]
  Statistic statistic;
};

// Gradients are added to these, with padded rows.
template <class T>
struct MaskedLinearGradients {
  const T* d_out;              // [K, B, O], not padded
  T* d_tangents;               // [K, B or 1, n]
  int64_t k_stride, b_stride;  // of d_tangents
  T* d_weight;                 // may be null
};

// A number for each channel: numbers[i / inner % channels] is that of the neuron i. Null where there are none.
template <class T>
struct ByChannel {
  const T* numbers;
  int64_t channels, inner;
};

// A function of slope 1 between two kinks, constant above the upper one. Under the lower one its slope is `below`, or
// that of the channel.
template <class T>
struct Ramp {
  T lower, upper, below;
  ByChannel<T> slope;
};

// n neurons, and their tangents [K, n], which are multiplied by a factor first.
template <class T>
struct RollActivation {
  Ramp<T> ramp;
  ByChannel<T> factor;
  int64_t K, n;
  const T *z, *tangents;
  bool past_cache;  // the outputs are too large to be found there later
};

template <class T>
struct RollOutputs {
  T *out, *masked;  // masked may be null
  int8_t* code;
  T* sums;  // of each item two: of squares and of hinges
};

template <class T>
struct RollGradients {
  const T *d_out, *d_masked, *d_sums;  // d_masked may be null
  const int8_t* code;
  T *d_z, *d_tangents;
  T* d_factor;  // [channels], added to; null where there is no factor
};

// Of pooling over up to three axes, the last ones; those that are missing have one entry.
struct Windows {
  int64_t space[3], kernel[3], stride[3], padding[3], dilation[3], size[3];
};

// Samples [N, *space, inner], and their tangents [K, N, *space, inner].
template <class T>
struct RollMaxPool {
  Windows windows;
  int64_t K, N, inner;
  const T *z, *tangents;
};

template <class T>
struct RollMaxPoolOutputs {
  T *out, *winning;  // [N, *size, inner], [K, N, *size, inner]
  int32_t* index;    // of each winner within its sample
  T* sums;           // of each item two: of squares and of hinges
};

template <class T>
struct RollMaxPoolGradients {
  const T *d_out, *d_winning, *d_sums;
  const int32_t* index;
  T *d_z, *d_tangents;
};

// Lines a x + b y + c = 0 in the plane.
template <class T>
struct Lines {
  const T *a, *b, *c;
};

// An item of pooling is a sample, or so many of its neighbours in `inner`.
constexpr int64_t kPoolChannels = 128;

// Kernels take ranges of items: a block of so many neurons, of one sample or, where gradients are summed, of all.
constexpr int64_t kTangentBlock = 2048;

template <class T>
struct Kernels {
  void (*gram_norms)(const DenseChain<T>&, const GramNorms<T>&, int64_t first_sample, int64_t last_sample);
  void (*gram_linear)(const GramLinear<T>&, T* out, T* diagonal, int64_t first_sample, int64_t last_sample);
  void (*gram_linear_backward)(const GramLinear<T>&, const GramLinearGradients<T>&, int64_t first_sample,
                               int64_t last_sample);
  void (*tangent_activation)(const Tangents<T>&, T* out, T* stat, int64_t first_item, int64_t last_item);
  void (*tangent_activation_backward)(const Tangents<T>&, const TangentGradients<T>&, int64_t first_item,
                                      int64_t last_item);
  void (*masked_linear)(const MaskedLinear<T>&, T* out, T* stat, int64_t first_sample, int64_t last_sample);
  void (*masked_linear_backward)(const MaskedLinear<T>&, const MaskedLinearGradients<T>&, int64_t first_sample,
                                 int64_t last_sample);
  void (*roll_activation)(const RollActivation<T>&, const RollOutputs<T>&, int64_t first_item, int64_t last_item);
  void (*roll_activation_backward)(const RollActivation<T>&, const RollGradients<T>&, int64_t first_item,
                                   int64_t last_item);
  void (*roll_max_pool)(const RollMaxPool<T>&, const RollMaxPoolOutputs<T>&, int64_t first_item, int64_t last_item);
  void (*roll_max_pool_backward)(const RollMaxPool<T>&, const RollMaxPoolGradients<T>&, int64_t first_item,
                                 int64_t last_item);
  // Adds values [K, n] to a statistic of n neurons.
  void (*measure)(const T* values, int64_t K, int64_t n, Statistic, T* stat, int64_t first_neuron, int64_t last_neuron);
  // Ratios of distances to norms, for the smallest of them.
  void (*margin_ratios)(const T* distance, const T* norm, int64_t n, T* ratio);
  void (*margin_ratios_by_float)(const T* distance, const float* norm, int64_t n, T* ratio);
  // Which lines have vertices of a polygon on both sides; `found` has room for one more.
  int64_t (*crossing_lines)(const Lines<T>&, int64_t n, const T* vertices, int64_t V, T thinnest, int64_t* found);
};

}  // namespace llr_fast
