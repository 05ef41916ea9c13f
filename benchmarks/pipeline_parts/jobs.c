/* The clients of POST /v1/jobs and the backend of all jobs in one process, so that one clock stamps both ends.
 *
 *   jobs PORT        listens on 127.0.0.1, one thread, epoll; prints "ready" when it does
 *
 * As a backend it answers what a monitor reads of a llama.cpp and streams every completion at once. The order
 *
 *   GET /measure?door=PORT&in_flight=N&ms=T&rest_ms=R&drain_ms=D
 *
 * posts jobs to that door for T ms, N in flight: a job is in flight from its POST until the door has answered 202
 * and the backend has been asked for it and has answered; R ms later the next takes its place. At most D ms after
 * the end the answer comes, one JSON object, times in ms, moments in ns of CLOCK_MONOTONIC. A job is known again by
 * its number in the prompt.
 */
#define _GNU_SOURCE
#include <sys/epoll.h>

#include "../gateway_parts/series.h"
#include "backend.h"

#define ANSWER_BYTES 32768
#define MOST_IN_FLIGHT 1024
#define MOST_ERRORS 100
#define AGAIN_NS 50000000LL
#define BODY "{\"model\":\"stub\",\"prompt\":\"job=%012ld Say in one short sentence what a load balancer for local " \
    "language models has to know about the memory and the heat of a graphics card before it sends a request there, " \
    "and why it is right to wait.\",\"max_tokens\":4}"

/* One client: posts a job, and when that is out of flight the next one. */
typedef struct {
    int fd, posted, accepted, arrived;
    long job;
    int64_t began, due;
    size_t used;
    char in[ANSWER_BYTES];
} client;

static client clients[MOST_IN_FLIGHT];
static series ways, answers;
static int epoll_fd, door, in_flight, order_fd = -1;
static long serial, posted, accepted, arrived, repeated, errors;
static int64_t rest_ns, ends, gives_up, first_post, last_arrival;
static char complaint[512];

static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl");
}

static void leave(client *one)
{
    if (one->fd >= 0)
        close(one->fd);
    one->fd = -1;
}

static void complain(client *one, const char *what)
{
    errors++;
    if (!complaint[0])
        for (size_t at = 0; what[at] && at < sizeof complaint - 1; at++)
            complaint[at] = what[at] < ' ' || what[at] == '"' || what[at] == '\\' ? ' ' : what[at];
    leave(one);
    one->posted = 0;
    one->due = now_ns() + AGAIN_NS;
}

static int connected(client *one)
{
    struct sockaddr_in address = loopback(door);

    if (one->fd >= 0)
        return 1;
    one->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (one->fd < 0 || connect(one->fd, (struct sockaddr *)&address, sizeof address))
        return 0;
    send_at_once(one->fd);
    watch(one->fd, one);
    return 1;
}

static void post(client *one)
{
    static char body[1024], text[2048];
    int size;

    one->job = serial++ * MOST_IN_FLIGHT + (one - clients);
    size = snprintf(body, sizeof body, BODY, one->job);
    size = snprintf(text, sizeof text, "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n%s", size, body);
    one->accepted = one->arrived = 0;
    one->used = 0;
    if (!connected(one)) {
        complain(one, strerror(errno));
        return;
    }
    one->posted = 1;
    one->began = now_ns();
    if (!first_post)
        first_post = one->began;
    posted++;
    if (send(one->fd, text, (size_t)size, MSG_NOSIGNAL) != size)
        complain(one, strerror(errno));
}

static void rest_if_over(client *one)
{
    if (!one->accepted || !one->arrived)
        return;
    one->posted = 0;
    one->due = now_ns() + rest_ns;
}

static void on_arrival(long job, int64_t at)
{
    client *one = &clients[job % MOST_IN_FLIGHT];

    if (order_fd < 0 || one->job != job || !one->posted)
        return; /* of an earlier measurement */
    if (one->arrived) {
        repeated++;
        return;
    }
    one->arrived = 1;
    arrived++;
    last_arrival = at;
    keep(&ways, (double)(at - one->began) / 1e6);
    rest_if_over(one);
}

