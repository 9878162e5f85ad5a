/* Tests the C interface of a library named "net" with one input; prints the first failure.
 *
 * ./check INPUT OUTPUT: runs the network in two threads at once, each with a context of its own,
 * on an input that starts at an odd place, and writes the first output.
 */
#include "net.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RUNS 8
#define CHECK(condition)                                        \
  do {                                                          \
    if (!(condition)) {                                         \
      fprintf(stderr, "line %d: %s\n", __LINE__, #condition);   \
      exit(1);                                                  \
    }                                                           \
  } while (0)

typedef struct job {
  float *input, *output;
  void *codes;
} job;

static void *allocate(size_t bytes) {
  void *memory = malloc(bytes);
  CHECK(memory != NULL);
  return memory;
}

static double code_at(const net_tensor *t, const void *codes, size_t i) {
  switch (t->quantized_dtype) {
    case NET_UINT8: return ((const uint8_t *)codes)[i];
    case NET_UINT16: return ((const uint16_t *)codes)[i];
    case NET_INT32: return ((const int32_t *)codes)[i];
    default: CHECK(0); return 0;
  }
}

/* Codes of a float input, with the numbers that the library tells. */
static void *quantize(const net_tensor *t, const float *x) {
  uint8_t *codes = allocate(t->quantized_bytes);
  size_t i;
  CHECK(t->has_codes && t->quantized_dtype == NET_UINT8 && t->scales == 1);
  for (i = 0; i < t->elements; ++i) {
    float ratio = x[i] / t->scale[0];
    float rounded = (ratio + 12582912.0f) - 12582912.0f; /* half to even below 2^22 */
    float code = rounded + (float)t->zero_point;
    if (!(code >= (float)t->least)) code = (float)t->least;
    if (code > (float)t->largest) code = (float)t->largest;
    codes[i] = (uint8_t)code;
  }
  return codes;
}

static void *work(void *argument) {
  job *j = argument;
  unsigned char *memory = allocate(NET_ARENA_BYTES + NET_ARENA_ALIGNMENT);
  size_t skip = NET_ARENA_ALIGNMENT - (size_t)((uintptr_t)memory % NET_ARENA_ALIGNMENT);
  const void *inputs[1];
  void *outputs[NET_OUTPUTS];
  float *again = allocate(net_output(0)->bytes);
  net_context context;
  size_t i, k;
  CHECK(net_init(&context, memory + skip, NET_ARENA_BYTES) == NET_OK);
  for (i = 1; i < NET_OUTPUTS; ++i) outputs[i] = allocate(net_output(i)->bytes);
  for (i = 0; i < RUNS; ++i) {
    memset(memory + skip, (int)(i * 37), NET_ARENA_BYTES); /* nothing is kept between runs */
    inputs[0] = j->input;
    outputs[0] = j->output;
    CHECK(net_run(&context, inputs, outputs) == NET_OK);
    if (i == 0) memcpy(again, j->output, net_output(0)->bytes);
    CHECK(memcmp(again, j->output, net_output(0)->bytes) == 0);
    inputs[0] = j->codes;
    outputs[0] = again;
    CHECK(net_output(0)->quantized_bytes <= net_output(0)->bytes);
    CHECK(net_run_quantized(&context, inputs, outputs) == NET_OK);
    for (k = 0; k < net_output(0)->elements; ++k) {
      const net_tensor *t = net_output(0);
      float code = (float)(code_at(t, again, k) - t->zero_point);
      CHECK(j->output[k] == t->scale[k / t->channel_stride % t->scales] * code);
    }
    memcpy(again, j->output, net_output(0)->bytes);
  }
  for (i = 1; i < NET_OUTPUTS; ++i) free(outputs[i]);
  free(again);
  free(memory);
  return NULL;
}

static void check_errors(const float *x, float *y) {
  unsigned char *memory = allocate(NET_ARENA_BYTES + 2 * NET_ARENA_ALIGNMENT);
  size_t skip = NET_ARENA_ALIGNMENT - (size_t)((uintptr_t)memory % NET_ARENA_ALIGNMENT);
  unsigned char *arena = memory + skip;
  const void *inputs[1];
  void *outputs[NET_OUTPUTS];
  net_context context, empty;
  size_t i;
  memset(&empty, 0, sizeof empty);
  inputs[0] = x;
  for (i = 0; i < NET_OUTPUTS; ++i) outputs[i] = y;
  CHECK(net_init(NULL, arena, NET_ARENA_BYTES) == NET_ERROR_NULL);
  CHECK(net_init(&context, NULL, NET_ARENA_BYTES) == NET_ERROR_NULL);
  CHECK(net_init(&context, arena, NET_ARENA_BYTES - 1) == NET_ERROR_ARENA_SIZE);
  CHECK(net_init(&context, arena, 0) == NET_ERROR_ARENA_SIZE);
  CHECK(net_init(&context, arena + 4, NET_ARENA_BYTES) == NET_ERROR_ARENA_ALIGNMENT);
  CHECK(net_run(&context, inputs, outputs) == NET_ERROR_CONTEXT); /* init failed */
  CHECK(net_run(&empty, inputs, outputs) == NET_ERROR_CONTEXT);
  CHECK(net_init(&context, arena, NET_ARENA_BYTES) == NET_OK);
  CHECK(net_run(NULL, inputs, outputs) == NET_ERROR_NULL);
  CHECK(net_run(&context, NULL, outputs) == NET_ERROR_NULL);
  CHECK(net_run(&context, inputs, NULL) == NET_ERROR_NULL);
  inputs[0] = NULL;
  CHECK(net_run_quantized(&context, inputs, outputs) == NET_ERROR_NULL);
  inputs[0] = x;
  outputs[NET_OUTPUTS - 1] = NULL;
  CHECK(net_run(&context, inputs, outputs) == NET_ERROR_NULL);
  CHECK(net_input(NET_INPUTS) == NULL && net_output(NET_OUTPUTS) == NULL);
  CHECK(net_inputs() == NET_INPUTS && net_outputs() == NET_OUTPUTS);
  CHECK(net_arena_bytes() == NET_ARENA_BYTES);
  CHECK(strcmp(net_version(), NET_VERSION) == 0);
  for (i = 0; i < 7; ++i) CHECK(strlen(net_status_string((net_status)i)) > 5);
  free(memory);
}

int main(int argc, char **argv) {
  const net_tensor *in = net_input(0), *out = net_output(0);
  unsigned char *memory = allocate(in->bytes + 4);
  float *x = (float *)(void *)(memory + 4);
  pthread_t threads[2];
  job jobs[2];
  FILE *file;
  int i;
  CHECK(argc == 3 && NET_INPUTS == 1);
  file = fopen(argv[1], "rb");
  CHECK(file != NULL && fread(x, 1, in->bytes, file) == in->bytes);
  fclose(file);
  for (i = 0; i < 2; ++i) {
    jobs[i].input = x;
    jobs[i].output = allocate(out->bytes);
    jobs[i].codes = quantize(in, x);
  }
  check_errors(x, jobs[0].output);
  for (i = 0; i < 2; ++i) CHECK(pthread_create(&threads[i], NULL, work, &jobs[i]) == 0);
  for (i = 0; i < 2; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(memcmp(jobs[0].output, jobs[1].output, out->bytes) == 0);
  file = fopen(argv[2], "wb");
  CHECK(file != NULL && fwrite(jobs[0].output, 1, out->bytes, file) == out->bytes);
  CHECK(fclose(file) == 0);
  for (i = 0; i < 2; ++i) {
    free(jobs[i].output);
    free(jobs[i].codes);
  }
  free(memory);
  return 0;
}
