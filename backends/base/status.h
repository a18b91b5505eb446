/* status.h - how every fallible function of the program reports failure.
 *
 * A function that can fail returns rq_status and, unless it returns RQ_OK, fills the rq_error it was given
 * with one sentence a user can act on. Outputs are written only on success. */
#ifndef RQ_STATUS_H
#define RQ_STATUS_H

typedef enum rq_status {
    RQ_OK = 0,
    RQ_ERR_ARGUMENT,    /* the caller asked for something that makes no sense or is not offered */
    RQ_ERR_IO,          /* the operating system refused: open, read, map, bind, ... */
    RQ_ERR_FORMAT,      /* a file, template, grammar or request is malformed */
    RQ_ERR_UNSUPPORTED, /* well-formed, but not something this build or device can run */
    RQ_ERR_MEMORY,      /* an allocation failed or a budget is exhausted */
    RQ_ERR_CAPACITY,    /* a queue or context is full; try later or ask for less */
    RQ_ERR_CANCELLED,   /* the work was cancelled by its owner */
    RQ_ERR_TIMEOUT,     /* nothing happened within the time the caller gave */
    RQ_ERR_DEVICE,      /* a device failed or a mapped file vanished; the engine must be discarded */
    RQ_ERR_INTERNAL     /* a broken invariant; a bug */
} rq_status;

/* One sentence, no trailing newline. A zeroed rq_error is valid and empty. */
typedef struct rq_error {
    char text[512];
} rq_error;

/* Formats the sentence into `err` (ignored when NULL) and returns `status`, so that a failure is one line:
 *     return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s lies outside the file", path, name);
 * Control characters in the result are replaced by '?', so text from a file cannot forge terminal output.
 * UTF-8 bytes (>= 0x80) pass. Over-long text is cut with "...". */
rq_status rq_fail(rq_error *err, rq_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));
#ifdef __clang_analyzer__ /* sees no further than a file: let it know what the function returns */
#define rq_fail(err, status, ...) ((void)rq_fail(err, status, __VA_ARGS__), (status))
#endif

/* Short lower-case name of a status ("format", "memory", ...), never NULL. */
const char *rq_status_name(rq_status status);

#endif
