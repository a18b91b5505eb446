/* rqvk.h - the public face of the engine. Programs (tools/, server/) include this and nothing below it.
 *
 * Three nouns:
 *   model    a loaded file: weights, tokenizer, chat format. Immutable, shareable between threads.
 *   engine   devices, memory pools and one scheduler thread that runs steps for all sessions of a model.
 *   session  one sequence in time. Used by one thread at a time; different sessions by different threads.
 *
 * Every function that can fail returns rq_status and fills `err` with one sentence (see status.h); outputs are
 * written only on success. Strings are UTF-8. All objects are freed by their own free function, and freeing
 * NULL does nothing. Free sessions before their engine and engines before their model. */
#ifndef RQVK_H
#define RQVK_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct rq_model rq_model;
typedef struct rq_engine rq_engine;
typedef struct rq_session rq_session;

/* ---- model --------------------------------------------------------------------------------------------- */

/* Opens a GGUF file (or the first of a split set), checks it against its family and builds the tokenizer.
 * Weights stay in the mapped file. */
rq_status rq_model_load(const char *path, rq_model **out, rq_error *err);
void rq_model_free(rq_model *model);

typedef struct rq_model_info {
    const char *path;
    const char *name;         /* general.name, or the file's base name */
    const char *architecture; /* "llama", "qwen3", ... */
    const char *description;  /* for people: "qwen3 0.6B Q4_K_M" */
    const char *chat_format;  /* "chatml", "llama3", "gemma", "gemma4", or "none" */
    uint64_t n_params, file_bytes;
    uint32_t n_ctx_train, n_layers, n_embd, n_vocab;
    uint32_t n_expert, n_expert_used; /* 0 for dense models */
} rq_model_info;
/* Strings live as long as the model. */
void rq_model_describe(const rq_model *model, rq_model_info *out);

/* ---- text and tokens ------------------------------------------------------------------------------------ */

typedef int32_t rq_token;

/* A growing array of token ids; zero it before first use, free its memory with rq_tokens_free. */
typedef struct rq_tokens {
    rq_token *ids;
    size_t n, cap;
} rq_tokens;
void rq_tokens_free(rq_tokens *tokens);

enum {
    RQ_PARSE_SPECIAL = 1, /* text such as "<|im_end|>" becomes the control token */
    RQ_ADD_BOS = 2,       /* put the model's beginning-of-sequence token in front, if it has one */
    RQ_MODEL_BOS = 4
}; /* as RQ_ADD_BOS, but only when the file asks for it */
/* Appends the ids of `bytes` bytes of text. On error `out` keeps its previous content. */
rq_status rq_tokenize(const rq_model *model, const char *text, size_t bytes, unsigned flags, rq_tokens *out,
                      rq_error *err);

/* The bytes of one token (not necessarily valid UTF-8, no terminator), "" for ids out of range. Control tokens
 * give their text. Lives as long as the model. */
const char *rq_token_bytes(const rq_model *model, rq_token id, size_t *bytes);

/* Text of n ids as a NUL-terminated malloc'ed string of valid UTF-8 (invalid bytes become U+FFFD), control
 * tokens included if `special`. Free with rq_string_free. */
rq_status rq_detokenize(const rq_model *model, const rq_token *ids, size_t n, bool special, char **out,
                        rq_error *err);
void rq_string_free(char *text);

typedef struct rq_message {
    const char *role; /* "system", "user", "assistant", ... */
    const char *content;
    size_t content_bytes;
    const char *thoughts; /* of an earlier answer, apart from its content; NULL: inside it, if anywhere */
    size_t thoughts_bytes;
} rq_message;

/* Where a rendering ends: behind the last message, or where the answer starts, with thoughts first or without where the
 * chat format can say so; RQ_OPEN is what its template does when nothing is asked for. */
typedef enum rq_opening { RQ_CLOSED, RQ_OPEN, RQ_OPEN_THINKING, RQ_OPEN_PLAIN } rq_opening;

/* Renders messages with the model's chat format and appends their ids; `content` can never produce control
 * tokens. Thoughts in earlier answers are treated as the format does (chat.h). When `boundaries` is
 * not NULL it receives, for each message, the number of ids in `out` after it (n_messages entries).
 * RQ_ERR_UNSUPPORTED when the file has no chat format this build knows, or one that cannot ask for thinking. */
