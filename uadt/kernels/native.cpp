// One pass over rows of logits: every statistic of uadt.kernels.moments, and the gradient.
//
// Compiled at need by uadt/kernels/native.py with whatever C++ compiler there is, for the machine
// at hand; no header of torch, no library. Vectors are the compiler's own (GCC and Clang), so that
// the same lines run on any processor; AVX-512 has intrinsics where the compiler needs help.
//
// Rows are contiguous in their last axis. Logits are float32, bfloat16 or float16, sums float32
// within a block of 1,024 (which stays in the first cache) and float64 across blocks.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int W = 16;         // lanes
constexpr size_t BLOCK = 1024;
typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

constexpr float LOWEST = -3.4028234664e38f;
constexpr float FLOOR = -125.0f;  // 2^-125 is normal and adds nothing to a sum that is at least 1

struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };

inline vf all(float value) { return value - vf{}; }

// The larger; b where either is NaN.
inline vf larger(vf a, vf b) {
#ifdef __AVX512F__
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

template <class T> inline T read(const void* p) { T v; std::memcpy(&v, p, sizeof v); return v; }
template <class T> inline void write(void* p, T v) { std::memcpy(p, &v, sizeof v); }

inline vf load(const float* p) { return read<vf>(p); }
inline vf load(const Brain* p) { return (vf)(__builtin_convertvector(read<vh>(p), vu) << 16); }
inline vf load(const Half* p) {
#ifdef __AVX512F__
  return (vf)_mm512_cvtph_ps(read<__m256i>(p));
#else
  const vu h = __builtin_convertvector(read<vh>(p), vu), magnitude = h & 0x7fff;
  vu bits = (vu)((vf)(magnitude << 13) * 0x1p112f);  // the exponent's bias: 15 to 127
  bits |= (vu)(magnitude >= 0x7c00) & 0x7f800000u;   // inf and NaN stay so
  return (vf)(bits | (h & 0x8000) << 16);
#endif
}

// The low halves; Clang's and GCC's own conversion, but for GCC 12, which would go one by one.
inline void store_low(void* p, vu v) {
#ifdef __AVX512F__
  write(p, _mm512_cvtepi32_epi16((__m512i)v));
#else
  write(p, __builtin_convertvector(v, vh));
#endif
}

// Two vectors' worth, in any order: what is summed has none.
template <class T> inline void load_two(const T* p, vf& a, vf& b) { a = load(p), b = load(p + W); }
inline void load_two(const Brain* p, vf& a, vf& b) {
  const vu both = read<vu>(p);
  a = (vf)(both << 16), b = (vf)(both & 0xffff0000u);
}

inline void store(float* p, vf v) { write(p, v); }
inline void store(Brain* p, vf v) {  // to nearest, ties to even
  const vu u = (vu)v;
  store_low(p, (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline void store(Half* p, vf v) {
#ifdef __AVX512F__
  write(p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const vu sign = (vu)v & 0x80000000u, u = (vu)v ^ sign;
  const vu normal = (u - (112u << 23) + 0xfffu + ((u >> 13) & 1u)) >> 13;
  const vu small = (vu)((vf)u + all(0.5f)) - 0x3f000000u;  // the addition rounds to 2^-24
  vu bits = u < (113u << 23) ? small : normal;
  bits = u >= 0x477ff000u ? (u > 0x7f800000u ? vu{} + 0x7e00u : vu{} + 0x7c00u) : bits;
  store_low(p, bits | sign >> 16);
#endif
}

template <class T> inline vf load_some(const T* p, size_t n, float rest) {
  alignas(64) float wide[W];
  T narrow[W];
  std::memset(narrow, 0, sizeof narrow);
  std::memcpy(narrow, p, n * sizeof(T));
  write(wide, load(narrow));
  for (size_t i = n; i < W; ++i) wide[i] = rest;
  return read<vf>(wide);
}
template <class T> inline void store_some(T* p, size_t n, vf v) {
  T narrow[W];
  store(narrow, v);
  std::memcpy(p, narrow, n * sizeof(T));
}

// 2^z for z within [-125, 0]: the nearest integer goes to the exponent, a polynomial takes the rest
// (minimax with exactly 1 at 0, relative error 1e-7). A NaN need not come out as one.
inline vf power_of_two(vf z) {
  const vf magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf shifted = z + magic, r = z - (shifted - magic);
  vf p = r * 1.32647272e-3f + 9.67151281e-3f;
  p = p * r + 5.55073372e-2f;
  p = p * r + 2.40222421e-1f;
  p = p * r + 6.93146978e-1f;
  p = p * r + 1.0f;
  return (vf)((vi)p + ((vi)shifted << 23));
}

inline float sum(vf v) {
  float s = 0;
  for (int i = 0; i < W; ++i) s += v[i];
  return s;
}
inline float top_of(vf v) {
  float s = v[0];
  for (int i = 1; i < W; ++i) s = std::max(s, v[i]);
  return s;
}

template <class T> inline float as_float(T value) { return load_some(&value, 1, 0.0f)[0]; }

// Moments of one row in base 2: z = (x - top) * scale, scale = log2(e) / temperature.
// out: top, sum 2^z, sum z 2^z, sum z^2 2^z, sum 4^z, sum (x - top) and number where x > -inf;
// unless FULL, the sums after the second are left out.
//
// A block is read once, against the largest logit of the blocks before it. If its own is larger by
// more than a little, its sums are thrown away and it is read again: which is rare, and keeps z so
// close to 0 or below it that nothing is lost when the sums move to the new top.
template <class T, bool FULL>
void moments(const T* row, size_t vocab, float scale, double* out) {
  constexpr float LITTLE = 2.0f;
  float top = LOWEST;
  double s = 0, t = 0, tt = 0, q = 0, u = 0, n = 0;
  auto move_to = [&](float higher) {
    const double x = double(top) - higher, d = x * scale, k = std::exp2(d);
    tt = (tt + d * (2 * t + d * s)) * k;
    t = (t + s * d) * k;
    s *= k;
    q *= k * k;
    u += n * x;
    top = higher;
  };
  for (size_t start = 0; start < vocab; start += BLOCK) {
    const size_t end = std::min(vocab, start + BLOCK), whole = start + (end - start) / W * W;
    vf s0{}, s1{}, t0{}, t1{}, c0{}, c1{}, q0{}, q1{}, u0{}, u1{};
    float block_top;
    for (bool again = false;; again = true) {
      const vf shift = all(top);
      vf m0 = all(LOWEST), m1 = m0;
      auto add = [&](vf x, vf& M, vf& S, vf& T_, vf& C, vf& Q, vf& U) {
        M = larger(M, x);
        const vf a = x - shift, z = larger(all(FLOOR), a * scale), e = power_of_two(z);
        S += e;
        if (FULL) {
          const vf ez = e * z;
          T_ += ez, C += ez * z, Q += e * e, U += a;
        } else {
          T_ += e * z;
        }
      };
      size_t i = start;
      for (; i + 2 * W <= whole; i += 2 * W) {
        vf a, b;
        load_two(row + i, a, b);
        add(a, m0, s0, t0, c0, q0, u0);
        add(b, m1, s1, t1, c1, q1, u1);
      }
      if (i < whole) add(load(row + i), m0, s0, t0, c0, q0, u0);
      if (whole < end) {
        vf ignored{};
        add(load_some(row + whole, end - whole, -INFINITY), m1, s1, t1, c1, q1, ignored);
      }
      block_top = top_of(larger(m0, m1));
      if (again || !((block_top - top) * scale > LITTLE)) break;
      move_to(block_top);
      s0 = s1 = t0 = t1 = c0 = c1 = q0 = q1 = u0 = u1 = vf{};
    }
    double block_u = sum(u0 + u1), block_n = double(whole - start);
    if (FULL && !std::isfinite(block_u)) {  // some are -inf, or the row is broken: one by one
      block_u = block_n = 0;
      for (size_t i = start; i < whole; i += W) {
        const vf x = load(row + i);
        for (int j = 0; j < W; ++j)
          if (x[j] > -INFINITY) block_u += double(x[j]) - top, ++block_n;
      }
    }
    for (size_t i = whole; FULL && i < end; ++i) {
      const float x = as_float(row[i]);
      if (x > -INFINITY) block_u += double(x) - top, ++block_n;
    }
    s += sum(s0 + s1);
    t += sum(t0 + t1);
    tt += sum(c0 + c1);
    q += sum(q0 + q1);
    u += block_u;
    n += block_n;
    if (block_top > top) move_to(block_top);
  }
  const double values[] = {s > 0.5 || n > 0 ? double(top) : -INFINITY, s, t, tt, q, u, n};
  std::copy(values, values + 7, out);
}

// gradient_v = 2^z (k0 + k1 z + k2 z^2 + k3 2^z); may overwrite the row.
template <class T>
void gradient(const T* row, size_t vocab, float scale, float top, const float* k, T* out) {
  const vf shift = all(top);
  auto at = [&](vf x) {
    const vf raw = (x - shift) * scale, z = larger(all(FLOOR), raw), e = power_of_two(z);
    const vf g = e * (((z * k[2] + k[1]) * z + k[0]) + e * k[3]);
    return raw < all(FLOOR) ? vf{} : g;
  };
  size_t i = 0;
  for (; i + 2 * W <= vocab; i += 2 * W) {
    const vf a = at(load(row + i)), b = at(load(row + i + W));
    store(out + i, a);
    store(out + i + W, b);
  }
  for (; i < vocab; i += W) {
    const size_t n = std::min<size_t>(W, vocab - i);
    store_some(out + i, n, at(load_some(row + i, n, top)));
  }
}

template <class Work>
void in_threads(size_t rows, int threads, Work work) {
  const size_t count = std::max<size_t>(1, std::min<size_t>(threads, rows));
  std::vector<std::thread> pool;
  for (size_t i = 1; i < count; ++i)
    pool.emplace_back([=] { work(rows * i / count, rows * (i + 1) / count); });
  work(0, rows / count);
  for (auto& t : pool) t.join();
}

template <class T>
void all_moments(const void* x, size_t stride, size_t rows, size_t vocab, float scale, bool full,
                 double* out, int threads) {
  const T* p = static_cast<const T*>(x);
  in_threads(rows, threads, [=](size_t from, size_t to) {
    for (size_t r = from; r < to; ++r)
      (full ? moments<T, true> : moments<T, false>)(p + r * stride, vocab, scale, out + 7 * r);
  });
}

template <class T>
void all_gradients(const void* x, size_t stride, size_t rows, size_t vocab, float scale,
                   const float* top, const float* k, void* out, size_t out_stride, int threads) {
  const T* p = static_cast<const T*>(x);
  T* o = static_cast<T*>(out);
  in_threads(rows, threads, [=](size_t from, size_t to) {
    for (size_t r = from; r < to; ++r) {
      const float* c = k + 4 * r;
      if (c[0] == 0 && c[1] == 0 && c[2] == 0 && c[3] == 0)  // a broken row is such a one
        std::memset(o + r * out_stride, 0, vocab * sizeof(T));
      else
        gradient(p + r * stride, vocab, scale, top[r], c, o + r * out_stride);
    }
  });
}

}  // namespace

// kind: 0 float32, 1 bfloat16, 2 float16. Strides in elements.
extern "C" void uadt_moments(int kind, const void* x, size_t stride, size_t rows, size_t vocab,
                             float scale, int full, double* out, int threads) {
  if (kind == 0) all_moments<float>(x, stride, rows, vocab, scale, full, out, threads);
  if (kind == 1) all_moments<Brain>(x, stride, rows, vocab, scale, full, out, threads);
  if (kind == 2) all_moments<Half>(x, stride, rows, vocab, scale, full, out, threads);
}

extern "C" void uadt_gradient(int kind, const void* x, size_t stride, size_t rows, size_t vocab,
                              float scale, const float* top, const float* k, void* out,
                              size_t out_stride, int threads) {
  if (kind == 0) all_gradients<float>(x, stride, rows, vocab, scale, top, k, out, out_stride, threads);
  if (kind == 1) all_gradients<Brain>(x, stride, rows, vocab, scale, top, k, out, out_stride, threads);
  if (kind == 2) all_gradients<Half>(x, stride, rows, vocab, scale, top, k, out, out_stride, threads);
}
