// Convex polygons, cut apart along lines.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace llr_fast {

// For each of some polygons the lines of n neurons: rows of a, b and c, which lie `row` apart from polygon to polygon.
struct LayerOfLines {
  int64_t n, row;
  Lines<double> first;

  Lines<double> of(int64_t polygon) const {
    const int64_t offset = polygon * row;
    return {first.a + offset, first.b + offset, first.c + offset};
  }
};

// Parts of polygons: vertices [V, 2], how many of them each has, their mean, and of which polygon it is a part.
struct Parts {
  std::vector<double> vertices, centres;
  std::vector<int64_t> sizes, origin;
};

// Cuts polygons along the lines of the first layer that has any in them; `layers` has to outlive it.
class PolygonCutter {
 public:
  PolygonCutter(const std::vector<LayerOfLines>& layers, double thinnest) : layers_(layers), thinnest_(thinnest) {}

  // Appends the parts of the polygon number `index`, whose lines are given from its centre.
  void cut(int64_t index, const double* vertices, int64_t size, const double* centre);

  const Parts& parts() const { return parts_; }

 private:
  struct Line {
    double a, b, c, least;  // a x + b y + c counts as 0 up to `least`
  };
  // A part that the lines from `next_line` on may cut: the vertices from `first_vertex` on, up to the next part's.
  struct Open {
    size_t first_vertex, next_line;
  };

  void find_lines(int64_t index, const double* vertices, int64_t size);
  bool crosses(const Line& line, size_t first_vertex);
  void halve(double least, Open part);
  void finish(int64_t index, size_t first_vertex);

  const std::vector<LayerOfLines>& layers_;
  const double thinnest_;
  Parts parts_;
  double x_ = 0, y_ = 0;  // the centre
  std::vector<Line> lines_;
  std::vector<Open> open_;
  std::vector<double> vertices_;          // of all open parts
  std::vector<double> value_;             // at the vertices of the last of them, of the line it was held against
  std::vector<double> relative_, above_;  // vertices from the centre, and of the second half
  std::vector<int64_t> found_;
};

}  // namespace llr_fast
