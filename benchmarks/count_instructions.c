/* qemu-user plugin: how often every translated block ran, as lines "address instructions runs".
 *
 *   qemu-aarch64 -plugin count_instructions.so,out=counts.txt program
 *
 * The five functions used of qemu's plugin interface are declared here, since distributions ship
 * qemu without its header. Counting is inline code, so it costs little.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef void (*translated_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*exited_t)(qemu_plugin_id_t, void *);
enum { ADD_U64 = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_t);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, exited_t, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);

int qemu_plugin_version = 1;

struct block {
  uint64_t address, instructions, runs;
  struct block *next;
};
static struct block *blocks;

/* A block translated again gets another record; whoever reads the lines adds them up. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  struct block *block = calloc(1, sizeof *block);
  (void)id;
  if (!block) abort();
  block->address = qemu_plugin_tb_vaddr(tb);
  block->instructions = qemu_plugin_tb_n_insns(tb);
  block->next = blocks;
  blocks = block;
  qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, &block->runs, 1);
}

static void finished(qemu_plugin_id_t id, void *path) {
  FILE *file = fopen(path, "w");
  (void)id;
  if (!file) abort();
  for (struct block *block = blocks; block; block = block->next)
    if (block->runs)
      fprintf(file, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", block->address, block->instructions,
              block->runs);
  fclose(file);
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "out=", 4)) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, strdup(argv[0] + 4));
  return 0;
}
