// Threads with samples of their own.
#pragma once
#include <algorithm>
#include <vector>

#include "aten.h"

namespace llr_fast {

// No more threads than samples, or than memory allows, where each has so many elements of its own.
template <class T>
int64_t thread_count(int64_t batch, int64_t elements) {
  constexpr int64_t most_bytes = int64_t{4} << 30;
  const int64_t fit = most_bytes / (1 + elements * static_cast<int64_t>(sizeof(T)));
  const int64_t most = std::max<int64_t>(1, std::min(batch, fit));
  return std::clamp<int64_t>(torch::stable::get_num_threads(), 1, most);
}

// Calls work(thread, first, last) for the samples of each thread.
template <class Work>
void share_batch(int64_t batch, int64_t threads, const Work& work) {
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      work(thread, batch * thread / threads, batch * (thread + 1) / threads);
  });
}

// The sum of what the threads found, [threads, rows, padded columns], without the padding.
inline Tensor summed(const Tensor& shares, int64_t columns) {
  return torch::stable::sum(part(shares, 2, 0, columns), std::vector<int64_t>{0});
}

}  // namespace llr_fast
