/* old_loader.c - a Vulkan library of version 1.0: it knows no call of a later one. */
#include <stddef.h>

typedef void (*any_call)(void);
__attribute__((visibility("default"))) any_call vkGetInstanceProcAddr(void *instance, const char *name);

any_call vkGetInstanceProcAddr(void *instance, const char *name)
{
    (void)instance;
    (void)name;
    return NULL;
}
