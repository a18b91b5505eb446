/* cache.c - compiled pipelines kept on disk between runs: one file for each device, replaced when the driver or the
 * shaders are others. A file that is not whole, or of something else, is ignored. */
#include "backends/base/mem.h"
#include "backends/vulkan/vk.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 1024, MAX_CACHE_BYTES = 64 << 20, FORMAT = 1 };

/* The file: this, then the driver's bytes. In the machine's own byte order, as those are. */
typedef struct cache_header {
    char magic[8];
    uint32_t format, vendor, device, driver;
    uint8_t uuid[VK_UUID_SIZE];
    uint64_t shaders, bytes, hash; /* hash of the shaders, size and hash of the driver's bytes */
} cache_header;

static cache_header header_of(const vk_device *d)
{
    cache_header h = {.magic = {'r', 'q', 'v', 'k', '-', 'v', 'k', 'p'},
                      .format = FORMAT,
                      .vendor = d->properties.vendorID,
                      .device = d->properties.deviceID,
                      .driver = d->properties.driverVersion};
    memcpy(h.uuid, d->properties.pipelineCacheUUID, sizeof h.uuid);
    for (uint32_t i = 0; i < vk_n_shaders; i++)
        h.shaders = XXH3_64bits_withSeed(vk_shaders[i].words, vk_shaders[i].bytes, h.shaders);
    return h;
}

/* $XDG_CACHE_HOME/rqvk or ~/.cache/rqvk, made when `make`; false when there is no such place. */
static bool folder_of(char out[PATH_BYTES], bool make)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool xdg = base && base[0] == '/';
    if (!xdg && !(home && home[0] == '/')) return false;
    int n = snprintf(out, PATH_BYTES, "%s%s", xdg ? base : home, xdg ? "" : "/.cache");
    if (n < 0 || n > PATH_BYTES - 100) return false;
    if (make && mkdir(out, 0700) != 0 && errno != EEXIST) return false;
    snprintf(out + n, PATH_BYTES - (size_t)n, "/rqvk");
    return !make || mkdir(out, 0700) == 0 || errno == EEXIST;
}

static bool path_of(const vk_device *d, const char *what, char out[PATH_BYTES], bool make)
{
    if (!folder_of(out, make)) return false;
    size_t n = strlen(out);
    snprintf(out + n, PATH_BYTES - n, "/vulkan-%08x-%08x.%s", d->properties.vendorID, d->properties.deviceID,
             what);
    return true;
}

/* The driver's bytes in the file, or NULL; rq_free. */
static uint8_t *read_file(const vk_device *d, const char *path, cache_header *h)
{
    FILE *f = fopen(path, "rbe");
    if (!f) return NULL;
    cache_header want = header_of(d);
    uint8_t *bytes = NULL;
    struct stat st;
    bool good = fstat(fileno(f), &st) == 0 && S_ISREG(st.st_mode) && fread(h, sizeof *h, 1, f) == 1 &&
                memcmp(h, &want, offsetof(cache_header, bytes)) == 0 && h->bytes > 0 &&
                h->bytes <= MAX_CACHE_BYTES && (uint64_t)st.st_size == sizeof *h + h->bytes;
    if (good) bytes = rq_malloc(h->bytes);
    if (bytes && (fread(bytes, 1, h->bytes, f) != h->bytes || XXH3_64bits(bytes, h->bytes) != h->hash)) {
        rq_free(bytes);
        bytes = NULL;
    }
    fclose(f);
    return bytes;
}

VkResult vk_cache_load(vk_device *d)
{
    char path[PATH_BYTES];
    cache_header h = {0};
    uint8_t *bytes = path_of(d, "pipelines", path, false) ? read_file(d, path, &h) : NULL;
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO,
                                      .initialDataSize = bytes ? h.bytes : 0,
                                      .pInitialData = bytes};
    VkResult r = VK_MAKE(d->vk.vkCreatePipelineCache(d->device, &info, NULL, &d->cache));
    if (r != VK_SUCCESS && bytes) { /* the driver does not want it */
        info.initialDataSize = 0;
        r = VK_MAKE(d->vk.vkCreatePipelineCache(d->device, &info, NULL, &d->cache));
    } else if (r == VK_SUCCESS && bytes) {
        d->cache_hash = h.hash;
    }
    rq_free(bytes);
    return r;
}

/* Under another name first: a reader sees the old file or the new one. */
static void write_file(const char *path, const cache_header *h, const uint8_t *bytes)
{
    char temporary[PATH_BYTES + 32];
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    FILE *f = fopen(temporary, "wbe");
    if (!f) return;
    bool good = fwrite(h, sizeof *h, 1, f) == 1 && fwrite(bytes, 1, h->bytes, f) == h->bytes;
    good = fclose(f) == 0 && good;
    if (!good || rename(temporary, path) != 0) unlink(temporary);
}

void vk_cache_save(vk_device *d)
{
    size_t n = 0;
    char path[PATH_BYTES];
    if (d->cache == VK_NULL_HANDLE || d->lost || d->n_pipelines == 0) return;
    if (VK_TRY(d->vk.vkGetPipelineCacheData(d->device, d->cache, &n, NULL)) != VK_SUCCESS) return;
    if (n == 0 || n > MAX_CACHE_BYTES) return;
    uint8_t *bytes = rq_malloc(n);
    if (!bytes) return;
    cache_header h = header_of(d);
    if (VK_TRY(d->vk.vkGetPipelineCacheData(d->device, d->cache, &n, bytes)) == VK_SUCCESS) {
        h.bytes = n;
        h.hash = XXH3_64bits(bytes, n);
        if (h.hash != d->cache_hash && path_of(d, "pipelines", path, true)) write_file(path, &h, bytes);
    }
    rq_free(bytes);
}

/* ---- the choice of kernels (measure.c) ------------------------------------------------------------------- */

bool vk_choice_load(const vk_device *d, vk_choice *choice)
{
    char path[PATH_BYTES];
    cache_header h = {0};
    vk_choice kept;
    if (!path_of(d, "products", path, false)) return false;
    uint8_t *bytes = read_file(d, path, &h);
    bool good = bytes && h.bytes == sizeof kept;
    if (good) memcpy(&kept, bytes, sizeof kept);
    rq_free(bytes);
    if (!good || kept.used != choice->used) return false;
    *choice = kept;
    return true;
}

bool vk_choice_can_be_kept(const vk_device *d)
{
    char path[PATH_BYTES];
    return path_of(d, "products", path, true);
}

void vk_choice_save(const vk_device *d, const vk_choice *choice)
{
    char path[PATH_BYTES];
    cache_header h = header_of(d);
    h.bytes = sizeof *choice;
    h.hash = XXH3_64bits(choice, sizeof *choice);
    if (path_of(d, "products", path, true)) write_file(path, &h, (const uint8_t *)choice);
}
