/* golden.h - the golden vectors of tests/data/quant for the tests of backends/formats. */
#ifndef RQ_TEST_GOLDEN_H
#define RQ_TEST_GOLDEN_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/formats/types.h"

typedef struct golden_file {
    uint8_t *bytes; /* heap: release with golden_free */
    size_t size;
} golden_file;

/* Every function fails the running cmocka test when a file or field is missing. */
cJSON *golden_index(void); /* release with cJSON_Delete */
golden_file golden_open(const char *name);
void golden_free(golden_file *file);

/* The bytes [off, off + len) of a file, checked to lie inside it. */
const uint8_t *golden_slice(const golden_file *file, const cJSON *object, const char *off_key,
                            const char *len_key, size_t *len);

rq_type golden_type(const cJSON *entry);
double golden_number(const cJSON *object, const char *key);
const char *golden_text(const cJSON *object, const char *key);

/* SHA-256 as 64 lower-case hexadecimal digits and NUL. */
void golden_sha256(const void *bytes, size_t size, char hex[65]);

#endif
