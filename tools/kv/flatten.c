#include "tools/kv/flatten.h"

#include <math.h>
#include <string.h>

enum { SIZE = 8, SWEEPS = 12 };

static double fourth_powers(const float *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n * SIZE; i++) sum += (double)x[i] * x[i] * x[i] * x[i];
    return n ? sum / n : 0;
}

/* With x' = c x + s y and y' = c y - s x, the mean of x'^4 + y'^4 is a constant plus
 * cos(4 angle) (E(x^4 + y^4) / 4 - 3/2 E x^2 y^2) + sin(4 angle) E(x^3 y - x y^3). */
static double best_angle(const float *x, uint32_t n, int a, int b)
{
    double fourth = 0, square = 0, odd = 0;
    for (uint32_t i = 0; i < n; i++) {
        double p = x[i * SIZE + (uint32_t)a], q = x[i * SIZE + (uint32_t)b];
        fourth += p * p * p * p + q * q * q * q;
        square += p * p * q * q;
        odd += p * q * (p * p - q * q);
    }
    double cosine = fourth / 4 - 1.5 * square;
    return cosine == 0 && odd == 0 ? 0 : atan2(-odd, -cosine) / 4;
}

static void turn(double *x, double *y, double c, double s)
{
    double p = *x, q = *y;
    *x = c * p + s * q;
    *y = c * q - s * p;
}

/* Sweeps over all pairs until no angle is worth it; m is turned along with the samples. */
static void sweep(float *x, uint32_t n, double m[SIZE][SIZE])
{
    double most = 1;
    for (int round = 0; round < SWEEPS && most > 1e-4; round++) {
        most = 0;
        for (int a = 0; a < SIZE; a++)
            for (int b = a + 1; b < SIZE; b++) {
                double angle = best_angle(x, n, a, b), c = cos(angle), s = sin(angle);
                for (int k = 0; k < SIZE; k++) turn(&m[a][k], &m[b][k], c, s);
                for (uint32_t i = 0; i < n; i++) {
                    double p = x[i * SIZE + (uint32_t)a], q = x[i * SIZE + (uint32_t)b];
                    turn(&p, &q, c, s);
                    x[i * SIZE + (uint32_t)a] = (float)p;
                    x[i * SIZE + (uint32_t)b] = (float)q;
                }
                most = fmax(most, fabs(angle));
            }
    }
}

static void apply(const double m[SIZE][SIZE], float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        double y[SIZE] = {0};
        for (int a = 0; a < SIZE; a++)
            for (int k = 0; k < SIZE; k++) y[a] += m[a][k] * x[i * SIZE + (uint32_t)k];
        for (int a = 0; a < SIZE; a++) x[i * SIZE + (uint32_t)a] = (float)y[a];
    }
}

double kv_flatten(float *x, uint32_t n, float matrix[64])
{
    double plain[SIZE][SIZE] = {{0}}, spread[SIZE][SIZE], back[SIZE][SIZE];
    for (int a = 0; a < SIZE; a++)
        for (int k = 0; k < SIZE; k++) {
            plain[a][k] = a == k;
            spread[a][k] = (__builtin_popcount((unsigned)(a & k)) & 1 ? -1 : 1) / sqrt(8.0);
        }
    sweep(x, n, plain);
    double plain_left = fourth_powers(x, n);
    for (int a = 0; a < SIZE; a++)
        for (int k = 0; k < SIZE; k++) back[a][k] = plain[k][a];
    apply(back, x, n);
    apply(spread, x, n);
    sweep(x, n, spread);
    double spread_left = fourth_powers(x, n);
    const double(*best)[SIZE] = spread_left < plain_left ? spread : plain;
    for (int a = 0; a < SIZE; a++)
        for (int k = 0; k < SIZE; k++) matrix[a * SIZE + k] = (float)best[a][k];
    return fmin(spread_left, plain_left);
}
