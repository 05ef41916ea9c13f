/* A stand-in for a llama.cpp (or vLLM) server that is far faster than any proxy in front of it.
 *
 *   stub PORT        listens on 127.0.0.1, one thread, epoll; prints "ready" when it does
 *
 * GET /health, /v1/models, /props, /slots and /metrics answer what a monitor reads. POST of a completion answers
 * a JSON object, or server-sent events where the body says "stream":true. How many chunks, and the microseconds
 * before each, stand in the prompt as chunks=N and pace_us=N: there every proxy leaves them alone. With pace_us=0
 * the whole stream leaves in one write.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "loopback.h"
#include "stub_answers.h"

#define IN_BYTES 65536
#define OUT_BYTES 1048576
#define MOST_CONNECTIONS 4096

typedef struct {
    int fd, open, last_request, streaming, choked;
    size_t in_used, out_used;
    long chunks_left;
    int64_t pace_ns, due_ns;
    char in[IN_BYTES], out[OUT_BYTES];
} connection;

/* By descriptor; kept when closed, for the next connection with that number. */
static connection *connections[MOST_CONNECTIONS];
static int epoll_fd, timer_fd, streams, stream_began;

static void watch(int operation, int fd, void *what, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    epoll_ctl(epoll_fd, operation, fd, &event);
}

static void drop(connection *conn)
{
    streams -= conn->streaming;
    conn->open = conn->streaming = 0;
    close(conn->fd);
}

static void append(connection *conn, const char *text, size_t size)
{
    if (conn->out_used + size > OUT_BYTES) {
        fprintf(stderr, "stub: a client does not read\n");
        exit(1);
    }
    memcpy(conn->out + conn->out_used, text, size);
    conn->out_used += size;
}

static void append_event(connection *conn, const char *text)
{
    char frame[32];
    size_t size = strlen(text);
    append(conn, frame, (size_t)sprintf(frame, "%zx\r\n", size));
    append(conn, text, size);
    append(conn, "\r\n", 2);
}

/* Write what is there. */
static void flush(connection *conn)
{
    size_t done = 0;
    while (done < conn->out_used) {
        ssize_t sent = send(conn->fd, conn->out + done, conn->out_used - done, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0) {
            drop(conn);
            return;
        }
        done += (size_t)sent;
    }
    conn->out_used -= done;
    if (conn->out_used) {
        memmove(conn->out, conn->out + done, conn->out_used);
        watch(EPOLL_CTL_MOD, conn->fd, conn, EPOLLIN | EPOLLOUT);
    } else if (conn->choked) {
        watch(EPOLL_CTL_MOD, conn->fd, conn, EPOLLIN);
    }
    conn->choked = conn->out_used > 0;
    if (!conn->choked && !conn->streaming && conn->last_request)
        drop(conn);
}

static void answer(connection *conn, const char *status, const char *type, const char *body)
{
    char head[256];
    int size = snprintf(head, sizeof head,
        "HTTP/1.1 %s\r\nServer: llama.cpp\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status, type,
        strlen(body));
    append(conn, head, (size_t)size);
    append(conn, body, strlen(body));
}

static void answer_get(connection *conn, const char *path)
{
    const char *type = "application/json", *body = page(path, streams, &type);
    answer(conn, body ? "200 OK" : "404 Not Found", type, body ? body : "{\"error\":{\"message\":\"no such page\"}}");
}

static long asked(const char *body, const char *name, long otherwise)
{
    const char *found = strstr(body, name);
    return found ? strtol(found + strlen(name), NULL, 10) : otherwise;
}

static void end_stream(connection *conn)
{
    append_event(conn, LAST);
    append(conn, "0\r\n\r\n", 5);
    streams -= conn->streaming;
    conn->streaming = 0;
}

/* Headers leave with the first chunk, as llama.cpp's do. */
static void answer_post(connection *conn, const char *body)
{
    if (!strstr(body, "\"stream\":true") && !strstr(body, "\"stream\": true")) {
        answer(conn, "200 OK", "application/json; charset=utf-8", ANSWER);
        return;
    }
    conn->chunks_left = asked(body, "chunks=", 4);
    conn->pace_ns = asked(body, "pace_us=", 0) * 1000;
    append(conn, STREAM_HEAD, strlen(STREAM_HEAD));
    append_event(conn, FIRST);
    if (conn->pace_ns) {
        conn->due_ns = now_ns() + conn->pace_ns;
        conn->streaming = 1;
        stream_began = 1;
        streams++;
        return;
    }
    for (; conn->chunks_left > 0; conn->chunks_left--)
        append_event(conn, WORD);
    end_stream(conn);
}

