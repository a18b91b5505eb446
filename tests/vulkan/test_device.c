/* Choosing a Vulkan device, its abilities, its memory and the pipelines it keeps on disk. */
#include "backends/base/mem.h"
#include "backends/vulkan/vk.h"
#include "tests/vulkan/rig.h"

#include <dirent.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- choosing -------------------------------------------------------------------------------------------- */

static rq_status open_as(const char *name, const char *disable, rq_device **out, rq_error *err)
{
    return rq_backend_vulkan.open(&(rq_device_options){.name = name, .disable = disable}, out, err);
}

static void by_number_and_by_name(void **state)
{
    rq_error err = {0};
    rq_device *device = NULL;
    rq_device_info first, again;
    assert_int_equal(open_as("0", NULL, &device, &err), RQ_OK);
    rq_backend_vulkan.describe(device, &first);
    rq_backend_vulkan.close(device);
    char part[8] = "";
    for (int i = 0; i < 5; i++)
        part[i] = (char)(first.name[i] >= 'a' && first.name[i] <= 'z' ? first.name[i] - 32 : first.name[i]);
    assert_int_equal(open_as(part, NULL, &device, &err), RQ_OK);
    rq_backend_vulkan.describe(device, &again);
    rq_backend_vulkan.close(device);
    assert_string_equal(first.name, again.name);
    assert_non_null(strstr(first.features, "subgroups of "));
    assert_non_null(strstr(first.features, "driver "));
    assert_true(first.memory_bytes > 0);
    static const char *const wrong[] = {"nosuch", "7777", "", "99999999999999999999999"};
    for (int i = 0; i < 4; i++) {
        device = NULL;
        assert_int_equal(open_as(wrong[i], NULL, &device, &err), RQ_ERR_ARGUMENT);
        assert_null(device);
        assert_non_null(strstr(err.text, first.name)); /* what there is */
    }
}