rq_status rq_chat_tokenize(const rq_model *model, const rq_message *messages, size_t n_messages,
                           rq_opening open, rq_tokens *out, size_t *boundaries, rq_error *err);

/* What sets the thoughts of an answer apart: `close` ends them; they begin with the answer, behind `open`, or at once
 * where the prompt has it already. */
typedef struct rq_thought_marks {
    const char *open, *close; /* NULL: this model's chat format knows of no thoughts */
    const char *label;        /* the thoughts' first word, which is none of them ("thought"); "": none */
    bool opened;              /* by the prompt */
    bool anywhere;            /* thoughts may begin in the middle of an answer, too */
    bool forgotten;           /* in earlier answers: a prompt has only those behind the last question */
} rq_thought_marks;
rq_thought_marks rq_chat_thoughts(const rq_model *model, rq_opening open);

/* ---- engine --------------------------------------------------------------------------------------------- */

typedef struct rq_engine_params {
    const char *backend; /* "auto" (NULL), "cpu" or "vulkan" */
    const char *device;  /* number of a device of the backend, or part of its name; NULL: the best. Several,
                             * separated by commas, share the layers: "vulkan0,vulkan1" */
    const char *vk_disable; /* abilities of a Vulkan device not to use: "float16,coopmat"; NULL: none */
    uint32_t n_ctx;         /* most tokens a session may hold; 0 = min(trained context, what fits) */
    uint32_t n_sessions;    /* most sessions alive at once; 0 = 1 */
    uint32_t n_batch;       /* most tokens in one step, a power of two <= 2048; 0 = 512 */
    uint32_t n_threads;     /* 0 = processors this process may run on */
    uint32_t n_queue;       /* most requests waiting for a session to run; 0 = 4 * n_sessions */
    uint64_t cache_ram_mib; /* for states of recurrent models that later requests may go on from; 0 = 1024 */
    uint64_t cache_tokens;  /* size of the shared cache in tokens; 0 = n_ctx * n_sessions */
    /* Placement. Zero everywhere: everything on the cards, as far as it fits (plan.h). Numbers that are given are kept
     * to or refused. */
    const char *gpu_layers;     /* so many last layers on the cards: a number, "all", or "auto" (NULL) */
    const char *tensor_split;   /* shares of the layers for several cards: "3,1"; NULL: by free memory */
    bool cpu_experts;           /* mixtures: the experts stay on the processor */
    uint32_t cpu_expert_layers; /* those of the first so many layers; 0: of all, if cpu_experts */
    bool no_fit;                /* everything on the cards, whether it fits or not */
    uint64_t device_memory;     /* bytes of each card to plan with, 0: what is free */
    uint64_t host_memory;       /* the same of the processor */
    /* Cache formats: f16 (NULL), f32, bf16, q8_0, q4_0, a rotation and bits (wht3, planar4), or auto; see kv.h.
     * Of coded formats the last kv_recent tokens (0 = 128) and the first kv_sinks, both in whole 64s, are read as
     * they were written. kv_profile: a file; NULL: the model's path and ".kvprofile" if it is there; "none". */
    const char *type_k, *type_v;
    uint32_t kv_recent, kv_sinks;
    const char *kv_swa; /* of layers that see a window: a format, or "K,V"; NULL: f16, f32 or bf16 as above */
    const char *kv_profile;
    const struct rq_kv_hooks *kv_hooks; /* for measurements (kv.h); NULL */
    /* Drafts: the file's MTP block guesses up to draft_depth (1 to 6, 0 = 2) tokens ahead, the model checks them in one
     * step; what is answered stays the same. "off" (NULL), "mtp", or "auto": where the file has one and while it
     * measures faster. A draft ends where a guess has less than the probability draft_min_p. */
    const char *draft;
    uint32_t draft_depth;
    float draft_min_p;
    /* Receives one line for each decision made at start (placement, sizes, features), and later, from the engine's
     * own thread, one when what it computes goes wrong. May be NULL; else it and log_user outlive the engine. */
    void (*log)(void *user, const char *line);
    void *log_user;
} rq_engine_params;

rq_status rq_engine_create(const rq_model *model, const rq_engine_params *params, rq_engine **out,
                           rq_error *err);
