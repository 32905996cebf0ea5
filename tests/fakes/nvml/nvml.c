/* A stand-in for NVIDIA's management library, for tests: libnvidia-ml.so.1 without a driver.
 *
 * It reads the text file named by FAKE_NVML_FILE again at every call, so a test changes GPUs live:
 *
 *   init 0                              the code nvmlInit returns; then driver, cuda
 *   gpu GPU-... | slice MIG-...         begins a GPU, or a slice of the GPU above; then one per line:
 *   name | pci | cc 9 0 | total | reserved | used | util | temp | power | limit | throttle | ecc | mig
 *   persistence 0 or 1
 *   process PID BYTES | remap PENDING FAILED | instance GI CI
 *   error FUNCTION CODE                 that call fails with it ("*": every call)
 *   hang FUNCTION                       that call returns only once this line is gone
 *   event UUID TYPE DATA                delivered once, to a set that registered for it
 *
 * What is not given answers "not supported". Structures are laid out as the public interface has them.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, UNKNOWN = 999 };
enum { GPUS = 16, PARTS = 8, PROCESSES = 16, RULES = 32, EVENTS = 64 };
typedef unsigned long long u64;
typedef struct { char function[48]; int code; } Rule;
typedef struct { unsigned pid, pad; u64 used; unsigned gi, ci; } Process; /* version 3 */
typedef struct {
  char uuid[96], name[96], pci[32];
  int cc[2], util, temp, power, limit, mig, remap[2], instance[2], is_slice, parent, persistence;
  long long total, reserved, used, throttle, ecc;
  Process processes[PROCESSES];
  Rule rules[RULES];
  int n_processes, n_rules;
} Gpu;
typedef struct { char uuid[96]; u64 type, data; } Event;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { void *device; u64 type, data; unsigned gi, ci; } EventData;

/* One per thread: the file is parsed afresh at each call. A handle is a GPU's place in `gpus` + 1. */
static __thread Gpu gpus[GPUS * PARTS];
static __thread Event events[EVENTS];
static __thread int n_gpus, n_events, init_code, cuda;
static __thread char driver[80];
static u64 registered[GPUS * PARTS];
static int delivered;

static void line(const char *key, const char *rest) {
  Gpu *g = n_gpus ? &gpus[n_gpus - 1] : &gpus[0];
  int is_slice = !strcmp(key, "slice");
  if (!strcmp(key, "init")) init_code = atoi(rest);
  else if (!strcmp(key, "driver")) snprintf(driver, sizeof driver, "%s", rest);
  else if (!strcmp(key, "cuda")) cuda = atoi(rest);
  else if (!strcmp(key, "gpu") || is_slice) {
    int parent = n_gpus - 1;
    while (is_slice && parent > 0 && gpus[parent].is_slice) parent--;
    g = &gpus[n_gpus++];
    memset(g, 0, sizeof *g);
    snprintf(g->uuid, sizeof g->uuid, "%s", rest);
    g->is_slice = is_slice, g->parent = parent;
    g->cc[0] = g->util = g->temp = g->power = g->limit = g->mig = g->remap[0] = g->instance[0] = -1;
    g->total = g->throttle = g->ecc = g->persistence = -1;
  } else if (!strcmp(key, "name")) snprintf(g->name, sizeof g->name, "%s", rest);
  else if (!strcmp(key, "pci")) snprintf(g->pci, sizeof g->pci, "%s", rest);
  else if (!strcmp(key, "cc")) sscanf(rest, "%d %d", &g->cc[0], &g->cc[1]);
  else if (!strcmp(key, "total")) g->total = atoll(rest);
  else if (!strcmp(key, "reserved")) g->reserved = atoll(rest);
  else if (!strcmp(key, "used")) g->used = atoll(rest);
  else if (!strcmp(key, "util")) g->util = atoi(rest);
  else if (!strcmp(key, "temp")) g->temp = atoi(rest);
  else if (!strcmp(key, "power")) g->power = atoi(rest);
  else if (!strcmp(key, "limit")) g->limit = atoi(rest);
  else if (!strcmp(key, "throttle")) g->throttle = atoll(rest);
  else if (!strcmp(key, "ecc")) g->ecc = atoll(rest);
  else if (!strcmp(key, "persistence")) g->persistence = atoi(rest);
  else if (!strcmp(key, "mig")) g->mig = atoi(rest);
  else if (!strcmp(key, "remap")) sscanf(rest, "%d %d", &g->remap[0], &g->remap[1]);
  else if (!strcmp(key, "instance")) sscanf(rest, "%d %d", &g->instance[0], &g->instance[1]);
  else if (!strcmp(key, "process") && g->n_processes < PROCESSES) {
    Process *p = &g->processes[g->n_processes++];
    p->gi = p->ci = ~0u;
    sscanf(rest, "%u %llu", &p->pid, &p->used);
  } else if ((!strcmp(key, "error") || !strcmp(key, "hang")) && g->n_rules < RULES) {
    Rule *r = &g->rules[g->n_rules++];
    r->code = -1; /* hang */
    sscanf(rest, "%47s %d", r->function, &r->code);
  } else if (!strcmp(key, "event") && n_events < EVENTS) {
    Event *e = &events[n_events++];
    sscanf(rest, "%95s %llu %llu", e->uuid, &e->type, &e->data);
  }
}

