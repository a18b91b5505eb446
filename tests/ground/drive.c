#include "tests/ground/drive.h"

#include "backends/base/mem.h"

#include <string.h>

enum { DRIVE_MAX_PAGES = 64 };

bool driver_open(driver *d, rq_executor *ex, const rq_executor_params *params)
{
    uint32_t n_seqs = params->caps.n_seqs, max_pages = params->caps.max_pages, n = n_seqs * max_pages;
    *d = (driver){.ex = ex,
                  .n_groups = params->caps.n_groups,
                  .n_vocab = params->n_vocab,
                  .max_pages = max_pages,
                  .n_seqs = n_seqs,
                  .groups = params->groups};
    for (uint32_t g = 0; g < d->n_groups; g++) {
        d->n_pages[g] = params->group_pages[g];
        d->n_scratch[g] = params->group_scratch_pages ? params->group_scratch_pages[g] : 0;
    }
    d->pages = rq_calloc((size_t)n * d->n_groups + 1, sizeof *d->pages);
    d->lengths = rq_calloc(n_seqs, sizeof *d->lengths);
    uint32_t step = n > 1 ? n - 1 : 1; /* coprime to n */
    for (uint32_t i = 0; d->pages && i < n * d->n_groups; i++)
        d->pages[i] = (uint32_t)((uint64_t)(i % n) * step % n);
    if (d->pages && d->lengths && max_pages <= DRIVE_MAX_PAGES) return true;
    driver_close(d);
    return false;
}

void driver_close(driver *d)
{
    rq_free(d->pages);
    rq_free(d->lengths);
    memset(d, 0, sizeof *d);
}

int32_t drive_token(uint32_t seq, uint32_t k, uint32_t n_vocab)
{
    return (int32_t)((k * 7919u + seq * 104729u + k * k * 31u) % n_vocab);
}

/* What the piece [start, start + count) of a sequence means for the pages of a group with a coded form: `table`
 * becomes the exact pages of the step; edits and encodes are appended. *scratch counts scratch pages in use. */
static bool fill_coded(driver *d, rq_step *step, uint32_t g, uint32_t seq, uint32_t start, uint32_t count,
                       bool wide, uint32_t *table, uint32_t *scratch)
{
    const rq_cache_group *group = &d->groups[g];
    const uint32_t *pages = d->pages + (g * d->n_seqs + seq) * d->max_pages;
    uint32_t last = start + count - 1, end = last / RQ_PAGE_TOKENS + 1;
    bool ok = true;
    for (uint32_t i = 0; i < end; i++) {
        bool wanted = rq_kv_reads_exact(group, start, i), kept = rq_kv_reads_exact(group, last, i);
        bool begins = i * RQ_PAGE_TOKENS >= start;
        table[i] = wanted ? pages[i] : RQ_NO_PAGE;
        if (wide && begins && !kept && *scratch < d->n_scratch[g]) table[i] = d->n_pages[g] + (*scratch)++;
        ok = ok && rq_step_add_edit(step, g, RQ_PAGE_EXACT, seq, i, table[i]);
        uint32_t full = (i + 1) * RQ_PAGE_TOKENS; /* when that many tokens are there */
        if (full <= start || full > start + count) continue;
        ok = ok && rq_step_add_encode(step, g, table[i], pages[i]) &&
             rq_step_add_edit(step, g, RQ_PAGE_CODED, seq, i, pages[i]);
    }
    return ok;
}

rq_step *driver_fill(driver *d, const drive_piece *pieces, uint32_t n, bool rows)
{
    rq_step *step = rq_executor_begin(d->ex, NULL);
    if (!step) return NULL;
    uint32_t total = 0, scratch[RQ_MAX_GROUPS] = {0};
    for (uint32_t i = 0; i < n; i++) total += pieces[i].count;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t tables[RQ_MAX_GROUPS][DRIVE_MAX_PAGES];
        uint32_t seq = pieces[i].seq, start = d->lengths[seq];
        int32_t ids[RQ_MAX_BUCKET];
        const uint32_t *table[RQ_MAX_GROUPS];
        for (uint32_t g = 0; g < d->n_groups; g++) table[g] = d->pages + (g * d->n_seqs + seq) * d->max_pages;
        for (uint32_t g = 0; g < d->n_groups; g++) {
            if (!rq_group_is_coded(&d->groups[g])) continue;
            if (!fill_coded(d, step, g, seq, start, pieces[i].count, total > RQ_NARROW_BUCKET, tables[g],
                            &scratch[g]))
                return NULL;
            table[g] = tables[g];
        }
        for (uint32_t k = 0; k < pieces[i].count; k++) {
            ids[k] = drive_token(seq, start + k, d->n_vocab);
            uint32_t p = start + k;
            for (uint32_t g = 0; g < d->n_groups && (p % RQ_PAGE_TOKENS == 0); g++)
                if (!rq_group_is_coded(&d->groups[g]) &&
                    !rq_step_add_edit(step, g, RQ_PAGE_EXACT, seq, p / RQ_PAGE_TOKENS,
                                      table[g][p / RQ_PAGE_TOKENS]))
                    return NULL;
        }
        int32_t first = rq_step_add_run(step, seq, ids, pieces[i].count, start, table);
        if (first < 0) return NULL;
        for (uint32_t k = 0; rows && k < pieces[i].count; k++)
            rq_step_add_row(step, (uint32_t)first + k, seq);
        d->lengths[seq] += pieces[i].count;
    }
    return step;
}

rq_status driver_run(driver *d, const drive_piece *pieces, uint32_t n, float *out, rq_error *err)
{
    rq_step *step = driver_fill(d, pieces, n, true);
    if (!step) return rq_fail(err, RQ_ERR_CAPACITY, "the pieces do not fit into a step");
    uint32_t total = step->header->n_tokens, done = step->header->n_rows;
    rq_status status = rq_executor_submit(d->ex, step, err);
    const float *logits = NULL;
    if (status == RQ_OK) status = rq_executor_wait(d->ex, step, &logits, err);
    if (status != RQ_OK) return status;
    memcpy(out, logits, (size_t)done * d->n_vocab * sizeof *out);
    while (done < total) {
        rq_row rows[RQ_HEAD_ROWS];
        uint32_t k = total - done < RQ_HEAD_ROWS ? total - done : RQ_HEAD_ROWS;
        for (uint32_t i = 0; i < k; i++) rows[i] = (rq_row){.token = done + i};
        status = rq_executor_head(d->ex, step, rows, k, &logits, err);
        if (status != RQ_OK) return status;
        memcpy(out + (size_t)done * d->n_vocab, logits, (size_t)k * d->n_vocab * sizeof *out);
        done += k;
    }
    return RQ_OK;
}
