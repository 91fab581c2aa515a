/* Every constant that was chosen by measurement, with the benchmark that shows its effect.
 *
 * "layers" is `python -m benchmarks --only layers`; to compare two values, compile a second checkout with the other one and
 * run `python -m benchmarks compare OTHER`.
 */
#pragma once
#include "simd.h"

namespace {

/* ---- matrix products (gemm.h) ---- */

/* Rows of a block of sums, and its width in wide vectors: of 32 registers 6·4 hold sums and 4 a row of B, of 16
 * registers 6·2 and 2. Benchmark: layers, dense, 28 channels and more. */
constexpr int GEMM_ROWS = 6;
constexpr int GEMM_COLUMNS = HAS_32_REGISTERS ? 4 : 2;

/* Rows of a block of four columns of inner products: 6·4 sums, 6 rows and a value, or 3·4 sums, 3 rows and a value.
 * Benchmark: layers, dense, step. */
constexpr int INNER_PRODUCT_ROWS = HAS_32_REGISTERS ? 6 : 3;

/* ---- expanded filters (filters.h) ---- */

/* Values of a row of a filter's block from which on rows are padded to an odd multiple of 16 values, a cache line of
 * float32. Benchmark: converted. */
constexpr index_t FILTER_MIN_PADDED = 96;

/* Values of the weight, and of its blocks, of the input channels that are transformed at a time: both should stay in the
 * first-level cache. Benchmark: converted, step. */
constexpr index_t FILTER_CHANNEL_VALUES = 2048;

/* ---- filters in factors (factored_gemm.h) ---- */

/* Whether blocks of size two of a g layer's filter stay in factors: 18 sums and 4 values need 32 registers.
 * Benchmark: layers, g. */
constexpr bool USES_FACTORS = HAS_32_REGISTERS;

/* Kernel elements of such a filter. */
constexpr int FACTORED_ELEMENTS = 9;

/* ---- tiles (tiling.h) ---- */

/* Input channels whose products with a pixel cost as much as moving one: columns are packed (layout.h) where that costs
 * less than products with the zeros between the pixels. Benchmark: converted, layers of 3×3 to 9×9 pixels. */
constexpr index_t PACKING_CHANNELS = 32;

/* Largest number of pixels and of values of a tile: its transform should stay in the second- or third-level cache.
 * TILE_MIN_PIXELS is the smallest number of pixels, for products of some length. Benchmark: layers, flat around these. */
constexpr index_t TILE_PIXELS_FORWARD = 1024, TILE_PIXELS_BACKWARD = 512, TILE_MIN_PIXELS = 256;
constexpr index_t TILE_VALUES = 196608;

/* Largest number of pixels of all images for which threads divide output channels, and values of the filters that a thread
 * holds at a time: they should stay in the second-level cache. Benchmark: layers, 3×3 pixels. */
constexpr index_t BY_OUTPUTS_PIXELS = 256, HELD_FILTER_VALUES = 131072;

/* Tiles for each thread, where there are as many images: threads that ask for tiles end at about the same time.
 * Benchmark: models, two threads. */
constexpr index_t TILES_PER_THREAD_FORWARD = 4, TILES_PER_THREAD_BACKWARD = 2;

/* Output rows of a band, or slices of one of a volume, at the least: bands read those of their neighbours again.
 * Benchmark: models, batch 1; volumes, dense, inference. */
constexpr index_t BAND_MIN_ROWS = 4, BAND_MIN_SLICES = 16;

/* ---- blocks of outputs (tiling.h) ---- */

/* Output channels whose products are computed together: those of a separable layer backward, forward, and forward
 * where products and transform are fused; of other layers, outputs times kernel elements. Benchmark: layers. */
constexpr index_t OUTPUTS_BACKWARD = 28, OUTPUTS_FORWARD = 14, OUTPUTS_FUSED = 6, PRODUCT_ROWS = 36;

/* Values of the products of a block, which should stay in the second-level cache, and vectors of a row of them.
 * Benchmark: layers, dense, 65×65. */
constexpr index_t PRODUCT_VALUES_FORWARD = 49152, PRODUCT_VALUES_BACKWARD = 122880;
constexpr index_t PRODUCT_MIN_PAIRS = 2, PRODUCT_MAX_PAIRS = 64;

/* Output channels of a block of fused products: 3·8 sums. Benchmark: layers, p4m gc, 32×32. */
constexpr int FUSED_ROWS = 3;

/* ---- gradients (convolution.h) ---- */

/* Parts of the tiles whose filter gradients are summed apart, for each thread; and values of all of them, which should
 * stay in the caches. Benchmark: models, step, two threads. */
constexpr index_t PARTS_PER_THREAD = 4, PART_VALUES = 786432;

/* ---- depthwise (depthwise.h) ---- */

/* Vectors of a row that are weighted together, or sums of one: a weight is read once for all vectors, and no sum waits for
 * the one before. Benchmark: layers, lifting, 3 channels; p4 gc 4x4. */
constexpr int WEIGHTED_SUMS = 4;

/* Output rows of a 3×3 correlation computed together: each value is read once for all rows that it reaches.
 * Benchmark: layers, gc, inference. */
constexpr int CORRELATION_ROWS = 4;

/* ---- direct convolution (direct.h) ---- */

/* Values of a band of the input, for the first-level cache, and its rows at the least. Benchmark: layers, lifting. */
constexpr index_t DIRECT_VALUES = 8192, DIRECT_MIN_ROWS = 8;

/* Entries of a filter whose gradients are summed at a time: 9 sums, and that of the bias.
 * Benchmark: layers, lifting, step. */
constexpr int DIRECT_TERMS = 9;

/* ---- pooling (pooling.h) ---- */

/* Windows pooled at a time, in arrays on the stack. Benchmark: models, z2cnn, whose pooling is fused. */
constexpr int POOL_WINDOWS = 128;

} // namespace
