/* A fake libnvidia-ml.so.1 for the real nvidia-ml-py: what it answers stands in a text file.
 *
 * The file named by FAKE_NVML_STATE is read anew at every call, so a test changes the cards by replacing it.
 * Lines are "key value"; the last one of a key wins. What is missing is NVML_ERROR_NOT_SUPPORTED.
 *
 *   count 2                        cards (default 1)
 *   delay_ms 0                     how long every call takes
 *   generation 0                   another number = the driver was reloaded: open the library again
 *   gpu0.name, gpu0.uuid           strings
 *   gpu0.mem_total, gpu0.mem_used, gpu0.mem_reserved       bytes; free = total - used - reserved
 *   gpu0.util, gpu0.temp, gpu0.fan, gpu0.power (mW), gpu0.power_limit (mW), gpu0.reasons
 *   gpu0.compute, gpu0.graphics    processes, "pid:bytes,..."; "-" for bytes is NVML_VALUE_NOT_AVAILABLE
 *   err.FUNCTION 3                 that function returns this nvmlReturn_t; err.* for every function
 *   gpu1.err.FUNCTION 15           likewise, for one card
 *
 * Built with -DOLD_DRIVER it lacks the functions that drivers before R570 lack.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    VERSION_MISMATCH = 25,
};
#define MOST_CARDS 16
#define MOST_PROCESSES 64

typedef int result;
typedef struct { int index; } card;
typedef struct { uint64_t total, free, used; } memory_info;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned version, sensor; int celsius; } temperature;
typedef struct { unsigned pid; uint64_t used; unsigned gpu_instance, compute_instance; } process;

static card cards[MOST_CARDS];
static int open_count;
static long long generation;

static int look_up(const char *key, char *value, size_t size)
{
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t length = strlen(key);
    char line[4096];
    int found = 0;

    if (!file)
        return 0;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) || line[length] != ' ')
            continue;
        line[strcspn(line, "\r\n")] = 0;
        snprintf(value, size, "%s", line + length + 1);
        found = 1;
    }
    fclose(file);
    return found;
}

static long long number(const char *key, long long otherwise)
{
    char value[64];
    return look_up(key, value, sizeof value) ? strtoll(value, NULL, 0) : otherwise;
}

static const char *card_key(int index, const char *field)
{
    static __thread char key[160];
    snprintf(key, sizeof key, "gpu%d.%s", index, field);
    return key;
}

/* What every function does first: take its time, then the error that the file orders. */
static result begin(const char *function)
{
    char key[160];
    long long delay_ms = number("delay_ms", 0), error;

    if (delay_ms > 0)
        usleep((useconds_t)delay_ms * 1000);
    snprintf(key, sizeof key, "err.%s", function);
    error = number(key, number("err.*", SUCCESS));
    return (result)error;
}

static result begin_card(const char *function, card *device)
{
    char field[160];
    result error = begin(function);

    if (error)
        return error;
    if (!open_count || number("generation", 0) != generation)
        return UNINITIALIZED;
    if (device < cards || device >= cards + MOST_CARDS || device->index >= number("count", 1))
        return INVALID_ARGUMENT;
    snprintf(field, sizeof field, "err.%s", function);
    return (result)number(card_key(device->index, field), number(card_key(device->index, "err.*"), SUCCESS));
}

static result card_number(const char *function, card *device, const char *field, long long *value)
{
    result error = begin_card(function, device);
    if (error)
        return error;
    *value = number(card_key(device->index, field), -1);
    return *value < 0 ? NOT_SUPPORTED : SUCCESS;
}

static result card_unsigned(const char *function, card *device, const char *field, unsigned *value)
{
    long long wide;
    result error = card_number(function, device, field, &wide);
    if (!error)
        *value = (unsigned)wide;
    return error;
}

static result card_string(const char *function, card *device, const char *field, char *value, unsigned size)
{
    result error = begin_card(function, device);
    if (error)
        return error;
    return look_up(card_key(device->index, field), value, size) ? SUCCESS : NOT_SUPPORTED;
}

result nvmlInitWithFlags(unsigned flags)
{
    result error = begin("nvmlInitWithFlags");
    (void)flags;
    generation = number("generation", 0);
    for (int index = 0; index < MOST_CARDS; index++)
        cards[index].index = index;
    if (!error)
        open_count++;
    return error;
}

result nvmlShutdown(void)
{
    if (!open_count)
        return UNINITIALIZED;
    open_count--;
    return SUCCESS;
}

const char *nvmlErrorString(result error)
{
    (void)error;
    return "an error of the fake NVML";
}