static void on_answer(client *one)
{
    ssize_t got = recv(one->fd, one->in + one->used, ANSWER_BYTES - 1 - one->used, 0);
    char *end, *length;

    if (got <= 0) {
        complain(one, one->used ? one->in : "the door closed the connection");
        return;
    }
    one->used += (size_t)got;
    one->in[one->used] = 0;
    if (!(end = strstr(one->in, "\r\n\r\n")))
        return;
    length = strcasestr(one->in, "\r\ncontent-length:");
    if (one->used < (size_t)(end + 4 - one->in) + (length ? strtoul(length + 17, NULL, 10) : 0))
        return;
    if (strncmp(one->in + 8, " 202", 4)) {
        complain(one, one->in);
        return;
    }
    one->accepted = 1;
    accepted++;
    keep(&answers, (double)(now_ns() - one->began) / 1e6);
    rest_if_over(one);
}

static long number(const char *query, const char *name)
{
    const char *found = strstr(query, name), *end = strchr(query, ' ');
    return found && (!end || found < end) ? strtol(found + strlen(name), NULL, 10) : 0;
}

/* Begin to measure; the answer follows at the end. */
static int on_order(int fd, const char *query)
{
    int64_t now = now_ns();

    in_flight = (int)number(query, "?in_flight=") + (int)number(query, "&in_flight=");
    if (order_fd >= 0 || in_flight < 1 || in_flight > MOST_IN_FLIGHT) {
        answer(fd, "400 Bad Request", "text/plain", "one measurement at a time, with 1 to 1024 in flight");
        return 0;
    }
    order_fd = fd;
    door = (int)number(query, "door=");
    rest_ns = number(query, "&rest_ms=") * 1000000LL;
    ends = now + number(query, "&ms=") * 1000000LL;
    gives_up = ends + number(query, "&drain_ms=") * 1000000LL;
    posted = accepted = arrived = repeated = errors = 0;
    first_post = last_arrival = 0;
    ways.used = answers.used = 0;
    complaint[0] = 0;
    for (int index = 0; index < in_flight; index++)
        clients[index] = (client){.fd = -1, .due = now};
    return 1;
}

static void report(int unfinished)
{
    static char body[2048];
    FILE *out = fmemopen(body, sizeof body, "w");

    fprintf(out, "{\"posted\": %ld, \"accepted\": %ld, \"arrived\": %ld, \"repeated\": %ld, \"errors\": %ld", posted,
        accepted, arrived, repeated, errors);
    fprintf(out, ", \"unfinished\": %d, \"first_post_ns\": %lld, \"last_arrival_ns\": %lld", unfinished,
        (long long)first_post, (long long)last_arrival);
    print_quantiles(out, "way_ms", &ways);
    print_quantiles(out, "answer_ms", &answers);
    fprintf(out, ", \"complaint\": \"%s\"}", complaint);
    fclose(out);
    answer(order_fd, "200 OK", "application/json", body);
    for (int index = 0; index < in_flight; index++)
        leave(&clients[index]);
    order_fd = -1;
}

/* Post what is due and end what is over; returns the ms until there is something to do again, -1 for never. */
static int tend(void)
{
    int64_t now = now_ns(), next = INT64_MAX;
    int active = 0;

    if (order_fd < 0)
        return -1;
    if (errors > MOST_ERRORS && !arrived)
        ends = gives_up = now;
    for (int index = 0; index < in_flight; index++) {
        client *one = &clients[index];
        if (!one->posted && one->due <= now && now < ends)
            post(one);
        active += one->posted;
        if (!one->posted && one->due < next)
            next = one->due;
    }
    if (now >= ends && (!active || now >= gives_up)) {
        report(active);
        return -1;
    }
    if (now >= ends || next > ends)
        next = now < ends ? ends : gives_up;
    return next <= now ? 0 : (int)((next - now + 999999) / 1000000);
}

static void on_event(void *what, int *listener)
{
    asker *new_one;

    if (what == listener) {
        if ((new_one = take_connection(*listener)))
            watch(new_one->fd, new_one);
    } else if ((client *)what >= clients && (client *)what < clients + MOST_IN_FLIGHT) {
        if (((client *)what)->fd >= 0)
            on_answer(what);
    } else if (((asker *)what)->fd >= 0) {
        on_asked(what);
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
    watch(listener, &listener);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, 256, tend());
        for (int index = 0; index < ready; index++)
            on_event(events[index].data.ptr, &listener);
    }
}
