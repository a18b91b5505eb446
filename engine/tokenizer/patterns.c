#include "engine/tokenizer/internal.h"

#include <stdio.h>
#include <string.h>

/* The patterns are facts about models: they stand in the models' tokenizer.json files, and which name means
 * which pattern is the convention of llama.cpp's conversion script (value of tokenizer.ggml.pre). They are
 * written for PCRE2 with UTF and UCP. White space is spelled out as the Unicode property White_Space, because
 * PCRE2's \s also contains U+180E, which the engines the models were trained with do not. */
#define WS            "\\x{9}-\\x{d}\\x{85}\\p{Z}"
#define S             "[" WS "]"
#define NOT_S         "[^" WS "]"
#define CONTRACTION   "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define CONTRACTION_1 "'s|'t|'re|'ve|'m|'ll|'d"
#define TAIL          S "*[\\r\\n]+|" S "+(?!" NOT_S ")|" S "+"

/* GPT-2's own pattern, case-sensitive contractions */
#define GPT2 CONTRACTION_1 "| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" S "+(?!" NOT_S ")|" S "+"

/* The pattern of cl100k and its descendants; they differ in how digits are grouped. */
#define CL100K(digits)                                                                                       \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" TAIL

/* o200k: words end where lower case meets upper case */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define O200K(contraction, digits)                                                                           \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" contraction "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER       \
    "*" contraction "|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL

#define ASCII_PUNCTUATION "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"

/* The letters with case that DeepSeek LLM's tokenizer.json lists one by one. */
#define DEEPSEEK_CASED                                                                                       \
    "\\x{41}-\\x{5A}\\x{61}-\\x{7A}\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}"                    \
    "\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}"                   \
    "\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}"           \
    "\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}"              \
    "\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}"        \
    "\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}"        \
    "\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}"                   \
    "\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}"                  \
    "\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"         \
    "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}"          \
    "\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}"          \
    "\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}"         \
    "\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}"        \
    "\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}"                           \
    "\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}"                   \
    "\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}"

static const rq_pattern gpt2 = {"gpt-2", {GPT2}};
static const rq_pattern llama3 = {"llama-bpe", {CL100K("\\p{N}{1,3}")}};
static const rq_pattern qwen2 = {"qwen2", {CL100K("\\p{N}")}};
static const rq_pattern qwen35 = {"qwen35",
                                  {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS
                                               "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" TAIL}};
static const rq_pattern starcoder = {"starcoder", {"\\p{N}", GPT2}};
static const rq_pattern falcon = {"falcon", {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}};
static const rq_pattern fallback = {"default", {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}};
/* The fourth pass says "white space up to the end"; the look-behind only spares it from trying again at every
 * position inside a long run. */
static const rq_pattern deepseek_llm = {
    "deepseek-llm",
    {"[\\r\\n]", S "?[" DEEPSEEK_CASED "]+",
     S "?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+",
     "(?<!" S ")" S "++\\z", "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+", "\\p{N}+"}};
static const rq_pattern deepseek_coder = {"deepseek-coder",
                                          {"[\\r\\n]", S "?\\p{L}+", S "?\\p{P}+",
                                           "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+",
                                           "\\p{N}"}};
static const rq_pattern deepseek_v3 = {
    "deepseek-v3",
    {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
     ASCII_PUNCTUATION
     "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" TAIL}};
static const rq_pattern gpt4o = {"gpt-4o", {O200K(CONTRACTION "?", "\\p{N}{1,3}")}};
static const rq_pattern tekken = {"tekken", {O200K("", "\\p{N}")}};
static const rq_pattern seed_coder = {
    "seed-coder", {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]+|" TAIL}};
static const rq_pattern bailing = {"bailingmoe",
                                   {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^" WS
                                    "\\p{L}\\p{N}]++[\\r\\n]*|" S "*[\\r\\n]|" S "+(?!" NOT_S ")|" S "+"}};

static const rq_pre table[] = {
    {"default", &fallback, false, false},
    {"gpt-2", &gpt2, false, false},
    {"phi-2", &gpt2, false, false},
    {"mpt", &gpt2, false, false},
    {"olmo", &gpt2, false, false},
    {"jais", &gpt2, false, false},
    {"trillion", &gpt2, false, false},
    {"granite-docling", &gpt2, false, false},
    {"exaone4", &gpt2, false, false},
    {"gigachat", &gpt2, false, false},
    {"a.x-4.0", &gpt2, false, false},
    {"mellum", &gpt2, false, false},
    {"llama-bpe", &llama3, true, true},
    {"llama3", &llama3, true, true},
    {"llama-v3", &llama3, true, true},
    {"falcon3", &llama3, true, true},
    {"falcon-h1", &llama3, true, true},
    {"pixtral", &llama3, true, true},
    {"midm-2.0", &llama3, true, true},
    {"lfm2", &llama3, true, true},
    {"dbrx", &llama3, false, false},
    {"smaug-bpe", &llama3, false, false},
    {"glm4", &llama3, false, false},
    {"chatglm-bpe", &llama3, false, false},
    {"qwen2", &qwen2, false, false},
    {"deepseek-r1-qwen", &qwen2, false, false},
    {"megrez", &qwen2, false, false},
    {"kormo", &qwen2, false, false},
    {"stablelm2", &qwen2, false, false},
    {"hunyuan", &qwen2, false, false},
    {"solar-open", &qwen2, false, false},
    {"grok-2", &qwen2, false, false},
    {"qwen35", &qwen35, false, false},
    {"starcoder", &starcoder, false, false},
    {"refact", &starcoder, false, false},
    {"command-r", &starcoder, false, false},
    {"smollm", &starcoder, false, false},
    {"codeshell", &starcoder, false, false},
    {"exaone", &starcoder, false, false},
    {"minerva-7b", &starcoder, false, false},
    {"deepseek-llm", &deepseek_llm, false, false},
    {"deepseek-coder", &deepseek_coder, false, false},
    {"deepseek-v3", &deepseek_v3, false, false},
    {"hunyuan-dense", &deepseek_v3, false, false},
    {"joyai-llm", &deepseek_v3, false, false},
    {"gpt-4o", &gpt4o, false, false},
    {"llama4", &gpt4o, false, false},
    {"kanana2", &gpt4o, false, false},
    {"minimax-m2", &gpt4o, false, false},
    {"tekken", &tekken, true, true},
    {"falcon", &falcon, false, false},
    {"seed-coder", &seed_coder, false, false},
    {"bailingmoe", &bailing, false, false},
    {"bailingmoe2", &bailing, false, false},
    {"llada-moe", &bailing, false, false},
};

const rq_pre *rq_pre_find(rq_vocab_text name)
{
    if (!name.data || !name.len) return &table[0];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strlen(table[i].name) == name.len && !memcmp(table[i].name, name.data, name.len))
            return &table[i];
    return NULL;
}

const rq_pre *rq_pre_at(size_t i)
{
    return i < sizeof table / sizeof *table ? &table[i] : NULL;
}

void rq_pre_list(char *out, size_t out_bytes)
{
    size_t used = 0;
    out[0] = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table && used < out_bytes; i++) {
        int n = snprintf(out + used, out_bytes - used, "%s%s", i ? ", " : "", table[i].name);
        if (n < 0) break;
        used += (size_t)n;
    }
}