result nvmlDeviceGetCount_v2(unsigned *count)
{
    result error = begin("nvmlDeviceGetCount_v2");
    if (error)
        return error;
    if (!open_count)
        return UNINITIALIZED;
    *count = (unsigned)number("count", 1);
    return SUCCESS;
}

result nvmlDeviceGetHandleByIndex_v2(unsigned index, card **device)
{
    result error = index < MOST_CARDS ? SUCCESS : INVALID_ARGUMENT;
    if (!error)
        error = begin_card("nvmlDeviceGetHandleByIndex_v2", &cards[index]);
    if (!error)
        *device = &cards[index];
    return error;
}

result nvmlDeviceGetUUID(card *device, char *value, unsigned size)
{
    return card_string("nvmlDeviceGetUUID", device, "uuid", value, size);
}

result nvmlDeviceGetName(card *device, char *value, unsigned size)
{
    return card_string("nvmlDeviceGetName", device, "name", value, size);
}

/* As the first version of the real call: what the driver reserves counts as used. */
result nvmlDeviceGetMemoryInfo(card *device, memory_info *memory)
{
    long long total;
    result error = card_number("nvmlDeviceGetMemoryInfo", device, "mem_total", &total);
    if (error)
        return error;
    memory->total = (uint64_t)total;
    memory->used = (uint64_t)(number(card_key(device->index, "mem_used"), 0)
        + number(card_key(device->index, "mem_reserved"), 0));
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

result nvmlDeviceGetUtilizationRates(card *device, utilization *rates)
{
    rates->memory = 0;
    return card_unsigned("nvmlDeviceGetUtilizationRates", device, "util", &rates->gpu);
}

result nvmlDeviceGetTemperature(card *device, unsigned sensor, unsigned *celsius)
{
    result error = card_unsigned("nvmlDeviceGetTemperature", device, "temp", celsius);
    return sensor ? INVALID_ARGUMENT : error;
}

result nvmlDeviceGetCurrentClocksThrottleReasons(card *device, unsigned long long *reasons)
{
    return card_number("nvmlDeviceGetCurrentClocksThrottleReasons", device, "reasons", (long long *)reasons);
}

#ifndef OLD_DRIVER
result nvmlDeviceGetTemperatureV(card *device, temperature *reading)
{
    if (reading->version != 0x100000C)
        return VERSION_MISMATCH;
    return reading->sensor ? INVALID_ARGUMENT
        : card_unsigned("nvmlDeviceGetTemperatureV", device, "temp", (unsigned *)&reading->celsius);
}

result nvmlDeviceGetCurrentClocksEventReasons(card *device, unsigned long long *reasons)
{
    return card_number("nvmlDeviceGetCurrentClocksEventReasons", device, "reasons", (long long *)reasons);
}
#endif

result nvmlDeviceGetPowerUsage(card *device, unsigned *milliwatts)
{
    return card_unsigned("nvmlDeviceGetPowerUsage", device, "power", milliwatts);
}

result nvmlDeviceGetEnforcedPowerLimit(card *device, unsigned *milliwatts)
{
    return card_unsigned("nvmlDeviceGetEnforcedPowerLimit", device, "power_limit", milliwatts);
}

result nvmlDeviceGetFanSpeed(card *device, unsigned *percent)
{
    return card_unsigned("nvmlDeviceGetFanSpeed", device, "fan", percent);
}

static result processes(const char *function, card *device, const char *field, unsigned *count, process *listed)
{
    char value[4096];
    process found[MOST_PROCESSES];
    unsigned size = 0;
    result error = card_string(function, device, field, value, sizeof value);

    if (error)
        return error;
    for (char *item = strtok(value, ","); item && size < MOST_PROCESSES; item = strtok(NULL, ",")) {
        char *used = strchr(item, ':');
        if (!used)
            continue;
        found[size].pid = (unsigned)strtoul(item, NULL, 10);
        found[size].used = used[1] == '-' ? UINT64_MAX : strtoull(used + 1, NULL, 10);
        found[size].gpu_instance = found[size].compute_instance = UINT32_MAX;
        size++;
    }
    error = *count < size ? INSUFFICIENT_SIZE : SUCCESS;
    *count = size;
    if (!error && size)
        memcpy(listed, found, size * sizeof *found);
    return error;
}

result nvmlDeviceGetComputeRunningProcesses_v3(card *device, unsigned *count, process *listed)
{
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", device, "compute", count, listed);
}

result nvmlDeviceGetGraphicsRunningProcesses_v3(card *device, unsigned *count, process *listed)
{
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", device, "graphics", count, listed);
}
