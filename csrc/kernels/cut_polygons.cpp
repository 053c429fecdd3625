#include "cut_polygons.h"

#include <algorithm>
#include <cmath>

#include "isa.h"

namespace llr_fast {

void PolygonCutter::cut(int64_t index, const double* vertices, int64_t size, const double* centre) {
  x_ = centre[0], y_ = centre[1];
  find_lines(index, vertices, size);
  vertices_.assign(vertices, vertices + 2 * size);
  open_.assign(1, {0, 0});
  while (!open_.empty()) {
    Open part = open_.back();
    open_.pop_back();
    // A line that does not cross a part crosses no part of that either.
    while (part.next_line < lines_.size() && !crosses(lines_[part.next_line], part.first_vertex)) ++part.next_line;
    if (part.next_line < lines_.size()) {
      halve(lines_[part.next_line].least, {part.first_vertex, part.next_line + 1});
    } else {
      finish(index, part.first_vertex);
    }
  }
}

// Those of the first layer that has any in the polygon.
void PolygonCutter::find_lines(int64_t index, const double* vertices, int64_t size) {
  relative_.assign(vertices, vertices + 2 * size);
  for (int64_t v = 0; v < size; ++v) relative_[2 * v] -= x_, relative_[2 * v + 1] -= y_;
  lines_.clear();
  for (size_t layer = 0; layer < layers_.size() && lines_.empty(); ++layer) {
    const Lines<double> rows = layers_[layer].of(index);
    const int64_t n = layers_[layer].n;
    if (static_cast<int64_t>(found_.size()) <= n) found_.resize(n + 1);
    const int64_t count = kernels<double>().crossing_lines(rows, n, relative_.data(), size, thinnest_, found_.data());
    for (int64_t i = 0; i < count; ++i) {
      const double a = rows.a[found_[i]], b = rows.b[found_[i]];
      lines_.push_back({a, b, rows.c[found_[i]], thinnest_ * std::sqrt(a * a + b * b)});
    }
  }
}

// Whether the line has vertices of the last open part on both sides.
bool PolygonCutter::crosses(const Line& line, size_t first_vertex) {
  value_.clear();
  double low = 0, high = 0;
  for (size_t v = 2 * first_vertex; v < vertices_.size(); v += 2) {
    const double value = line.a * (vertices_[v] - x_) + line.b * (vertices_[v + 1] - y_) + line.c;
    low = std::min(low, value), high = std::max(high, value);
    value_.push_back(value);
  }
  return low < -line.least && high > line.least;
}

// Puts its halves in place of the last open part; vertices as good as on the line belong to both.
void PolygonCutter::halve(double least, Open part) {
  const size_t size = value_.size();
  relative_.assign(vertices_.begin() + 2 * part.first_vertex, vertices_.end());
  const auto vertex = [&](size_t v) { return relative_.data() + 2 * v; };
  const auto append = [](std::vector<double>& half, const double* v) { half.insert(half.end(), v, v + 2); };
  vertices_.resize(2 * part.first_vertex);
  above_.clear();
  for (size_t v = 0; v < size; ++v) {
    const size_t last = v ? v - 1 : size - 1;
    const double here = value_[v], before = value_[last];
    if (std::min(here, before) < -least && std::max(here, before) > least) {
      const double *from = vertex(last), *to = vertex(v), step = before / (before - here);
      const double between[2] = {from[0] + step * (to[0] - from[0]), from[1] + step * (to[1] - from[1])};
      append(vertices_, between);
      append(above_, between);
    }
    if (here <= least) append(vertices_, vertex(v));
    if (here >= -least) append(above_, vertex(v));
  }
  open_.push_back(part);
  open_.push_back({vertices_.size() / 2, part.next_line});
  vertices_.insert(vertices_.end(), above_.begin(), above_.end());
}

// Moves the last open part to the results.
void PolygonCutter::finish(int64_t index, size_t first_vertex) {
  const size_t size = vertices_.size() / 2 - first_vertex;
  double x = 0, y = 0;
  for (size_t v = 2 * first_vertex; v < vertices_.size(); v += 2) x += vertices_[v], y += vertices_[v + 1];
  parts_.centres.insert(parts_.centres.end(), {x / size, y / size});
  parts_.vertices.insert(parts_.vertices.end(), vertices_.begin() + 2 * first_vertex, vertices_.end());
  parts_.sizes.push_back(size);
  parts_.origin.push_back(index);
  vertices_.resize(2 * first_vertex);
}

}  // namespace llr_fast
