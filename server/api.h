/* api.h - what answers at each address; the table is in routes.c. */
#ifndef RQ_API_H
#define RQ_API_H

#include "server/http.h"

rq_handler rq_api_chat, rq_api_completions;                            /* generate.c */
rq_handler rq_api_health, rq_api_models, rq_api_model, rq_api_metrics; /* api_info.c */
rq_handler rq_api_page;                                                /* page.c */
rq_handler rq_api_tokenize, rq_api_detokenize, rq_api_template;        /* api_text.c */

/* Parses the body for `api`; false: the error has been answered and *result is to be returned. The body
 * is freed either way. */
bool rq_parse_body(rq_exchange *exchange, rq_api api, rq_api_request *out, enum MHD_Result *result);

#endif
