/* interrupt.h - the first Ctrl-C asks a measurement to stop and write what it has; the second one ends the
 * program as usual. */
#ifndef RQ_INTERRUPT_H
#define RQ_INTERRUPT_H

#include <stdbool.h>

/* Installs the handler of SIGINT and SIGTERM. */
void rq_interrupt_install(void);
/* Whether a signal came. Any thread. */
bool rq_interrupted(void);

#endif