static void abilities_by_name(void **state)
{
    rq_error err = {0};
    uint32_t mask = 77;
    assert_int_equal(rq_vk_disable_read(NULL, &mask, &err), RQ_OK);
    assert_int_equal(mask, 0);
    assert_int_equal(rq_vk_disable_read("float16,coopmat", &mask, &err), RQ_OK);
    assert_int_equal(mask, 1u << RQ_VK_FLOAT16 | 1u << RQ_VK_COOPMAT);
    for (uint32_t k = 0; k < RQ_VK_ABILITIES; k++) {
        assert_int_equal(rq_vk_disable_read(rq_vk_ability_name((rq_vk_ability_kind)k), &mask, &err), RQ_OK);
        assert_int_equal(mask, 1u << k);
    }
    assert_int_equal(rq_vk_disable_read("float", &mask, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_vk_disable_read("float16,,x", &mask, &err), RQ_ERR_ARGUMENT);
    rq_device *device = NULL;
    assert_int_equal(open_as(NULL, "nonsense", &device, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "nonsense"));
    for (uint32_t k = 0; k < RQ_VK_ABILITIES; k++) {
        const char *name = rq_vk_ability_name((rq_vk_ability_kind)k);
        if (open_as(NULL, name, &device, &err) != RQ_OK) fail_msg("without %s: %s", name, err.text);
        const rq_vk_features *f = rq_vulkan_features(device);
        assert_false(rq_vk_uses(f, (rq_vk_ability_kind)k));
        assert_int_equal(f->used & ~f->present, 0);
        rq_backend_vulkan.close(device);
    }
}

static void a_text_of_abilities(void **state)
{
    char text[128], small[24];
    rq_vk_features f = {.subgroup_size = 32,
                        .present = 1u << RQ_VK_FLOAT16 | 1u << RQ_VK_INT_DOT | 1u << RQ_VK_COOPMAT,
                        .used = 1u << RQ_VK_INT_DOT};
    rq_vk_features_text(&f, text, sizeof text);
    assert_string_equal(text, "subgroups of 32, integer-dot; not used: float16, coopmat");
    rq_vk_features_text(&f, small, sizeof small);
    assert_string_equal(small, "subgroups of 32, intege");
}

static void the_largest_shape(void **state)
{
    rq_vk_features f = {.n_shapes = 4,
                        .shapes = {{8, 8, 16, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F32,
                                    RQ_VK_COMPONENT_F32, false},
                                   {16, 16, 16, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F32,
                                    RQ_VK_COMPONENT_F32, false},
                                   {16, 16, 32, RQ_VK_COMPONENT_S8, RQ_VK_COMPONENT_S8, RQ_VK_COMPONENT_S32,
                                    RQ_VK_COMPONENT_S32, true},
                                   {16, 16, 16, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F16,
                                    RQ_VK_COMPONENT_F16, false}}};
    assert_ptr_equal(rq_vk_shape_of(&f, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F32), &f.shapes[1]);
    assert_ptr_equal(rq_vk_shape_of(&f, RQ_VK_COMPONENT_F16, RQ_VK_COMPONENT_F16), &f.shapes[3]);
    assert_null(rq_vk_shape_of(&f, RQ_VK_COMPONENT_S8, RQ_VK_COMPONENT_S32)); /* saturates */
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

enum {
    LOCAL = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
    SEEN = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT,
    COHERENT = VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
    CACHED = VK_MEMORY_PROPERTY_HOST_CACHED_BIT
};

/* Lists of types as drivers have them, and what is to be taken. */
static void memory_for_kernels_is_not_seen_by_the_processor(void **state)
{
    const struct {
        uint32_t n, flags[5], device, host;
    } cards[] = {
        {4,
         {LOCAL, LOCAL | SEEN | COHERENT, SEEN | COHERENT, SEEN | COHERENT | CACHED},
         0,
         3}, /* AMD, whole BAR */
        {4,
         {SEEN | COHERENT, LOCAL, LOCAL | SEEN | COHERENT, SEEN | COHERENT | CACHED},
         1,
         3},                                                                    /* another order */
        {2, {LOCAL | SEEN | COHERENT, LOCAL | SEEN | COHERENT | CACHED}, 0, 0}, /* shared memory */
        {5,
         {0, LOCAL, SEEN | COHERENT, SEEN | COHERENT | CACHED, LOCAL | SEEN | COHERENT},
         1,
         3},                                           /* NVIDIA */
        {1, {LOCAL | SEEN | COHERENT | CACHED}, 0, 0}, /* a processor */
    };
    for (uint32_t i = 0; i < sizeof cards / sizeof *cards; i++) {
        VkPhysicalDeviceMemoryProperties p = {.memoryTypeCount = cards[i].n};
        for (uint32_t t = 0; t < cards[i].n; t++) p.memoryTypes[t].propertyFlags = cards[i].flags[t];
        assert_int_equal(vk_memory_type(&p, UINT32_MAX, false), cards[i].device);
        assert_int_equal(vk_memory_type(&p, UINT32_MAX, true), cards[i].host);
        assert_int_equal(vk_memory_type(&p, 0, false), UINT32_MAX);
    }
}

static void bytes_are_counted(void **state)
{
    rq_error err = {0};
    rq_device *device = NULL;
    assert_int_equal(open_as(NULL, NULL, &device, &err), RQ_OK);
    uint64_t before = ((vk_device *)device)->taken_bytes;
    rq_memory *m[3] = {0};
    uint64_t sum = 0;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rq_backend_vulkan.alloc(device, 1000003ull * (uint64_t)(i + 1), "test", &m[i], &err),
                         RQ_OK);
        assert_null(m[i]->host);
        assert_true(((vk_memory *)m[i])->taken_bytes >= m[i]->bytes);
        sum += ((vk_memory *)m[i])->taken_bytes;
    }
    assert_int_equal(((vk_device *)device)->taken_bytes - before, sum);
    for (int i = 0; i < 3; i++) rq_backend_vulkan.release(m[i]);
    assert_int_equal(((vk_device *)device)->taken_bytes, before);
    rq_memory *none = NULL;
    assert_int_equal(rq_backend_vulkan.alloc(device, 1ull << 50, "a very large model", &none, &err),
                     RQ_ERR_MEMORY);
    assert_null(none);
    assert_non_null(strstr(err.text, "a very large model"));
    assert_int_equal(((vk_device *)device)->taken_bytes, before);
    rq_backend_vulkan.close(device);
}

/* Larger than the staging buffer, at odd places. */
static void bytes_go_there_and_back(void **state)
{
    rq_error err = {0};
    rq_device *device = NULL;
    rq_memory *m = NULL;
    assert_int_equal(open_as(NULL, NULL, &device, &err), RQ_OK);
    size_t n = (size_t)(2 * VK_STAGING_BYTES + 12348);
    uint8_t *a = malloc(n), *b = malloc(n);
    for (size_t i = 0; i < n; i++) a[i] = (uint8_t)(i * 2654435761u >> 13);
    assert_int_equal(rq_backend_vulkan.alloc(device, n + 64, "test", &m, &err), RQ_OK);
    assert_int_equal(rq_backend_vulkan.upload(m, 20, a, n, &err), RQ_OK);
    assert_int_equal(rq_backend_vulkan.download(m, 20, b, n, &err), RQ_OK);
    assert_memory_equal(a, b, n);
    assert_int_equal(rq_backend_vulkan.download(m, 0, b, 20, &err), RQ_OK); /* fresh memory is zero */
    for (int i = 0; i < 20; i++) assert_int_equal(b[i], 0);
    assert_int_equal(rq_backend_vulkan.upload(m, 65, a, n, &err), RQ_ERR_ARGUMENT);
    rq_backend_vulkan.release(m);
    rq_backend_vulkan.close(device);
    free(a), free(b);
}