/* Ends all requests with RQ_FINISH_CANCELLED first. */
void rq_engine_free(rq_engine *engine);

typedef struct rq_engine_info {
    const char *backend, *device; /* "cpu", "AMD EPYC, 2 threads, avx2" */
    const char *type_k, *type_v;  /* of the cache: "f16", "wht3" */
    double bits_k, bits_v;        /* per element, scales included */
    const char *kv_profile;       /* NULL: none is used */
    uint32_t kv_recent, kv_sinks;
    uint32_t n_ctx, n_sessions, n_batch, n_threads;
    uint64_t cache_tokens, cache_bytes, scratch_bytes;
    uint64_t cache_bytes_per_token;   /* for as long as a token is kept: coded, where there is a code */
    uint64_t exact_bytes_per_token;   /* while a token is read as it was written */
    uint64_t exact_bytes_per_session; /* of pages for such tokens, 0 where nothing is coded */
    uint64_t window_bytes; /* of layers that see a window, whatever the context; in no number per token */
    uint32_t draft_depth;  /* 0: nothing drafts */
    bool failed;           /* the device or the file is gone: every request is refused from now on */
    char failure[512];
} rq_engine_info;
void rq_engine_describe(const rq_engine *engine, rq_engine_info *out);

/* Counters since the engine was created; safe from any thread. */
typedef struct rq_engine_stats {
    uint64_t steps, step_tokens; /* tokens that really went through a step, padding excluded */
    uint64_t prompt_tokens, reused_tokens, generated_tokens;
    uint64_t drafted_tokens, accepted_tokens; /* guessed and checked; of them right */
    uint64_t weight_bytes;                    /* of weights that steps and guesses read */
    uint64_t step_ns;                         /* time spent inside steps */
    uint64_t device_ns;                       /* of it in devices; the rest is the host's own work */
    uint32_t sessions, running, waiting;      /* now */
    uint64_t cache_tokens_used;               /* now, in whole pages */
    uint64_t states_kept, states_resumed, states_dropped, state_bytes; /* recurrent: copies; held now */
    uint64_t cache_not_finite; /* keys and values that were no finite numbers when compressed: kept as 0 */
} rq_engine_stats;
void rq_engine_get_stats(const rq_engine *engine, rq_engine_stats *out);

/* One line per device this build can drive, for --list-devices. */
void rq_list_devices(void (*line)(void *user, const char *text), void *user);

/* ---- session -------------------------------------------------------------------------------------------- */

/* RQ_ERR_CAPACITY when n_sessions are alive. */
rq_status rq_session_create(rq_engine *engine, rq_session **out, rq_error *err);
void rq_session_free(rq_session *session); /* cancels what it was doing */

typedef struct rq_logit_bias {
    rq_token token;
    float bias; /* added to the logit; -INFINITY bans the token */
} rq_logit_bias;

typedef struct rq_sampling {
    float temperature;                         /* <= 0: greedy */
    int32_t top_k;                             /* <= 0: all */
    float top_p;                               /* >= 1: off */
    float min_p;                               /* <= 0: off */
    float repeat_penalty;                      /* 1: off; over the last repeat_last_n tokens */
    int32_t repeat_last_n;                     /* -1: all, 0: off */
    float presence_penalty, frequency_penalty; /* 0: off; counted over generated tokens */
    uint64_t seed;
    const rq_logit_bias *bias; /* copied by rq_submit */
    size_t n_bias;
} rq_sampling;
/* temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, no penalties, seed 0 (the habits of llama.cpp users). */
rq_sampling rq_sampling_default(void);

enum { RQ_MAX_LOGPROBS = 20, RQ_MAX_STOPS = 16, RQ_MAX_STOP_BYTES = 256, RQ_MAX_BIAS = 4096 };

typedef struct rq_request {
    uint32_t max_tokens; /* 0: until the context is full */
    rq_sampling sampling;
    const char *const *stop; /* up to RQ_MAX_STOPS non-empty strings; copied. The text ends before a match. */
    size_t n_stop;
    int32_t n_logprobs; /* -1: none; 0..RQ_MAX_LOGPROBS: the chosen token's and so many best alternatives */
    bool ignore_eos;    /* never choose an end-of-generation token */
    bool fresh;         /* evaluate the whole prompt: reuse nothing the cache holds of it */
} rq_request;
rq_request rq_request_default(void);

