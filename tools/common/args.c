/* args.c - the table-driven option parser; see args.h. */
#include "tools/common/args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void rq_options_add(rq_options *options, rq_option option)
{
    if (options->n < RQ_MAX_OPTIONS) options->items[options->n++] = option;
}

void rq_options_heading(rq_options *options, const char *heading)
{
    rq_options_add(options, (rq_option){.kind = RQ_OPT_HEADING, .help = heading});
}

rq_option *rq_options_find(rq_options *options, const void *target)
{
    for (size_t i = 0; i < options->n; i++)
        if (options->items[i].target == target) return &options->items[i];
    return NULL;
}

void rq_options_drop(rq_options *options, const void *target)
{
    rq_option *found = rq_options_find(options, target);
    if (!found) return;
    size_t after = options->n - (size_t)(found - options->items) - 1;
    memmove(found, found + 1, after * sizeof *found);
    options->n--;
}

/* Steps through a comma-separated list: returns the next item and its length, or NULL at the end. */
static const char *next_item(const char **list, size_t *length)
{
    if (!*list || !**list) return NULL;
    const char *item = *list;
    *length = strcspn(item, ",");
    *list = item + *length + (item[*length] == ',');
    return item;
}

static bool list_has(const char *list, const char *text, size_t bytes)
{
    size_t length;
    for (const char *item; (item = next_item(&list, &length));) {
        if (length == bytes && !memcmp(item, text, bytes)) return true;
    }
    return false;
}

/* ---- values ------------------------------------------------------------------------------------------- */

static void integer_limits(const rq_option *option, double *min, double *max)
{
    bool given = option->min != 0 || option->max != 0;
    switch (option->kind) {
    case RQ_OPT_I32:
        *min = INT32_MIN, *max = INT32_MAX;
        break;
    case RQ_OPT_U32:
        *min = 0, *max = UINT32_MAX;
        break;
    case RQ_OPT_U64:
        *min = 0, *max = (double)INT64_MAX;
        break;
    default:
        *min = (double)INT64_MIN, *max = (double)INT64_MAX;
        break;
    }
    if (given) *min = option->min, *max = option->max;
}

static rq_status set_integer(const rq_option *option, const char *name, const char *value, rq_error *err)
{
    char *end = NULL;
    errno = 0;
    long long v = strtoll(value, &end, 10);
    double min, max;
    integer_limits(option, &min, &max);
    if (!*value || isspace((unsigned char)*value) || *end || errno == EINVAL) {
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s takes a whole number, not '%.60s'", name, value);
    }
    if (errno == ERANGE || (double)v < min || (double)v > max) {
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s must lie between %.0f and %.0f, not %.40s", name, min, max,
                       value);
    }
    switch (option->kind) {
    case RQ_OPT_I32:
        *(int32_t *)option->target = (int32_t)v;
        break;
    case RQ_OPT_U32:
        *(uint32_t *)option->target = (uint32_t)v;
        break;
    case RQ_OPT_U64:
        *(uint64_t *)option->target = (uint64_t)v;
        break;
    default:
        *(int64_t *)option->target = v;
        break;
    }
    return RQ_OK;
}

static rq_status set_float(const rq_option *option, const char *name, const char *value, rq_error *err)
{
    char *end = NULL;
    double v = strtod(value, &end);
    if (!*value || isspace((unsigned char)*value) || *end || !isfinite(v)) {
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s takes a number, not '%.60s'", name, value);
    }
    bool given = option->min != 0 || option->max != 0;
    double min = given ? option->min : 0, max = given ? option->max : 3e38;
    if (v < min || v > max) {
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s must lie between %g and %g, not %.40s", name, min, max,
                       value);
    }
    *(float *)option->target = (float)v;
    return RQ_OK;
}

static rq_status set_flag(const rq_option *option, const char *name, const char *value, rq_error *err)
{
    if (list_has("1,true,on,yes", value, strlen(value))) {
        *(bool *)option->target = true;
    } else if (list_has("0,false,off,no", value, strlen(value)) || !*value) {
        *(bool *)option->target = false;
    } else {
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s is on or off, not '%.60s'", name, value);
    }
    return RQ_OK;
}

static rq_status set_value(const rq_option *option, const char *name, const char *value, rq_error *err)
{
    switch (option->kind) {
    case RQ_OPT_FLAG:
        return set_flag(option, name, value, err);
    case RQ_OPT_F32:
        return set_float(option, name, value, err);
    case RQ_OPT_CALL:
        return option->call(option->target, value, err);
    case RQ_OPT_STRING:
        if (option->choices && !list_has(option->choices, value, strlen(value))) {
            return rq_fail(err, RQ_ERR_ARGUMENT, "%s must be one of %s, not '%.60s'", name, option->choices,
                           option->secret ? "..." : value);
        }
        *(const char **)option->target = value;
        return RQ_OK;
    case RQ_OPT_HEADING:
        return RQ_OK;
    default:
        return set_integer(option, name, value, err);
    }
}

