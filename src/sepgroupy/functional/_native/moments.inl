/* Means and variances of channels for one type of number: REAL, and SUFFIX for the names. Included by kernels.c. */

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
