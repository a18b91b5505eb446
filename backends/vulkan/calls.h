/* calls.h - every call of the driver is counted here, and a test can have the N-th one fail. Objects are counted as
 * they are made and destroyed, so that the test sees what was left behind. */
#ifndef RQ_VK_CALLS_H
#define RQ_VK_CALLS_H

#include <stdbool.h>
#include <volk.h>

/* Counts a call; true with *failure when it is the one that shall fail. */
bool vk_call_fails(VkResult *failure);
void vk_call_made(void);
VkResult vk_object_made(VkResult result);
void vk_object_gone(void);

/* The value of a call that returns VkResult, or the failure in its place. */
#define VK_TRY(call)                                                                                         \
    __extension__({                                                                                          \
        VkResult vk_try_result;                                                                              \
        if (!vk_call_fails(&vk_try_result)) vk_try_result = (call);                                          \
        vk_try_result;                                                                                       \
    })
/* The same of a call that makes an object. */
#define VK_MAKE(call) vk_object_made(VK_TRY(call))
/* A call that cannot fail, and one that destroys an object. */
#define VK_DO(call)   (vk_call_made(), (call))
#define VK_DROP(call) (vk_object_gone(), vk_call_made(), (call))

#endif
