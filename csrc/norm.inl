/* Batch norm for one type of number: REAL, and SUFFIX for the names. Included by kernels.c. */

/* A norm of some channels, (channels) each; gamma null is 1, beta null is 0. There is none if mean is null. */
typedef struct { const REAL *gamma, *beta, *mean, *var; double eps; } Norm;

/* The same before a ReLU: a map's values become max(0, scale·x + shift). There is none if scale is null. */
typedef struct { const REAL *scale, *shift; } Affine;

/* Of one channel, scale = γ/σ and shift = β - μ·scale. */
INLINE void NAME(affine_at)(Norm norm, index_t i, REAL *scale, REAL *shift)
{
    double factor = (norm.gamma ? (double)norm.gamma[i] : 1) / sqrt((double)norm.var[i] + norm.eps);
    *scale = (REAL)factor;
    *shift = (REAL)((norm.beta ? (double)norm.beta[i] : 0) - (double)norm.mean[i] * factor);
}

/* The same of all channels, put into space (2, channels). */
static Affine NAME(affine_of)(Norm norm, index_t channels, REAL *space)
{
    if (!norm.mean) return (Affine){NULL, NULL};
    for (index_t i = 0; i < channels; i++) NAME(affine_at)(norm, i, space + i, space + channels + i);
    return (Affine){space, space + channels};
}

/* Of one channel, gradients of γ and β from those of scale and shift; and what x is given more through statistics that
 * are those of its own values:
 *
 *     slope·x + offset = -γ/σ·(dβ + x̂·dγ)/count   with x̂ = (x - μ)/σ.
 */
INLINE void NAME(norm_back)(Norm norm, index_t i, double count, double by_scale, double by_shift, REAL *gamma_grad,
                            REAL *beta_grad, REAL *slope, REAL *offset)
{
    double inverse = 1 / sqrt((double)norm.var[i] + norm.eps);
    double by_gamma = (by_scale - (double)norm.mean[i] * by_shift) * inverse;
    double factor = -(norm.gamma ? (double)norm.gamma[i] : 1) * inverse / count, by_x = factor * by_gamma * inverse;
    *gamma_grad = (REAL)by_gamma, *beta_grad = (REAL)by_shift;
    *slope = (REAL)by_x, *offset = (REAL)(factor * by_shift - by_x * (double)norm.mean[i]);
}

/* One map (channels, pixels): out += scale[channel]·x + shift[channel]. */
INLINE void NAME(add_affine)(index_t channels, index_t pixels, const REAL *x, Affine affine, REAL *out)
{
    for (index_t i = 0; i < channels; i++, x += pixels, out += pixels) {
        REAL scale = affine.scale[i], shift = affine.shift[i];
        for (index_t c = 0; c < pixels; c++) out[c] += scale * x[c] + shift;
    }
}

/* ---- statistics ------------------------------------------------------------------------------------------------- */

/* Join values that follow each other in memory, and few enough to be read twice. */
INLINE void NAME(join_values)(Moments *m, const REAL *x, index_t count)
{
    vector sums = {0}, deviations = {0};
    REAL sum = 0, deviation = 0;
    index_t c = 0;
    for (; c + LANES <= count; c += LANES) sums += AT(x + c);
    for (; c < count; c++) sum += x[c];
    for (index_t lane = 0; lane < LANES; lane++) sum += sums[lane];
    REAL mean = sum / (REAL)larger(1, count);
    for (c = 0; c + LANES <= count; c += LANES) {
        vector d = AT(x + c) - mean;
        deviations += d * d;
    }
    for (; c < count; c++) deviation += (x[c] - mean) * (x[c] - mean);
    for (index_t lane = 0; lane < LANES; lane++) deviation += deviations[lane];
    join(m, (Moments){(double)count, (double)mean, (double)deviation});
}

/* Values of work space that so many moments need. */
INLINE index_t NAME(moments_size)(index_t count)
{
    return round_up(count * (index_t)(sizeof(Moments) / sizeof(REAL)), WIDTH);
}

/* Mean and biased variance. */
INLINE void NAME(tell)(const Moments *m, REAL *mean, REAL *var)
{
    *mean = (REAL)m->mean;
    *var = (REAL)(m->squares / m->count);
}

/* Those of each channel from parts' moments (parts, channels), joined in their order. */
static void NAME(tell_all)(const Moments *moments, index_t parts, index_t channels, REAL *mean, REAL *var)
{
    for (index_t i = 0; i < channels; i++) {
        Moments m = {0, 0, 0};
        for (index_t part = 0; part < parts; part++) join(&m, moments[part * channels + i]);
        NAME(tell)(&m, mean + i, var + i);
    }
}

/* Those of each channel of maps (maps, channels, pixels). */
void NAME(statistics)(index_t maps, index_t channels, index_t pixels, index_t threads, const REAL *x, REAL *mean,
                      REAL *var)
{
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (index_t i = 0; i < channels; i++) {
        Moments m = {0, 0, 0};
        for (index_t n = 0; n < maps; n++) NAME(join_values)(&m, x + (n * channels + i) * pixels, pixels);
        NAME(tell)(&m, mean + i, var + i);
    }
}