/* ---- environment -------------------------------------------------------------------------------------- */

/* "--ctx-size" of "-c,--ctx-size" as CTX_SIZE; false when the option has no long name. */
static bool env_stem(const rq_option *option, char *out, size_t capacity)
{
    size_t length;
    const char *list = option->names;
    for (const char *item; (item = next_item(&list, &length));) {
        if (length < 3 || item[0] != '-' || item[1] != '-' || length - 2 >= capacity) continue;
        for (size_t i = 2; i < length; i++) {
            out[i - 2] = item[i] == '-' ? '_' : (char)toupper((unsigned char)item[i]);
        }
        out[length - 2] = '\0';
        return true;
    }
    return false;
}

static rq_status read_environment(const rq_option *option, rq_error *err)
{
    static const char *const prefixes[] = {"RQVK_ARG_", "LLAMA_ARG_"};
    char stem[64], name[96];
    const char *value = NULL;
    if (env_stem(option, stem, sizeof stem)) {
        for (size_t i = 0; i < 2 && !value; i++) {
            snprintf(name, sizeof name, "%s%s", prefixes[i], stem);
            value = getenv(name);
        }
    }
    size_t length;
    const char *list = option->env;
    for (const char *item; !value && (item = next_item(&list, &length));) {
        snprintf(name, sizeof name, "%.*s", (int)length, item);
        value = getenv(name);
    }
    return value ? set_value(option, name, value, err) : RQ_OK;
}

/* ---- command line ------------------------------------------------------------------------------------- */

static const rq_option *find_option(const rq_options *options, const char *name, size_t bytes)
{
    for (size_t i = 0; i < options->n; i++) {
        if (list_has(options->items[i].names, name, bytes)) return &options->items[i];
    }
    return NULL;
}

/* "--no-x" of a flag "--x". */
static const rq_option *find_negated(const rq_options *options, const char *name, size_t bytes)
{
    char positive[64];
    if (bytes < 6 || memcmp(name, "--no-", 5) != 0 || bytes >= sizeof positive) return NULL;
    snprintf(positive, sizeof positive, "--%.*s", (int)(bytes - 5), name + 5);
    const rq_option *option = find_option(options, positive, strlen(positive));
    return option && option->kind == RQ_OPT_FLAG ? option : NULL;
}

static rq_status parse_one(const rq_options *options, int argc, char **argv, int *at, rq_error *err)
{
    const char *word = argv[*at];
    size_t bytes = strcspn(word, "=");
    const char *inlined = word[bytes] == '=' ? word + bytes + 1 : NULL;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)bytes, word);

    const rq_option *option = find_option(options, word, bytes);
    const rq_option *negated = option ? NULL : find_negated(options, word, bytes);
    if (negated && !inlined) {
        *(bool *)negated->target = false;
        return RQ_OK;
    }
    if (!option) return rq_fail(err, RQ_ERR_ARGUMENT, "there is no option %s; see --help", name);
    if (inlined) return set_value(option, name, inlined, err);
    if (option->kind == RQ_OPT_FLAG) return set_value(option, name, "1", err);
    if (*at + 1 >= argc) return rq_fail(err, RQ_ERR_ARGUMENT, "%s needs a value; see --help", name);
    return set_value(option, name, argv[++*at], err);
}

rq_args_result rq_args_parse(const rq_options *options, int argc, char **argv, const char **positional,
                             size_t *n_positional, rq_error *err)
{
    size_t capacity = positional ? *n_positional : 0, found = 0;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return RQ_ARGS_HELP;
        if (!strcmp(argv[i], "--version")) return RQ_ARGS_VERSION;
    }
    for (size_t i = 0; i < options->n; i++) {
        if (read_environment(&options->items[i], err) != RQ_OK) return RQ_ARGS_ERROR;
    }
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        bool dash = argv[i][0] == '-' && argv[i][1] != '\0' && !only_positional;
        if (dash && !strcmp(argv[i], "--")) {
            only_positional = true;
        } else if (dash) {
            if (parse_one(options, argc, argv, &i, err) != RQ_OK) return RQ_ARGS_ERROR;
        } else if (found < capacity) {
            positional[found++] = argv[i];
        } else {
            rq_fail(err, RQ_ERR_ARGUMENT, "'%.80s' is one argument too many; see --help", argv[i]);
            return RQ_ARGS_ERROR;
        }
    }
    if (positional) *n_positional = found;
    return RQ_ARGS_GO;
}

/* ---- help --------------------------------------------------------------------------------------------- */

