/* The floor of a reading: what `gpuctl status` asks of NVML, and nothing else. cc -O2 -o nvml nvml.c -ldl; nvml LIBRARY */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

struct process {
    unsigned pid;
    unsigned long long used;
    unsigned instance, compute_instance;
};
enum { SUCCESS = 0, INSUFFICIENT_SIZE = 7 };

static void *library;

static int call(const char *name, void *a, void *b, void *c) {
    int (*function)(void *, void *, void *) = (int (*)(void *, void *, void *))dlsym(library, name);
    if (!function) {
        fprintf(stderr, "%s is missing\n", name);
        exit(1);
    }
    return function(a, b, c);
}

static void list(const char *name, void *device) {
    unsigned count = 0;
    struct process *processes = NULL;
    while (call(name, device, &count, processes) == INSUFFICIENT_SIZE)
        processes = realloc(processes, (count += 8) * sizeof *processes);
    for (unsigned i = 0; i < count; i++) {
        char text[256];
        call("nvmlSystemGetProcessName", (void *)(unsigned long)processes[i].pid, text, (void *)sizeof text);
        printf("%u %s %llu\n", processes[i].pid, text, processes[i].used >> 20);
    }
    free(processes);
}

int main(int count, char **arguments) {
    void *device;
    unsigned long long memory[3];
    unsigned temperature, rates[2];
    char text[96];
    library = dlopen(count > 1 ? arguments[1] : "libnvidia-ml.so.1", RTLD_LAZY);
    if (!library || call("nvmlInit_v2", NULL, NULL, NULL) != SUCCESS)
        return 1;
    if (call("nvmlDeviceGetHandleByIndex_v2", (void *)0, &device, NULL) != SUCCESS)
        return 1;
    call("nvmlDeviceGetMemoryInfo", device, memory, NULL);
    list("nvmlDeviceGetComputeRunningProcesses_v3", device);
    list("nvmlDeviceGetGraphicsRunningProcesses_v3", device);
    call("nvmlDeviceGetName", device, text, (void *)sizeof text);
    call("nvmlDeviceGetUUID", device, text, (void *)sizeof text);
    call("nvmlSystemGetDriverVersion", text, (void *)80, NULL);
    call("nvmlDeviceGetTemperature", device, (void *)0, &temperature);
    call("nvmlDeviceGetUtilizationRates", device, rates, NULL);
    printf("%llu %llu %llu %u %u\n", memory[0], memory[1], memory[2], temperature, rates[0]);
    return call("nvmlShutdown", NULL, NULL, NULL);
}
