/* options.h - the flags of rqvk-serve. */
#ifndef RQ_SERVER_OPTIONS_H
#define RQ_SERVER_OPTIONS_H

#include "server/server.h"

rq_server_config rq_server_config_default(void);
void rq_server_options(rq_options *options, rq_server_config *config);

/* What single flags cannot say: flags that do not go together. Also reads the API keys into server->keys. */
rq_status rq_server_settle(rq_server *server, rq_error *err);
void rq_server_free_keys(rq_server *server);

#endif
