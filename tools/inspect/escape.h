/* escape.h - prints text from a file that nobody vouches for. */
#ifndef RQ_INSPECT_ESCAPE_H
#define RQ_INSPECT_ESCAPE_H

#include <stdint.h>
#include <stdio.h>

/* Prints at most `limit` characters of data[0..len), then "..." if there was more. Characters that could
 * steer a terminal or reorder a line (controls, format and direction marks, separators) and the backslash are
 * escaped: \n, \t, \\, \u{202e}; bytes that are not UTF-8 as \xNN. */
void inspect_print_text(FILE *out, const char *data, uint64_t len, uint64_t limit);

/* The same as the inside of a JSON string: always valid JSON in plain UTF-8; bytes that are not UTF-8 become
 * U+FFFD. Quotes are not included. */
void inspect_print_json(FILE *out, const char *data, uint64_t len);

#endif
