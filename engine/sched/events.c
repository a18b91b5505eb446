/* events.c - a session's bounded queue of events. Texts live in buffers that are swapped, not copied, so that a
 * stream in full flow allocates nothing. */
#include "engine/sched/internal.h"

#include <string.h>

void rq_events_init(rq_event_queue *q)
{
    memset(q, 0, sizeof *q);
    for (uint32_t i = 0; i < RQ_EVENT_SLOTS; i++) q->texts[i].max = 2 * RQ_STREAM_MAX_BYTES;
    q->current.max = 2 * RQ_STREAM_MAX_BYTES;
}

void rq_events_free(rq_event_queue *q)
{
    for (uint32_t i = 0; i < RQ_EVENT_SLOTS; i++) rq_buf_free(&q->texts[i]);
    rq_buf_free(&q->current);
}

void rq_events_clear(rq_event_queue *q)
{
    q->first = q->count = 0;
}

bool rq_events_room(const rq_event_queue *q)
{
    return q->count + 2 <= RQ_EVENT_SLOTS;
}

void rq_events_push(rq_event_queue *q, const rq_event *event, rq_buf *text)
{
    uint32_t at = (q->first + q->count++) % RQ_EVENT_SLOTS;
    q->events[at] = *event;
    rq_buf_clear(&q->texts[at]);
    if (text != NULL) {
        rq_buf swap = q->texts[at];
        q->texts[at] = *text;
        *text = swap;
    }
}

void rq_events_pop(rq_event_queue *q, rq_event *event)
{
    uint32_t at = q->first;
    *event = q->events[at];
    rq_buf swap = q->current;
    q->current = q->texts[at];
    q->texts[at] = swap;
    event->text = q->current.data != NULL ? q->current.data : "";
    event->text_bytes = q->current.len;
    q->first = (at + 1) % RQ_EVENT_SLOTS;
    q->count--;
}
