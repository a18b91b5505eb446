/* interrupt.c - see interrupt.h. */
#include "tools/ppl/interrupt.h"

#include <signal.h>
#include <string.h>

/* A signal handler can reach nothing but a global. */
static volatile sig_atomic_t signalled;

static void on_signal(int signal_number)
{
    (void)signal_number;
    signalled = 1;
}

void rq_interrupt_install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = (int)SA_RESETHAND;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool rq_interrupted(void)
{
    return signalled != 0;
}
