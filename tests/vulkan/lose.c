/* lose.c - linked into a server for tests: on SIGUSR2 the next call of the driver that can fail finds the device lost. */
#include "backends/vulkan/vulkan.h"

#include <signal.h>
#include <stddef.h>

#include <vulkan/vulkan_core.h>

static void lose(int number)
{
    (void)number;
    rq_vulkan_fail_at(1, VK_ERROR_DEVICE_LOST); /* atomics alone: fit for a signal */
}

__attribute__((constructor)) static void listen_for_it(void)
{
    struct sigaction action = {.sa_handler = lose, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR2, &action, NULL);
}
