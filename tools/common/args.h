/* args.h - one table drives a program's flags, its environment names, its range checks and its --help.
 *
 *     rq_engine_args engine = rq_engine_args_default();
 *     bool verbose = false;
 *     rq_options options = {0};
 *     rq_options_engine(&options, &engine);
 *     rq_options_add(&options, (rq_option){.names = "-v,--verbose", .kind = RQ_OPT_FLAG, .target = &verbose,
 *                                          .help = "say more"});
 *     const rq_program_text text = {.program = "rqvk-thing", .usage = "-m MODEL [options]",
 *                                   .about = "Does the thing."};
 *     int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
 *     if (code >= 0) return code;       // --help, --version or a mistake; already printed
 *
 * Accepted: "--name value", "--name=value", "-c value", "-ctk value", "--flag", "--no-flag", "--" (what
 * follows is positional). Not accepted: abbreviations and bundled letters. The last of repeated options wins.
 * Every option is also read from the environment: RQVK_ARG_CTX_SIZE (from its first long name), then
 * LLAMA_ARG_CTX_SIZE, then the names in `env`; the command line wins. */
#ifndef RQ_ARGS_H
#define RQ_ARGS_H

#include "engine/rqvk.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum rq_opt_kind {
    RQ_OPT_FLAG,    /* bool *: --name sets true, --no-name false; environment 1/true/on, 0/false/off */
    RQ_OPT_STRING,  /* const char **: points into argv or the environment; see `choices` */
    RQ_OPT_I32,     /* int32_t *, within [min, max] */
    RQ_OPT_U32,     /* uint32_t * */
    RQ_OPT_I64,     /* int64_t * */
    RQ_OPT_U64,     /* uint64_t * */
    RQ_OPT_F32,     /* float *, finite */
    RQ_OPT_CALL,    /* `call` is run with the value, for lists and the like; default shown from `shown` */
    RQ_OPT_HEADING, /* no option: `help` is a heading in --help */
} rq_opt_kind;

typedef struct rq_option {
    const char *names; /* every spelling, comma-separated: "-c,--ctx-size" */
    void *target;      /* its value before parsing is the default that --help prints */
    double min, max;   /* numbers: allowed range; both 0: the whole type (U32/U64/floats: >= 0) */
    const char
        *value; /* "N", "FILE": name of the value in --help; NULL: "N" for numbers, "TEXT" for strings */
    const char *choices; /* strings: "f16,f32": the only values allowed; NULL: any */
    const char *env;     /* further environment names, comma-separated: "LLAMA_ARG_BATCH,LLAMA_API_KEY" */
    const char *shown;   /* the default as --help prints it ("all processors"); NULL: from target; "": none */
    rq_status (*call)(void *target, const char *value, rq_error *err);
    const char *help;
    rq_opt_kind kind;
    bool secret; /* the value never appears in an error sentence */
} rq_option;

enum { RQ_MAX_OPTIONS = 96 };
typedef struct rq_options {
    rq_option items[RQ_MAX_OPTIONS];
    size_t n;
} rq_options;

/* Appends one option (silently not when full: RQ_MAX_OPTIONS is checked by a test of each program's table).
 */
void rq_options_add(rq_options *options, rq_option option);
void rq_options_heading(rq_options *options, const char *heading);
/* The option whose target this is, for a program to change; NULL when there is none. */
rq_option *rq_options_find(rq_options *options, const void *target);
/* Takes the option with this target out, if there is one. */
void rq_options_drop(rq_options *options, const void *target);

typedef struct rq_program_text {
    const char *program, *usage, *about;
    const char *footer; /* printed after the options; may be NULL */
} rq_program_text;

typedef enum rq_args_result { RQ_ARGS_GO, RQ_ARGS_HELP, RQ_ARGS_VERSION, RQ_ARGS_ERROR } rq_args_result;

/* Reads the environment, then argv[1..argc). Positional arguments go to positional[0..*n_positional), whose
 * capacity is *n_positional on entry; with positional NULL none are allowed. --help (-h) and --version are
 * known to every program and win over everything else: targets are untouched then, so that rq_args_help shows
 * defaults. On RQ_ARGS_ERROR `err` names the option, and targets may have been written in part. */
rq_args_result rq_args_parse(const rq_options *options, int argc, char **argv, const char **positional,
                             size_t *n_positional, rq_error *err);
void rq_args_help(const rq_program_text *text, const rq_options *options, FILE *out);

/* rq_args_parse, and prints help, version or the mistake. Returns -1 to go on, else the exit code (0 or 2).
 */
int rq_args_run(const rq_program_text *text, const rq_options *options, int argc, char **argv,
                const char **positional, size_t *n_positional);

/* ---- options most programs share --------------------------------------------------------------------- */

typedef struct rq_engine_args {
    const char *model;       /* NULL: the built-in one */
    const char *builtin;     /* which built-in one; NULL: not said */
    rq_engine_params params; /* n_sessions and log are left to the program */
    bool list_devices;
    bool plan, plan_json;
} rq_engine_args;
rq_engine_args rq_engine_args_default(void);
/* -m --builtin -c -t -b --backend --device -ngl --cpu-experts --fit --plan and their like, -ctk -ctv --kv-recent --kv-sinks --kv-profile --cache-tokens
 * --list-devices */
void rq_options_engine(rq_options *options, rq_engine_args *args);

/* --draft --draft-depth --draft-min-p; drafts are "auto" where the program has not said otherwise. */
void rq_options_drafts(rq_options *options, rq_engine_args *args);

/* -n: most tokens of an answer, at least 1, or -1; and whether that is what was given. */
rq_option rq_option_predict(int32_t *target, const char *shown, const char *help);
rq_status rq_predict_check(int32_t n_predict, rq_error *err);

typedef struct rq_sampling_args {
    rq_sampling sampling; /* .seed is filled by rq_sampling_args_finish */
    int64_t seed;         /* -1: a new one each time */
} rq_sampling_args;
rq_sampling_args rq_sampling_args_default(void);
/* --temp --top-k --top-p --min-p --repeat-penalty --repeat-last-n --presence-penalty --frequency-penalty -s
 */
void rq_options_sampling(rq_options *options, rq_sampling_args *args);
void rq_sampling_args_finish(rq_sampling_args *args);

/* A random 63-bit seed from the operating system. */
uint64_t rq_random_seed(void);

/* Prints "PROGRAM: SENTENCE" on standard error and returns 1, the exit code of a failure. */
int rq_complain(const char *program, const rq_error *err);

/* Was a plan asked for? Then prints it instead of running, and *code is the exit code. */
bool rq_engine_args_plan(const rq_engine_args *args, const char *program, int *code);

/* Prints the devices, one per line: what --list-devices does. Returns 0, the exit code. */
int rq_print_devices(void);

/* Whether there is a model to load: -m names one, or the built-in one asked for can be run and read. */
rq_status rq_engine_args_check(const rq_engine_args *args, rq_error *err);

/* Loads the model (-m, else the built-in one) and, when `engine` is not NULL, creates the engine. On failure
 * both outputs are untouched. */
rq_status rq_engine_args_open(const rq_engine_args *args, rq_model **model, rq_engine **engine,
                              rq_error *err);

#endif
