/* A closed-loop HTTP/1.1 load generator: raw requests over kept connections, one thread, epoll.
 *
 *   load PORT CONNECTIONS WARM_UP_S SECONDS REQUEST_FILE
 *
 * Every connection to 127.0.0.1 sends the bytes of the file, reads the whole answer and begins again. Requests that
 * began after the warm-up count for the times; what ended (and the marks that arrived) within SECONDS counts for the
 * rates. A mark is "Qword", one generated token of the stand-in backend. Prints one JSON object; times in ms.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "loopback.h"
#include "series.h"

#define HEAD_BYTES 16384
#define MOST_CONNECTIONS 1024
#define MOST_ERRORS 200
#define DRAIN_S 2.0

enum body { BY_LENGTH, CHUNKED, UNTIL_CLOSE };
enum framing { SIZE_LINE, DATA, DATA_END, LAST_LINE };

typedef struct {
    int fd, in_body, closing;
    enum body body;
    enum framing framing;
    int status, mark_at;
    long left;
    double began, first_mark;
    size_t head_used;
    char head[HEAD_BYTES];
} connection;

static const char mark[] = "Qword";
static connection connections[MOST_CONNECTIONS];
static series totals, firsts;
static char request[65536], complaint[512];
static size_t request_bytes;
static int port, epoll_fd, active;
static long answered, completed, marks, errors;
static double counting_from, counting_to;

static double now_ms(void)
{
    return (double)now_ns() / 1e6;
}

static int counts(double at)
{
    return at >= counting_from && at <= counting_to;
}

static void open_connection(connection *conn)
{
    struct sockaddr_in address = loopback(port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};

    conn->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (conn->fd < 0 || connect(conn->fd, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    send_at_once(conn->fd);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, conn->fd, &event);
}

static void begin(connection *conn)
{
    if (conn->fd < 0)
        open_connection(conn);
    conn->in_body = conn->closing = conn->mark_at = conn->status = 0;
    conn->head_used = 0;
    conn->first_mark = 0;
    conn->began = now_ms();
    if (send(conn->fd, request, request_bytes, MSG_NOSIGNAL) != (ssize_t)request_bytes)
        conn->closing = 1; /* its end is read next */
}

static void leave(connection *conn)
{
    close(conn->fd);
    conn->fd = -1;
}

/* The end of one exchange, good or bad: note it and begin the next while time is left. */
static void end_exchange(connection *conn, int good)
{
    double now = now_ms();

    if (good && conn->status == 200) {
        answered++;
        completed += counts(now);
        if (counts(conn->began)) {
            keep(&totals, now - conn->began);
            if (conn->first_mark > 0)
                keep(&firsts, conn->first_mark - conn->began);
        }
    } else {
        errors++;
        if (!complaint[0])
            snprintf(complaint, sizeof complaint, "%.500s", conn->head_used ? conn->head : "closed unanswered");
        if (errors > MOST_ERRORS && !totals.used) {
            fprintf(stderr, "load: nothing but errors, the first: %s\n", complaint);
            exit(1);
        }
    }
    if (conn->closing || !good || conn->body == UNTIL_CLOSE)
        leave(conn);
    if (now < counting_to) {
        begin(conn);
        return;
    }
    if (conn->fd >= 0)
        leave(conn);
    active--;
}

static void find_marks(connection *conn, const char *data, long size)
{
    for (long at = 0; at < size; at++) {
        /* The first letter of the mark stands nowhere else in it. */
        conn->mark_at = data[at] == mark[conn->mark_at] ? conn->mark_at + 1 : data[at] == mark[0];
        if (mark[conn->mark_at])
            continue;
        double now = now_ms();
        conn->mark_at = 0;
        marks += counts(now);
        if (conn->first_mark <= 0)
            conn->first_mark = now;
    }
}

static int hex_digit(char digit)
{
    const char digits[] = "0123456789abcdef", *found = strchr(digits, digit | 32);
    return found && *found ? (int)(found - digits) : -1;
}

