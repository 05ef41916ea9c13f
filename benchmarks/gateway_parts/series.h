/* A growing series of times, and its quantiles as JSON. */
#ifndef SERIES_H
#define SERIES_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { double *values; size_t used, room; } series;

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void keep(series *kept, double value)
{
    if (kept->used == kept->room) {
        kept->room = kept->room ? 2 * kept->room : 4096;
        if (!(kept->values = realloc(kept->values, kept->room * sizeof *kept->values)))
            fail("memory");
    }
    kept->values[kept->used++] = value;
}

static int compare(const void *one, const void *other)
{
    double first = *(const double *)one, second = *(const double *)other;
    return (first > second) - (first < second);
}

static void print_quantiles(FILE *out, const char *name, series *kept)
{
    qsort(kept->values, kept->used, sizeof *kept->values, compare);
    fprintf(out, ", \"%s\": [", name);
    for (int share = 50; share <= 99; share += 49) {
        size_t at = kept->used * (size_t)share / 100;
        if (kept->used)
            fprintf(out, "%s%.4f", share > 50 ? ", " : "", kept->values[at < kept->used ? at : kept->used - 1]);
    }
    fprintf(out, "]");
}

#endif