/* Asks for a continuation of `tokens` (the whole sequence, not only what is new: the part this session already
 * holds is recognised and reused). `boundaries` are positions where messages end (see rq_chat_tokenize); state
 * may be kept there. Returns at once; results come from rq_next. n >= 1.
 * RQ_ERR_CAPACITY: the prompt leaves no room for one token in n_ctx (the sentence holds both numbers), or the
 * queue is full. RQ_ERR_ARGUMENT: a token out of range, a bad parameter, or a request is still running. */
rq_status rq_submit(rq_session *session, const rq_token *tokens, size_t n, const size_t *boundaries,
                    size_t n_boundaries, const rq_request *request, rq_error *err);

typedef enum rq_finish {
    RQ_FINISH_NONE,      /* more to come */
    RQ_FINISH_EOS,       /* the model ended its turn */
    RQ_FINISH_STOP,      /* a stop string */
    RQ_FINISH_LENGTH,    /* max_tokens, or the context is full */
    RQ_FINISH_CANCELLED, /* rq_cancel, or the engine is being freed */
    RQ_FINISH_ERROR      /* `error` says why */
} rq_finish;

typedef struct rq_token_logprob {
    rq_token token;
    float logprob; /* natural logarithm, of the distribution before temperature and filters */
} rq_token_logprob;

typedef struct rq_event {
    rq_token token;   /* -1 when the event carries no token */
    const char *text; /* new text, complete UTF-8 characters, possibly empty; valid until the next call */
    size_t text_bytes;
    rq_token_logprob chosen;
    uint32_t n_top;
    rq_token_logprob top[RQ_MAX_LOGPROBS];
    rq_finish finish; /* anything but NONE: the last event of the request; the fields below are final then */
    uint32_t n_prompt, n_reused, n_generated; /* also in events before the last one, as of now */
    uint32_t n_drafted, n_accepted;
    double prompt_ms, generate_ms; /* from start of work to first token; from first token to last */
    const char *reuse_note;        /* why not more was reused; "" if all was */
    rq_error error;                /* RQ_FINISH_ERROR only */
} rq_event;

/* Waits up to timeout_ms (-1: forever) for the next event of the running request. RQ_ERR_TIMEOUT when nothing
 * came; RQ_ERR_ARGUMENT when no request is running. */
rq_status rq_next(rq_session *session, rq_event *event, int timeout_ms, rq_error *err);

/* Stops the request; the step in flight is its last. rq_next still delivers the final event. Any thread. */
void rq_cancel(rq_session *session);

/* LAST: one row for the whole call, after its last token, whatever the chunks. */
typedef enum rq_logits_rows { RQ_LOGITS_NONE, RQ_LOGITS_LAST, RQ_LOGITS_ALL } rq_logits_rows;

/* Appends tokens to the session and evaluates them now, `chunk` at a time (0: as many as a step takes); returns
 * when all are done. `on_logits` receives n_vocab floats for each row asked for, in order of position, on
 * another thread; they are valid during the call. For benchmarks and comparisons; fails like rq_submit. */
rq_status rq_evaluate(rq_session *session, const rq_token *tokens, size_t n, uint32_t chunk,
                      rq_logits_rows rows,
                      void (*on_logits)(void *user, size_t position, const float *logits), void *user,
                      rq_error *err);

/* Forgets everything from position n on (n <= length). */
rq_status rq_session_truncate(rq_session *session, size_t n, rq_error *err);
size_t rq_session_length(const rq_session *session);

/* ---- operation benchmark --------------------------------------------------------------------------------- */

typedef struct rq_op_row {
    const char *op, *type, *shape, *backend, *implementation; /* implementation: "avx2", "reference", ... */
    double ns, bytes, bandwidth_share; /* per call; share of the copy bandwidth measured in the same run */
    uint32_t launches;                 /* kernels of a call; 0: the backend launches none */
} rq_op_row;
/* Times every operation the backend serves, over the catalogue's shapes whose name contains `filter` (NULL:
 * all). */
rq_status rq_bench_ops(const char *backend, uint32_t n_threads, const char *filter,
                       void (*row)(void *user, const rq_op_row *row), void *user, rq_error *err);

#endif
