/* page.c - GET /: one small page to try the model with; it loads nothing from elsewhere. */
#include "server/api.h"

static const char page[] = {
#include "server/page.inc" /* made from page.html at build time */
};

enum MHD_Result rq_api_page(rq_exchange *exchange)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(sizeof page, (void *)page, MHD_RESPMEM_PERSISTENT);
    if (!response) return MHD_NO;
    rq_add_headers(exchange, response, "text/html; charset=utf-8");
    MHD_add_response_header(
        response, "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
    exchange->status = MHD_HTTP_OK;
    enum MHD_Result result = MHD_queue_response(exchange->connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return result;
}