/* Take one byte between the data of a chunked body; left is -1 after the last. Extensions are not expected. */
static void take_frame(connection *conn, char byte)
{
    if (byte == '\n' && conn->framing == LAST_LINE)
        conn->left = -1;
    else if (byte == '\n')
        conn->framing = conn->framing == DATA_END ? SIZE_LINE : conn->left ? DATA : LAST_LINE;
    else if (conn->framing == SIZE_LINE && hex_digit(byte) >= 0)
        conn->left = 16 * conn->left + hex_digit(byte);
}

/* Take what belongs to the body; 1 once it is whole. */
static int take_body(connection *conn, const char *data, long size)
{
    if (conn->body != CHUNKED) {
        find_marks(conn, data, size);
        conn->left -= size;
        return conn->body == BY_LENGTH && conn->left <= 0;
    }
    while (size > 0) {
        long used = conn->framing != DATA ? 1 : size < conn->left ? size : conn->left;
        if (conn->framing != DATA) {
            take_frame(conn, *data);
        } else {
            find_marks(conn, data, used);
            conn->left -= used;
            conn->framing = conn->left ? DATA : DATA_END;
        }
        data += used;
        size -= used;
        if (conn->left < 0)
            return 1;
    }
    return 0;
}

static void read_head(connection *conn)
{
    const char *length = strcasestr(conn->head, "\r\ncontent-length:");

    conn->status = atoi(conn->head + 9);
    conn->closing = strcasestr(conn->head, "\r\nconnection: close") != NULL;
    conn->left = length ? strtol(length + 17, NULL, 10) : 0;
    conn->body = strcasestr(conn->head, "\r\ntransfer-encoding: chunked") ? CHUNKED
        : length ? BY_LENGTH : UNTIL_CLOSE;
    conn->framing = SIZE_LINE;
    conn->in_body = 1;
}

static void on_readable(connection *conn)
{
    static char data[262144];
    char *end;
    long got = conn->in_body ? recv(conn->fd, data, sizeof data, 0)
        : recv(conn->fd, conn->head + conn->head_used, HEAD_BYTES - 1 - conn->head_used, 0);

    if (got <= 0) {
        end_exchange(conn, conn->in_body && conn->body == UNTIL_CLOSE && !got);
    } else if (conn->in_body) {
        if (take_body(conn, data, got))
            end_exchange(conn, 1);
    } else {
        conn->head_used += (size_t)got;
        conn->head[conn->head_used] = 0;
        if ((end = strstr(conn->head, "\r\n\r\n"))) {
            read_head(conn);
            end += 4;
            long rest = (long)(conn->head + conn->head_used - end);
            if (take_body(conn, end, rest))
                end_exchange(conn, 1);
        }
    }
}

static void run(void)
{
    struct epoll_event events[256];
    double last = counting_to + DRAIN_S * 1e3;

    while (active > 0 && now_ms() < last) {
        int ready = epoll_wait(epoll_fd, events, 256, 100);
        for (int index = 0; index < ready; index++) {
            connection *conn = events[index].data.ptr;
            if (conn->fd >= 0)
                on_readable(conn);
        }
    }
}

static void report(double wall_s)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"answered\": %ld, \"completed\": %ld, \"marks\": %ld, \"errors\": %ld, \"unfinished\": %d", answered,
        completed, marks, errors, active);
    printf(", \"cpu_s\": %.4f, \"wall_s\": %.4f", cpu_s, wall_s);
    print_quantiles(stdout, "total_ms", &totals);
    print_quantiles(stdout, "first_ms", &firsts);
    printf("}\n");
    if (complaint[0])
        fprintf(stderr, "load: %ld errors, the first: %s\n", errors, complaint);
}

int main(int count, char **arguments)
{
    int size = count == 6 ? atoi(arguments[2]) : 0;
    FILE *file = count == 6 ? fopen(arguments[5], "rb") : NULL;

    if (size < 1 || size > MOST_CONNECTIONS || !file)
        return 2;
    request_bytes = fread(request, 1, sizeof request, file);
    fclose(file);
    port = atoi(arguments[1]);
    epoll_fd = epoll_create1(0);
    double started = now_ms();
    counting_from = started + 1e3 * atof(arguments[3]);
    counting_to = counting_from + 1e3 * atof(arguments[4]);
    for (int index = 0; index < size; index++) {
        active++;
        connections[index].fd = -1;
        begin(&connections[index]);
    }
    run();
    report((now_ms() - started) / 1e3);
    return 0;
}