/* A router may try HTTP/2 to find out whether a worker speaks gRPC. */
static void refuse(connection *conn)
{
    answer(conn, "400 Bad Request", "text/plain", "GET and POST over HTTP/1.1 only");
    conn->last_request = 1;
}

/* Take the first request of what was read, if it is whole; 0 if it is not. */
static int take_request(connection *conn)
{
    char *end = strstr(conn->in, "\r\n\r\n"), *length;
    size_t size;

    if (!end)
        return 0;
    *end = 0;
    length = strcasestr(conn->in, "\r\ncontent-length:");
    size = (size_t)(end + 4 - conn->in) + (length ? strtoul(length + 17, NULL, 10) : 0);
    if (strcasestr(conn->in, "\r\nconnection: close"))
        conn->last_request = 1;
    *end = '\r';
    if (size > conn->in_used)
        return 0;
    if (!strncmp(conn->in, "POST ", 5))
        answer_post(conn, end + 4);
    else if (!strncmp(conn->in, "GET ", 4))
        answer_get(conn, conn->in + 4);
    else
        refuse(conn);
    conn->in_used -= size;
    memmove(conn->in, conn->in + size, conn->in_used + 1);
    return 1;
}

static void on_readable(connection *conn)
{
    ssize_t got = recv(conn->fd, conn->in + conn->in_used, IN_BYTES - 1 - conn->in_used, 0);

    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        drop(conn);
        return;
    }
    conn->in_used += (size_t)got;
    conn->in[conn->in_used] = 0;
    while (!conn->streaming && !conn->last_request && take_request(conn))
        ;
    if (!conn->streaming && conn->out_used)
        flush(conn);
}

/* One chunk on every stream whose time has come; then sleep until the next one's. */
static void on_timer(void)
{
    int64_t now = now_ns(), next = 0;

    for (int fd = 0; fd < MOST_CONNECTIONS; fd++) {
        connection *conn = connections[fd];
        if (!conn || !conn->streaming)
            continue;
        if (conn->due_ns <= now) {
            append_event(conn, WORD);
            conn->due_ns += conn->pace_ns;
            if (--conn->chunks_left <= 0)
                end_stream(conn);
            flush(conn);
        }
        if (conn->streaming && (!next || conn->due_ns < next))
            next = conn->due_ns;
    }
    struct itimerspec at = {.it_value = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void on_connection(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);

    if (fd < 0)
        return;
    if (fd >= MOST_CONNECTIONS || (!connections[fd] && !(connections[fd] = malloc(sizeof **connections)))) {
        close(fd);
        return;
    }
    connection *conn = connections[fd];
    memset(conn, 0, offsetof(connection, in));
    conn->fd = fd;
    conn->open = 1;
    send_at_once(fd);
    watch(EPOLL_CTL_ADD, conn->fd, conn, EPOLLIN);
}

static int listen_on(int port)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(port);

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) {
        perror("stub: listen");
        exit(1);
    }
    return fd;
}

static void on_connection_event(connection *conn, unsigned events)
{
    if (conn->open && events & EPOLLOUT)
        flush(conn);
    if (conn->open && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        on_readable(conn);
}

/* What becomes of one event; the listener and the timer are told apart by their descriptors' addresses. */
static void on_event(int *listener, struct epoll_event *event)
{
    if (event->data.ptr == listener) {
        on_connection(*listener);
    } else if (event->data.ptr == &timer_fd) {
        uint64_t fired;
        if (read(timer_fd, &fired, sizeof fired) > 0)
            on_timer();
    } else {
        on_connection_event(event->data.ptr, event->events);
    }
}

int main(int count, char **arguments)
{
    struct epoll_event events[256];
    int listener;

    if (count != 2)
        return 2;
    listener = listen_on(atoi(arguments[1]));
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(EPOLL_CTL_ADD, listener, &listener, EPOLLIN);
    watch(EPOLL_CTL_ADD, timer_fd, &timer_fd, EPOLLIN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        stream_began = 0;
        for (int index = 0; index < ready; index++)
            on_event(&listener, &events[index]);
        if (stream_began)
            on_timer();
    }
}