static void default_text(const rq_option *option, char *out, size_t capacity)
{
    out[0] = '\0';
    if (option->shown) {
        snprintf(out, capacity, "%s", option->shown);
        return;
    }
    switch (option->kind) {
    case RQ_OPT_I32:
        snprintf(out, capacity, "%d", (int)*(const int32_t *)option->target);
        break;
    case RQ_OPT_U32:
        snprintf(out, capacity, "%u", (unsigned)*(const uint32_t *)option->target);
        break;
    case RQ_OPT_I64:
        snprintf(out, capacity, "%lld", (long long)*(const int64_t *)option->target);
        break;
    case RQ_OPT_U64:
        snprintf(out, capacity, "%llu", (unsigned long long)*(const uint64_t *)option->target);
        break;
    case RQ_OPT_F32:
        snprintf(out, capacity, "%g", (double)*(const float *)option->target);
        break;
    case RQ_OPT_FLAG:
        if (*(const bool *)option->target) snprintf(out, capacity, "on");
        break;
    case RQ_OPT_STRING: {
        const char *text = *(const char *const *)option->target;
        if (text && *text) snprintf(out, capacity, "%s", text);
        break;
    }
    case RQ_OPT_CALL:
    case RQ_OPT_HEADING:
        break;
    }
}

/* Prints `text` wrapped into columns [indent, 100). */
static void print_wrapped(FILE *out, const char *text, size_t indent)
{
    size_t column = indent;
    while (*text) {
        size_t word = strcspn(text, " ");
        if (column > indent && column + 1 + word > 100) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, word, out);
        column += word;
        text += word;
        while (*text == ' ') text++;
    }
    fputc('\n', out);
}

static void help_entry(const rq_option *option, FILE *out)
{
    enum { INDENT = 30 };
    char left[128], value[64], text[768];
    size_t used = 0, length;
    const char *list = option->names;
    left[0] = '\0';
    for (const char *item; (item = next_item(&list, &length)) && used < sizeof left;) {
        used +=
            (size_t)snprintf(left + used, sizeof left - used, "%s%.*s", used ? ", " : "", (int)length, item);
    }
    bool takes_value = option->kind != RQ_OPT_FLAG;
    bool is_text = option->kind == RQ_OPT_STRING || option->kind == RQ_OPT_CALL;
    if (takes_value && used < sizeof left) {
        snprintf(left + used, sizeof left - used, " %s",
                 option->value ? option->value
                 : is_text     ? "TEXT"
                               : "N");
    }
    default_text(option, value, sizeof value);
    snprintf(text, sizeof text, "%s%s%s%s%s%s%s", option->help, option->choices ? "; one of " : "",
             option->choices ? option->choices : "", *value ? " (default: " : "", value, *value ? ")" : "",
             "");
    if (strlen(left) + 4 > INDENT) {
        fprintf(out, "  %s\n%*s", left, INDENT, "");
    } else {
        fprintf(out, "  %-*s", INDENT - 2, left);
    }
    print_wrapped(out, text, INDENT);
}

/* How the environment names are made, by the example of the first option. */
static void help_environment(const rq_options *options, FILE *out)
{
    char stem[64];
    for (size_t i = 0; i < options->n; i++) {
        const rq_option *option = &options->items[i];
        if (option->kind == RQ_OPT_HEADING || !env_stem(option, stem, sizeof stem)) continue;
        fprintf(out,
                "\nEvery option is also read from the environment: %s from RQVK_ARG_%s or LLAMA_ARG_%s.\n"
                "The command line wins.\n",
                strstr(option->names, "--"), stem, stem);
        return;
    }
}

void rq_args_help(const rq_program_text *text, const rq_options *options, FILE *out)
{
    fprintf(out, "%s\n\nusage: %s %s\n", text->about, text->program, text->usage);
    if (options->n && options->items[0].kind != RQ_OPT_HEADING) fprintf(out, "\nOptions\n");
    for (size_t i = 0; i < options->n; i++) {
        if (options->items[i].kind == RQ_OPT_HEADING) {
            fprintf(out, "\n%s\n", options->items[i].help);
        } else {
            help_entry(&options->items[i], out);
        }
    }
    fprintf(out, "\n  %-28sshow this text and leave\n  %-28sshow the version and leave\n", "-h, --help",
            "--version");
    help_environment(options, out);
    if (text->footer) fprintf(out, "%s\n", text->footer);
}

int rq_args_run(const rq_program_text *text, const rq_options *options, int argc, char **argv,
                const char **positional, size_t *n_positional)
{
    rq_error err = {0};
    switch (rq_args_parse(options, argc, argv, positional, n_positional, &err)) {
    case RQ_ARGS_GO:
        return -1;
    case RQ_ARGS_HELP:
        rq_args_help(text, options, stdout);
        return 0;
    case RQ_ARGS_VERSION:
        printf("%s %s\n", text->program, RQVK_VERSION);
        return 0;
    case RQ_ARGS_ERROR:
        break;
    }
    rq_complain(text->program, &err);
    return 2;
}

int rq_complain(const char *program, const rq_error *err)
{
    fprintf(stderr, "%s: %s\n", program, err->text);
    return 1;
}