/* ---- pipelines on disk ----------------------------------------------------------------------------------- */

static char folder[180], kept[400];

/* Makes one pipeline and closes; true when there was a file that was taken. */
static bool live(void)
{
    rq_error err = {0};
    rq_device *device = NULL;
    assert_int_equal(open_as(NULL, NULL, &device, &err), RQ_OK);
    vk_device *d = (vk_device *)device;
    bool taken = d->cache_hash != 0;
    VkPipeline pipeline;
    assert_int_equal(vk_pipeline_get(d, VK_SELECT, (uint32_t[VK_CONSTANTS]){0}, &pipeline, &err), RQ_OK);
    assert_int_equal(rq_vulkan_pipelines(device), 1);
    rq_backend_vulkan.close(device);
    return taken;
}

static uint32_t files_in(const char *path)
{
    uint32_t n = 0;
    DIR *dir = opendir(path);
    if (!dir) return 0;
    for (struct dirent *e; (e = readdir(dir));)
        if (e->d_name[0] != '.') {
            n++;
            snprintf(kept, sizeof kept, "%s/%.80s", path, e->d_name);
        }
    closedir(dir);
    return n;
}

/* The byte at `at` (from the end where negative) becomes another one. */
static void damage(long at)
{
    FILE *f = fopen(kept, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    int c = fgetc(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    fputc(c ^ 0x55, f);
    fclose(f);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static void pipelines_are_kept(void **state)
{
    char *old = getenv("XDG_CACHE_HOME") ? strdup(getenv("XDG_CACHE_HOME")) : NULL;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/rqvk-vulkan-XXXXXX", base != NULL ? base : "/tmp");
    assert_non_null(mkdtemp(folder));
    assert_int_equal(setenv("XDG_CACHE_HOME", folder, 1), 0);
    char inside[200];
    snprintf(inside, sizeof inside, "%s/rqvk", folder);
    assert_false(live());
    assert_int_equal(files_in(inside), 1);
    assert_true(live());
    static const long places[] = {0,  8,  12, 20,
                                  30, 44, 60, -1}; /* magic, format, vendor, ..., the driver's bytes */
    for (int i = 0; i < 8; i++) {
        damage(places[i]);
        assert_false(live()); /* not taken, and replaced */
        assert_true(live());
    }
    struct stat st;
    assert_int_equal(stat(kept, &st), 0);
    for (long cut = 0; cut < 3; cut++) {
        assert_int_equal(truncate(kept, cut == 0 ? 0 : cut == 1 ? 40 : st.st_size - 1), 0);
        assert_false(live());
    }
    assert_true(live());
    assert_int_equal(unlink(kept), 0);
    assert_int_equal(mkdir(kept, 0700), 0); /* a folder of that name: neither read nor written */
    assert_false(live());
    assert_false(live());
    assert_int_equal(files_in(inside), 1);
    assert_int_equal(rmdir(kept), 0);
    assert_int_equal(rmdir(inside), 0);
    FILE *f = fopen(inside, "w"); /* a file where the folder shall be */
    assert_non_null(f);
    fclose(f);
    assert_false(live());
    assert_int_equal(unlink(inside), 0);
    /* drivers and layers keep files of their own there */
    assert_int_equal(nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
    assert_int_equal(unsetenv("XDG_CACHE_HOME"), 0);
    if (old) setenv("XDG_CACHE_HOME", old, 1);
    free(old);
}

static void nobody_complained(void **state)
{
    assert_int_equal(rq_vulkan_messages(NULL), 0);
    assert_int_equal(rq_vulkan_objects_alive(), 0);
    assert_int_equal(rq_mem_alive(), 0);
}

int main(void)
{
    int absent = vulkan_absent();
    if (absent) return absent;
    const struct CMUnitTest tests[] = {cmocka_unit_test(by_number_and_by_name),
                                       cmocka_unit_test(abilities_by_name),
                                       cmocka_unit_test(a_text_of_abilities),
                                       cmocka_unit_test(the_largest_shape),
                                       cmocka_unit_test(memory_for_kernels_is_not_seen_by_the_processor),
                                       cmocka_unit_test(bytes_are_counted),
                                       cmocka_unit_test(bytes_go_there_and_back),
                                       cmocka_unit_test(pipelines_are_kept),
                                       cmocka_unit_test(nobody_complained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
