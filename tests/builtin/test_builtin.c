/* The built-in models as they lie in the repository: they answer, and find what they were told, at the rate at
 * which their training's own evaluation says they do (docs/builtin-models.md). */
#include "engine/rqvk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static const char *family; /* of the model in hand */
static char model_file[sizeof RQVK_MODELS + 64];

typedef struct bench {
    rq_model *model;
    rq_engine *engine;
    rq_session *session;
} bench;

static int setup(void **state)
{
    static bench b;
    memset(&b, 0, sizeof b);
    snprintf(model_file, sizeof model_file, "%s/builtin-%s.gguf", RQVK_MODELS, family);
    rq_error err = {0};
    rq_engine_params params = {.n_ctx = 1024, .n_sessions = 1, .n_threads = 1};
    if (rq_model_load(model_file, &b.model, &err) != RQ_OK ||
        rq_engine_create(b.model, &params, &b.engine, &err) != RQ_OK ||
        rq_session_create(b.engine, &b.session, &err) != RQ_OK) {
        print_error("%s\n", err.text);
        return -1;
    }
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    bench *b = *state;
    rq_session_free(b->session);
    rq_engine_free(b->engine);
    rq_model_free(b->model);
    return 0;
}

/* The greedy answer to the messages, at most 40 tokens of it; returns the tokens of the prompt. */
static size_t answer(bench *b, const rq_message *messages, size_t n, char *text, size_t room)
{
    rq_tokens ids = {0};
    rq_request request = rq_request_default();
    request.sampling.temperature = 0;
    request.max_tokens = 40;
    assert_int_equal(rq_chat_tokenize(b->model, messages, n, RQ_OPEN, &ids, NULL, NULL), RQ_OK);
    assert_int_equal(rq_submit(b->session, ids.ids, ids.n, NULL, 0, &request, NULL), RQ_OK);
    size_t used = 0, n_prompt = ids.n;
    rq_event e;
    do {
        assert_int_equal(rq_next(b->session, &e, -1, NULL), RQ_OK);
        if (used + e.text_bytes < room) {
            memcpy(text + used, e.text, e.text_bytes);
            used += e.text_bytes;
        }
    } while (e.finish == RQ_FINISH_NONE);
    text[used] = '\0';
    rq_tokens_free(&ids);
    return n_prompt;
}

static rq_message said(const char *role, const char *text)
{
    return (rq_message){.role = role, .content = text, .content_bytes = strlen(text)};
}

static void test_file(void **state)
{
    bench *b = *state;
    rq_model_info info;
    struct stat file;
    rq_model_describe(b->model, &info);
    assert_string_equal(info.architecture, family);
    assert_string_equal(info.chat_format, "chatml");
    assert_int_equal(stat(model_file, &file), 0);
    assert_true(file.st_size <= 12000000);
}

/* Every one of these is a question of its training, so the answers are known. */
static void test_short_questions(void **state)
{
    static const char *const pairs[][2] = {{"What is the capital of France?", "Paris"},
                                           {"Who are you?", "language model"},
                                           {"What comes after Monday?", "Tuesday"},
                                           {"What is the opposite of hot?", "cold"}};
    bench *b = *state;
    char text[512];
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        rq_message question = said("user", pairs[i][0]);
        answer(b, &question, 1, text, sizeof text);
        if (!strstr(text, pairs[i][1])) fail_msg("%s: %s", pairs[i][0], text);
    }
}

/* ---- recall ----------------------------------------------------------------------------------------- */

static const char *const filler[] = {
    "The road went down to the river and crossed it on a narrow bridge.",
    "Nobody had lived in the old house since the storm took its roof.",
    "In the morning the children carried water to the garden.",
    "A letter from the city had been lying on the table for three days.",
    "She looked out of the window and saw that the snow had begun to fall.",
    "The men spoke of the harvest, and of the price of corn.",
    "When the ship came into the harbour, the whole town stood on the wall.",
    "He had never been a rich man, but he gave what he could.",
    "The wind turned at noon, and the boats came home early.",
    "There was a great tree before the church, and under it a bench.",
    "It was late in the year, and the days were growing short.",
    "The king asked his servants what they had heard in the market.",
    "After supper the old woman told them of her journey to the north.",
    "The horses were tired, so they rested at the foot of the hill.",
    "No one could say who had left the gate open that night.",
    "The doctor came twice, and each time he shook his head.",
    "They walked along the shore until the light was gone.",
    "A small fire was burning, and the room smelled of smoke and apples.",
    "The teacher read aloud, and the class listened without a sound.",
    "By the spring the walls were finished, and the work on the tower began.",
};
static const char *const names[] = {"Brondel", "Kavia",  "Shelmar",  "Tromia", "Velwin", "Gorick",
                                    "Plaina",  "Drusto", "Marvetta", "Quilon", "Zennar", "Fleadon"};
static const char *const things[] = {"code", "password", "room number", "badge number"};
/* Wordings that no training text used, as in the evaluation. */
static const char *const told[] = {"The %s assigned to %s is %s. ", "Do not forget that the %s of %s is %s. ",
                                   "According to the letter, the %s of %s is %s. "};
static const char *const asked[] = {"I need the %s of %s.", "Can you tell me the %s of %s?"};

enum { N_NAMES = sizeof names / sizeof *names, N_FILLER = sizeof filler / sizeof *filler, SENTENCES = 26 };