static int load(void) {
  char text[256], key[32];
  const char *path = getenv("FAKE_NVML_FILE");
  FILE *file = path ? fopen(path, "r") : NULL;
  n_gpus = n_events = init_code = cuda = 0;
  if (!file) return UNKNOWN;
  while (fgets(text, sizeof text, file)) {
    int at = 0;
    text[strcspn(text, "\n")] = 0;
    if (sscanf(text, "%31s %n", key, &at) == 1) line(key, text + at);
  }
  fclose(file);
  return OK;
}

static void pause_ms(int ms) {
  struct timespec time = {0, ms * 1000000L};
  nanosleep(&time, NULL);
}

/* The GPU of a handle, when `function` may answer for it. */
static int open_gpu(void *handle, const char *function, Gpu **found) {
  for (;;) {
    int code = OK, at = (int)(intptr_t)handle - 1;
    if (load()) return UNKNOWN;
    if (at < 0 || at >= n_gpus) return INVALID;
    *found = &gpus[at];
    for (int i = 0; i < (*found)->n_rules; i++) {
      Rule *rule = &(*found)->rules[i];
      if (!strcmp(rule->function, "*") || !strcmp(rule->function, function)) code = rule->code;
    }
    if (code >= 0) return code;
    pause_ms(10);
  }
}

static int nth(int wanted, int is_slice, int parent) {
  for (int i = 0; i < n_gpus; i++)
    if (gpus[i].is_slice == is_slice && (!is_slice || gpus[i].parent == parent) && wanted-- == 0) return i;
  return -1;
}

#define OPEN(handle) \
  Gpu *g; \
  int code = open_gpu(handle, __func__, &g); \
  if (code) return code
#define NUMBER(function, type, field, is_absent) \
  int function(void *handle, type *value) { \
    OPEN(handle); \
    if (is_absent) return UNSUPPORTED; \
    *value = (type)g->field; \
    return OK; \
  }
#define TEXT(function, field) \
  int function(void *handle, char *text, unsigned size) { \
    OPEN(handle); \
    snprintf(text, size, "%s", g->field); \
    return OK; \
  }

int nvmlInitWithFlags(unsigned flags) { return (void)flags, load() ? UNKNOWN : init_code; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return (void)code, "an error of the fake library"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return load(), snprintf(text, size, "%s", driver), OK; }
int nvmlSystemGetCudaDriverVersion(int *version) { return load(), *version = cuda, OK; }

