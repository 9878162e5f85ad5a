/* Classify images of digits with the exported network: ./classify images.bin
 *
 * The file holds float32 images, one after the other, in the layout of the network's input. Prints
 * a line an image: its class and its logit.
 */
#include "digits.h"

#include <stdio.h>
#include <stdlib.h>

/* The one memory the network needs. A context and an arena a thread is all it takes to run it in
 * several threads at once. */
static unsigned char memory[DIGITS_ARENA_BYTES + DIGITS_ARENA_ALIGNMENT];

static size_t largest(const float *values, size_t count) {
  size_t best = 0, i;
  for (i = 1; i < count; ++i)
    if (values[i] > values[best]) best = i;
  return best;
}

int main(int argc, char **argv) {
  const digits_tensor *in = digits_input(0), *out = digits_output(0);
  size_t misaligned = (size_t)((uintptr_t)memory % DIGITS_ARENA_ALIGNMENT);
  unsigned char *arena = memory + (misaligned ? DIGITS_ARENA_ALIGNMENT - misaligned : 0);
  float *image = malloc(in->bytes), *logits = malloc(out->bytes);
  const void *inputs[1];
  void *outputs[1];
  digits_context context;
  digits_status status = digits_init(&context, arena, DIGITS_ARENA_BYTES);
  FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;

  if (file == NULL || image == NULL || logits == NULL) {
    fprintf(stderr, "usage: %s images.bin (float32, %lu values an image)\n", argv[0],
            (unsigned long)in->elements);
    return 2;
  }
  inputs[0] = image;
  outputs[0] = logits;
  while (status == DIGITS_OK && fread(image, in->bytes, 1, file) == 1) {
    status = digits_run(&context, inputs, outputs);
    if (status == DIGITS_OK) {
      size_t best = largest(logits, out->elements);
      printf("%lu %.9g\n", (unsigned long)best, (double)logits[best]);
    }
  }
  if (status != DIGITS_OK) fprintf(stderr, "digits: %s\n", digits_status_string(status));
  fclose(file);
  free(image);
  free(logits);
  return status == DIGITS_OK ? 0 : 1;
}