/* Two facts among sentences, the question at the end; *value gets the five digits asked for. */
static void make_context(uint32_t number, char *text, size_t room, char value[6])
{
    uint64_t x = number * 2654435761u + 12345;
    char digits[2][6];
    size_t at[2], used = 0;
    for (int f = 0; f < 2; f++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        snprintf(digits[f], sizeof digits[f], "%u", (unsigned)(10000 + (x >> 33) % 90000));
        at[f] =
            f == 0 ? number * 5 % SENTENCES : (x >> 20) % SENTENCES; /* the first is asked for: all depths */
    }
    const char *name[2] = {names[number % N_NAMES], names[(number + 5) % N_NAMES]};
    const char *thing[2] = {things[number % 4], things[(number / 2 + 1) % 4]};
    text[0] = '\0';
    for (size_t s = 0; s < SENTENCES; s++) {
        for (size_t f = 0; f < 2; f++) {
            if (at[f] != s) continue;
            used += (size_t)snprintf(text + used, room - used, told[(number + f) % 3], thing[f], name[f],
                                     digits[f]);
        }
        used += (size_t)snprintf(text + used, room - used, "%s ", filler[(s * 7 + number * 3) % N_FILLER]);
    }
    used += (size_t)snprintf(text + used, room - used, "\n\n");
    used += (size_t)snprintf(text + used, room - used, asked[number % 2], thing[0], name[0]);
    assert_true(used < room);
    memcpy(value, digits[0], 6);
}

/* The evaluations' lower bounds at 512 tokens are 94.2 % and 93.7 % (docs/builtin-*.eval.json); a model of such a
 * rate finds fewer than 18 of 24 less than once in 1,000 sets of contexts. */
static void test_recall(void **state)
{
    enum { CONTEXTS = 24, BAR = 18 };
    bench *b = *state;
    unsigned right = 0;
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        char context[4096], value[6], text[512];
        make_context(i, context, sizeof context, value);
        rq_message question = said("user", context);
        size_t n = answer(b, &question, 1, text, sizeof text);
        assert_true(n > 350 && n < 700);
        if (strstr(text, value))
            right++;
        else
            print_message("context %u (%zu tokens): %s wanted, %s\n", (unsigned)i, n, value, text);
    }
    print_message("%u of %u found\n", right, (unsigned)CONTEXTS);
    assert_true(right >= BAR);
}

/* A fact told in a turn of its own, asked for two turns later. */
static void test_conversation(void **state)
{
    bench *b = *state;
    char first[512], second[512], third[512];
    rq_message chat[5] = {said("user", "Remember that the code of Marla is 48213.")};
    answer(b, chat, 1, first, sizeof first);
    chat[1] = said("assistant", first);
    chat[2] = said("user", "What is the capital of Italy?");
    answer(b, chat, 3, second, sizeof second);
    chat[3] = said("assistant", second);
    chat[4] = said("user", "What is the code of Marla?");
    answer(b, chat, 5, third, sizeof third);
    if (!strstr(third, "48213")) fail_msg("%s / %s / %s", first, second, third);
}

/* Two long chats by turns in one session: every turn goes on at the end of that chat's last question at least, although
 * the other chat has been read meanwhile. */
static void test_long_chats(void **state)
{
    enum { TURNS = 6, MOST = 2 * TURNS + 1 };
    static const char *const facts[2][2] = {
        {"Remember that the code of Marla is 48213.", "What is the code of Marla?"},
        {"Remember that the password of Tromia is 90576.", "What is the password of Tromia?"}};
    bench *b = *state;
    static char texts[2][MOST][512];
    rq_message chat[2][MOST];
    size_t n[2] = {0, 0}, known[2] = {0, 0};
    for (int turn = 0; turn < TURNS; turn++)
        for (int c = 0; c < 2; c++) {
            const char *question = turn == 0           ? facts[c][0]
                                   : turn + 1 == TURNS ? facts[c][1]
                                                       : filler[(7 * turn + c) % N_FILLER];
            chat[c][n[c]++] = said("user", question);
            rq_tokens ids = {0};
            size_t boundaries[MOST], used = 0;
            rq_request request = rq_request_default();
            request.sampling.temperature = 0;
            request.max_tokens = 40;
            assert_int_equal(rq_chat_tokenize(b->model, chat[c], n[c], true, &ids, boundaries, NULL), RQ_OK);
            assert_int_equal(rq_submit(b->session, ids.ids, ids.n, boundaries, n[c], &request, NULL), RQ_OK);
            char *text = texts[c][n[c]];
            rq_event e;
            do {
                assert_int_equal(rq_next(b->session, &e, -1, NULL), RQ_OK);
                if (used + e.text_bytes + 1 < sizeof texts[0][0]) {
                    memcpy(text + used, e.text, e.text_bytes);
                    used += e.text_bytes;
                }
            } while (e.finish == RQ_FINISH_NONE);
            text[used] = '\0';
            rq_tokens_free(&ids);
            /* whole pages where only those are kept of a text that another one has taken the place of */
            size_t least = strcmp(family, "qwen35") == 0 ? known[c] : known[c] / 64 * 64;
            if (e.n_reused < least)
                fail_msg("turn %d of chat %d: %u of %zu tokens reused: %s", turn, c, e.n_reused, known[c],
                         e.reuse_note);
            known[c] = boundaries[n[c] - 1];
            chat[c][n[c]++] = said("assistant", text);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_file), cmocka_unit_test(test_short_questions),
                                       cmocka_unit_test(test_recall), cmocka_unit_test(test_conversation),
                                       cmocka_unit_test(test_long_chats)};
    family = "qwen3";
    int failed = cmocka_run_group_tests(tests, setup, teardown);
    family = "qwen35";
    return failed + cmocka_run_group_tests(tests, setup, teardown);
}
