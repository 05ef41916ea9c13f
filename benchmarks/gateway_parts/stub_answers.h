/* What the stand-in backend says: the texts of its answers. "Qword" marks every generated token. */
#ifndef STUB_ANSWERS_H
#define STUB_ANSWERS_H

#include <stdio.h>
#include <string.h>

#define SLOTS 256

/* Sizes as in the design notes: a JSON answer of about 280 B, chunks of about 190 B. */
#define ANSWER "{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion\",\"created\":1790000000," \
    "\"model\":\"stub\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\"," \
    "\"content\":\" Qword Qword Qword Qword\"},\"finish_reason\":\"stop\"}]," \
    "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":4,\"total_tokens\":16}}"
#define CHUNK(delta, reason) "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\"," \
    "\"created\":1790000000,\"model\":\"stub\",\"choices\":[{\"index\":0,\"delta\":" delta \
    ",\"finish_reason\":" reason "}]}\n\n"
#define FIRST CHUNK("{\"role\":\"assistant\",\"content\":null}", "null")
#define WORD CHUNK("{\"content\":\" Qword\"}", "null")
#define LAST CHUNK("{}", "\"stop\"") "data: [DONE]\n\n"
#define STREAM_HEAD "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n" \
    "Transfer-Encoding: chunked\r\n\r\n"
#define METRICS "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing %d\n" \
    "# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 0\n" \
    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"stub\"} %d\n" \
    "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"stub\"} 0\n"
#define PROPS "{\"default_generation_settings\":{\"n_ctx\":8192},\"total_slots\":256," \
    "\"model_alias\":\"stub\",\"model_path\":\"stub.gguf\",\"build_info\":\"stub\",\"is_sleeping\":false}"
#define MODELS "{\"object\":\"list\",\"data\":[{\"id\":\"stub\",\"object\":\"model\"," \
    "\"owned_by\":\"llamacpp\",\"max_model_len\":8192}]}"

static const char *slots_page(void)
{
    static char body[SLOTS * 64];
    char *end = body;
    for (int slot = 0; slot < SLOTS; slot++)
        end += sprintf(end, "%c{\"id\":%d,\"n_ctx\":8192,\"is_processing\":false}", slot ? ',' : '[', slot);
    strcpy(end, "]");
    return body;
}

/* What a monitor reads at a path (up to its blank); NULL where nothing is. Sets the type where it is not JSON. */
static const char *page(const char *path, int running, const char **type)
{
    static char metrics[1024];
    if (!strncmp(path, "/health ", 8))
        return "{\"status\":\"ok\"}";
    if (!strncmp(path, "/v1/models ", 11))
        return MODELS;
    if (!strncmp(path, "/props ", 7))
        return PROPS;
    if (!strncmp(path, "/slots ", 7))
        return slots_page();
    if (strncmp(path, "/metrics ", 9))
        return NULL;
    snprintf(metrics, sizeof metrics, METRICS, running, running);
    *type = "text/plain; version=0.0.4";
    return metrics;
}

#endif
