/* serve_faults.c - linked into a server for tests, over the simulator: a call of the driver fails. RQVK_SIMT_FAIL says
 * which: CALL:N is the N-th of that name (api.h), counted from the start; CALL alone the next one after SIGUSR2. When
 * the program ends it says how many calls failed and how many objects of the driver were left. */
#include "tests/simt/sim.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char call[40];

static void arm(int number)
{
    (void)number;
    simt_fail_call(call, 1);
}

__attribute__((constructor)) static void choose(void)
{
    const char *what = getenv("RQVK_SIMT_FAIL");
    if (!what) return;
    size_t n = strcspn(what, ":");
    if (n >= sizeof call) return;
    memcpy(call, what, n);
    if (what[n] == ':') {
        simt_fail_call(call, (uint32_t)strtoul(what + n + 1, NULL, 10));
        return;
    }
    struct sigaction action = {.sa_handler = arm, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR2, &action, NULL);
}

__attribute__((destructor)) static void report(void)
{
    fprintf(stderr, "simulator: %u calls failed, %u objects left\n", simt_failed(), simt_alive());
}
