/* The no-op backend: whatever is asked of it is answered at once, and the moment of asking is kept. */
#ifndef BACKEND_H
#define BACKEND_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../gateway_parts/loopback.h"
#include "../gateway_parts/stub_answers.h"

#define REQUEST_BYTES 65536
#define MOST_CONNECTIONS 4096

#define TEXT(text, reason) "data: {\"id\":\"cmpl-0123456789\",\"object\":\"text_completion\",\"created\":1790000000," \
    "\"model\":\"stub\",\"choices\":[{\"index\":0,\"text\":" text ",\"logprobs\":null,\"finish_reason\":" reason "}]"
#define WORDS TEXT("\" word\"", "null") "}\n\n"
#define USAGE ",\"usage\":{\"prompt_tokens\":50,\"completion_tokens\":4,\"total_tokens\":54}"
#define STREAM WORDS WORDS WORDS WORDS TEXT("\"\"", "\"stop\"") USAGE "}\n\ndata: [DONE]\n\n"

typedef struct { int fd, leaves; size_t used; char in[REQUEST_BYTES]; } asker;

/* By descriptor; kept when closed, for the next connection with that number. */
static asker *askers[MOST_CONNECTIONS];

/* What becomes of a job's arrival and of an order to measure; both are the measurement's business. */
static void on_arrival(long job, int64_t at);
static int on_order(int fd, const char *query);

static void hang_up(asker *one)
{
    close(one->fd);
    one->fd = -1;
}

/* Everything said here is far smaller than what a socket takes at once. */
static void say(int fd, const char *text, size_t size)
{
    if (send(fd, text, size, MSG_NOSIGNAL) != (ssize_t)size && errno != EPIPE && errno != ECONNRESET) {
        perror("jobs: an answer could not be written");
        exit(1);
    }
}

static void answer(int fd, const char *status, const char *type, const char *body)
{
    static char text[REQUEST_BYTES];
    int size = snprintf(text, sizeof text,
        "HTTP/1.1 %s\r\nServer: llama.cpp\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", status, type,
        strlen(body), body);
    say(fd, text, (size_t)size);
}

/* The whole stream in one write, headers included: this backend takes no time. */
static void answer_completion(asker *one, const char *body, int64_t at)
{
    static char text[4096];
    static size_t size;
    const char *found = strstr(body, "job=");

    if (!size)
        size = (size_t)snprintf(text, sizeof text, STREAM_HEAD "%zx\r\n%s\r\n0\r\n\r\n", strlen(STREAM), STREAM);
    say(one->fd, text, size);
    if (found)
        on_arrival(strtol(found + 4, NULL, 10), at);
}

/* 1 where the answer follows later. */
static int answer_get(asker *one, const char *path)
{
    const char *type = "application/json", *body;

    if (!strncmp(path, "/measure?", 9))
        return on_order(one->fd, path + 8);
    body = page(path, 0, &type);
    answer(one->fd, body ? "200 OK" : "404 Not Found", type, body ? body : "{\"error\":{\"message\":\"no such page\"}}");
    return 0;
}

/* Take the first request of what was read, if it is whole; 0 if it is not. */
static int take_request(asker *one, int64_t at)
{
    char *end = strstr(one->in, "\r\n\r\n"), *length;
    size_t size;

    if (!end)
        return 0;
    *end = 0;
    length = strcasestr(one->in, "\r\ncontent-length:");
    size = (size_t)(end + 4 - one->in) + (length ? strtoul(length + 17, NULL, 10) : 0);
    one->leaves = strcasestr(one->in, "\r\nconnection: close") != NULL;
    *end = '\r';
    if (size > one->used)
        return 0;
    if (!strncmp(one->in, "GET ", 4))
        one->leaves &= !answer_get(one, one->in + 4);
    else
        answer_completion(one, end + 4, at);
    one->used -= size;
    memmove(one->in, one->in + size, one->used + 1);
    return 1;
}

static void on_asked(asker *one)
{
    ssize_t got = recv(one->fd, one->in + one->used, REQUEST_BYTES - 1 - one->used, 0);
    int64_t at = now_ns();

    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        hang_up(one);
        return;
    }
    one->used += (size_t)got;
    one->in[one->used] = 0;
    while (!one->leaves && take_request(one, at))
        ;
    if (one->leaves)
        hang_up(one);
}

/* The new connection, NULL where there is none. */
static asker *take_connection(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);

    if (fd < 0)
        return NULL;
    if (fd >= MOST_CONNECTIONS || (!askers[fd] && !(askers[fd] = malloc(sizeof **askers)))) {
        close(fd);
        return NULL;
    }
    askers[fd]->fd = fd;
    askers[fd]->leaves = 0;
    askers[fd]->used = 0;
    send_at_once(fd);
    return askers[fd];
}

static int listen_on(int port)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(port);

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) {
        perror("jobs: listen");
        exit(1);
    }
    return fd;
}

#endif
