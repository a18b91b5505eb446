// exact.glsl - elementary functions to a few units in the last place, whatever the driver's own are worth.

// exp with an error of a few units in the last place, whatever the driver's is: 2^k times a polynomial of the rest.
float exp_exact(float x)
{
    x = clamp(x, -104.0, 88.72);
    float k = floor(x * 1.44269504 + 0.5);
    float r = (x - k * 0.693359375) + k * 2.12194440e-4; // the first product is exact
    float p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    float e = p * r * r + r + 1.0;
    int i = int(k), half_i = i / 2;
    return e * uintBitsToFloat(uint(half_i + 127) << 23) * uintBitsToFloat(uint(i - half_i + 127) << 23);
}

float quotient(float a, float b)
{
    float q = a / b;
    return isinf(b) ? q : q + (a - q * b) / b;
}

float sigmoid(float x)
{
    return quotient(1.0, 1.0 + exp_exact(-x));
}
