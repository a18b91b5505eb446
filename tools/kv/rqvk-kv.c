/* rqvk-kv - measures, captures and calibrates the compressed cache. */
#include "tools/kv/commands.h"

#include <stdio.h>
#include <string.h>

typedef struct command {
    const char *name, *about;
    int (*run)(int argc, char **argv);
} command;

static const command commands[] = {
    {"synth", "measure formats on synthetic keys, values and queries", kv_synth_main},
    {"capture", "keep queries, keys and values of a text", kv_capture_main},
    {"replay", "measure formats on a capture", kv_replay_main},
    {"calibrate", "learn a profile of a model from a text", kv_calibrate_main},
};

static void help(FILE *out)
{
    fputs("Measures cache formats and prepares models for them.\n\nusage: rqvk-kv COMMAND [options]\n\n",
          out);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-12s%s\n", commands[i].name, commands[i].about);
    fputs("\n`rqvk-kv COMMAND --help` lists the options of a command.\n", out);
}

int main(int argc, char **argv)
{
    if (argc > 1 && (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0)) {
        help(stdout);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("rqvk-kv %s\n", RQVK_VERSION);
        return 0;
    }
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    if (argc > 1)
        fprintf(stderr, "rqvk-kv: there is no command %s (see rqvk-kv --help)\n", argv[1]);
    else
        help(stderr);
    return 2;
}
