#include "tools/synth/preset.h"

#include <string.h>

/* Shapes of the published models, from their metadata; the tiny ones are ours, for tests. */
static const synth_preset presets[] = {
    {"llama-3.1-8b", "shape of Llama 3.1 8B", SYNTH_LLAMA, 32, 4096, 14336, 32, 8, 128, 128256, 131072,
     500000.0f, 1e-5f, false, 0, 0, 0},
    {"qwen2.5-0.5b", "shape of Qwen2.5 0.5B", SYNTH_QWEN2, 24, 896, 4864, 14, 2, 64, 151936, 32768,
     1000000.0f, 1e-6f, true, 0, 0, 0},
    {"qwen3-0.6b", "shape of Qwen3 0.6B", SYNTH_QWEN3, 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1000000.0f,
     1e-6f, true, 0, 0, 0},
    {"qwen3-8b", "shape of Qwen3 8B", SYNTH_QWEN3, 36, 4096, 12288, 32, 8, 128, 151936, 40960, 1000000.0f,
     1e-6f, false, 0, 0, 0},
    {"qwen3-30b-a3b", "shape of Qwen3 30B-A3B", SYNTH_QWEN3MOE, 48, 2048, 6144, 32, 4, 128, 151936, 40960,
     1000000.0f, 1e-6f, false, 128, 8, 768},
    {"tiny-llama", "2 layers, for tests", SYNTH_LLAMA, 2, 256, 512, 4, 2, 64, 512, 4096, 500000.0f, 1e-5f,
     false, 0, 0, 0},
    {"tiny-qwen2", "2 layers, for tests", SYNTH_QWEN2, 2, 256, 512, 4, 2, 64, 512, 4096, 1000000.0f, 1e-6f,
     true, 0, 0, 0},
    {"tiny-qwen3", "2 layers, for tests", SYNTH_QWEN3, 2, 256, 512, 4, 2, 128, 512, 4096, 1000000.0f, 1e-6f,
     true, 0, 0, 0},
    {"tiny-qwen3moe", "2 layers, 16 experts, for tests", SYNTH_QWEN3MOE, 2, 256, 512, 4, 2, 128, 512, 4096,
     1000000.0f, 1e-6f, false, 16, 4, 256},
};

const synth_preset *synth_presets(size_t *n)
{
    *n = sizeof presets / sizeof *presets;
    return presets;
}

const synth_preset *synth_preset_find(const char *name)
{
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (!strcmp(presets[i].name, name)) return &presets[i];
    return NULL;
}

const char *synth_arch(synth_family family)
{
    switch (family) {
    case SYNTH_LLAMA:
        return "llama";
    case SYNTH_QWEN2:
        return "qwen2";
    case SYNTH_QWEN3:
        return "qwen3";
    case SYNTH_QWEN3MOE:
        return "qwen3moe";
    }
    return "unknown";
}
