// attend_state.glsl - merging the states of two splits (maximum, sum, weighted values).
const float NOTHING = -3.402823466e38; // the maximum of a split in which a query sees no key

// exp for x <= 0; zero far down. Error a few units in the last place.
float exp_below(float x)
{
    if (x < -87.0) return 0.0;
    float k = floor(x * 1.44269504 + 0.5);
    precise float r = x - k * 0.693359375;
    r = r + k * 2.12194440e-4;
    float p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    return (p * r * r + r + 1.0) * uintBitsToFloat(uint(int(k) + 127) << 23);
}

float merge(float x, float a, float y, float b)
{
    precise float t = x * a;
    t = fma(y, b, t);
    return t;
}