int nvmlDeviceGetCount_v2(unsigned *count) {
  if (load()) return UNKNOWN;
  for (*count = 0; nth((int)*count, 0, 0) >= 0;) ++*count;
  return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  if (load()) return UNKNOWN;
  int at = nth((int)index, 0, 0);
  if (at < 0) return INVALID;
  *handle = (void *)(intptr_t)(at + 1);
  OPEN(*handle);
  return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
  OPEN(handle);
  if (g->mig < 0) return UNSUPPORTED;
  *count = 7;
  return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **slice) {
  OPEN(handle);
  int at = nth((int)index, 1, (int)(g - gpus));
  *slice = (void *)(intptr_t)(at + 1);
  return at < 0 ? NOT_FOUND : OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
  OPEN(handle);
  if (g->mig < 0) return UNSUPPORTED;
  *current = *pending = (unsigned)g->mig;
  return OK;
}
TEXT(nvmlDeviceGetName, name)
TEXT(nvmlDeviceGetUUID, uuid)
NUMBER(nvmlDeviceGetPowerUsage, unsigned, power, g->power < 0)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, limit, g->limit < 0)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, throttle, g->throttle < 0)
NUMBER(nvmlDeviceGetGpuInstanceId, unsigned, instance[0], g->instance[0] < 0)
NUMBER(nvmlDeviceGetComputeInstanceId, unsigned, instance[1], g->instance[0] < 0)
int nvmlDeviceGetPciInfo_v3(void *handle, Pci *pci) {
  OPEN(handle);
  memset(pci, 0, sizeof *pci);
  snprintf(pci->bus_id, sizeof pci->bus_id, "%s", g->pci);
  return OK;
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
  OPEN(handle);
  *major = g->cc[0], *minor = g->cc[1];
  return g->cc[0] < 0 ? UNSUPPORTED : OK;
}
int nvmlDeviceGetMemoryInfo(void *handle, u64 *total_free_used) {
  OPEN(handle);
  if (g->total < 0) return UNSUPPORTED;
  total_free_used[0] = g->total, total_free_used[1] = g->total - g->used - g->reserved;
  total_free_used[2] = g->used + g->reserved;
  return OK;
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, MemoryV2 *memory) {
  OPEN(handle);
  if (memory->version != 0x02000028) return INVALID;
  if (g->total < 0) return UNSUPPORTED;
  memory->total = g->total, memory->reserved = g->reserved, memory->used = g->used;
  memory->free = g->total - g->used - g->reserved;
  return OK;
}
int nvmlDeviceGetUtilizationRates(void *handle, unsigned *gpu_memory) {
  OPEN(handle);
  if (g->util < 0) return UNSUPPORTED;
  gpu_memory[0] = gpu_memory[1] = (unsigned)g->util;
  return OK;
}
int nvmlDeviceGetTemperatureV(void *handle, int *version_sensor_value) {
  OPEN(handle);
  version_sensor_value[2] = g->temp;
  return g->temp < 0 ? UNSUPPORTED : OK;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *value) {
  OPEN(handle);
  *value = (unsigned)g->temp;
  return sensor || g->temp < 0 ? UNSUPPORTED : OK;
}
int nvmlDeviceGetTotalEccErrors(void *handle, int type, int counter, u64 *count) {
  OPEN(handle);
  if (g->ecc < 0) return UNSUPPORTED;
  *count = type == 1 && counter == 0 ? (u64)g->ecc : 0;
  return OK;
}
int nvmlDeviceGetPersistenceMode(void *handle, unsigned *mode) {
  OPEN(handle);
  *mode = (unsigned)g->persistence;
  return g->persistence < 0 ? UNSUPPORTED : OK;
}
int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
  OPEN(handle);
  *corrected = *uncorrected = 0, *pending = (unsigned)g->remap[0], *failed = (unsigned)g->remap[1];
  return g->remap[0] < 0 ? UNSUPPORTED : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *processes) {
  OPEN(handle);
  unsigned room = *count;
  *count = (unsigned)g->n_processes;
  if (room < *count) return TOO_SMALL;
  if (*count) memcpy(processes, g->processes, *count * sizeof *processes);
  return OK;
}

/* A set hears of what happens after it was made. */
int nvmlEventSetCreate(void **set) { return load(), delivered = n_events, *set = &delivered, OK; }
int nvmlEventSetFree(void *set) { return (void)set, memset(registered, 0, sizeof registered), OK; }
int nvmlDeviceGetSupportedEventTypes(void *handle, u64 *types) {
  OPEN(handle);
  *types = g->is_slice ? 0 : 0x1f;
  return OK;
}
int nvmlDeviceRegisterEvents(void *handle, u64 types, void *set) {
  OPEN(handle);
  (void)set;
  registered[g - gpus] = types;
  return types & ~0x1fULL ? UNSUPPORTED : OK;
}
int nvmlEventSetWait_v2(void *set, EventData *data, unsigned timeout_ms) {
  (void)set;
  for (int left_ms = (int)timeout_ms;; left_ms -= 5) {
    if (load()) return UNKNOWN;
    while (delivered < n_events) {
      Event *event = &events[delivered++];
      for (int i = 0; i < n_gpus; i++) {
        int owner = gpus[i].is_slice ? gpus[i].parent : i;
        if (strcmp(gpus[i].uuid, event->uuid) || !(registered[owner] & event->type)) continue;
        data->device = (void *)(intptr_t)(owner + 1);
        data->type = event->type, data->data = event->data;
        data->gi = (unsigned)gpus[i].instance[0], data->ci = (unsigned)gpus[i].instance[1];
        if (!gpus[i].is_slice) data->gi = data->ci = ~0u;
        return OK;
      }
    }
    if (left_ms <= 0) return TIMEOUT;
    pause_ms(5);
  }
}
