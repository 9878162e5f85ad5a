"""Files beside a standalone library: an example program, a CMake file, a pkg-config file."""

from __future__ import annotations

from string import Template

from tvm_backend.standalone.header import Facts

_MAIN = Template("""\
/* Run $name on files: ./main input.bin... output.bin...
 *
 * Files hold raw arrays in the order of PyTorch, little-endian: float32 (or the type of an input
 * that is not float), inputs and outputs in the order of the model.
 */
#include "$name.h"

#include <stdio.h>
#include <stdlib.h>

#define COUNT (${NAME}_INPUTS + ${NAME}_OUTPUTS)

static unsigned char memory[${NAME}_ARENA_BYTES + ${NAME}_ARENA_ALIGNMENT];

static int read_file(const char *path, void *data, size_t bytes) {
  FILE *file = fopen(path, "rb");
  int whole = file != NULL && fread(data, 1, bytes, file) == bytes && fgetc(file) == EOF;
  if (file != NULL) fclose(file);
  if (!whole)
    fprintf(stderr, "%s: cannot be read, or is not %lu bytes\\n", path, (unsigned long)bytes);
  return whole;
}

static int write_file(const char *path, const void *data, size_t bytes) {
  FILE *file = fopen(path, "wb");
  int whole = file != NULL && fwrite(data, 1, bytes, file) == bytes;
  if (file != NULL && fclose(file) != 0) whole = 0;
  if (!whole) fprintf(stderr, "%s: cannot be written\\n", path);
  return whole;
}

static const ${name}_tensor *tensor(size_t i) {
  return i < ${NAME}_INPUTS ? ${name}_input(i) : ${name}_output(i - ${NAME}_INPUTS);
}

int main(int argc, char **argv) {
  size_t misaligned = (size_t)((uintptr_t)memory % ${NAME}_ARENA_ALIGNMENT);
  unsigned char *arena = memory + (misaligned ? ${NAME}_ARENA_ALIGNMENT - misaligned : 0);
  const void *inputs[${NAME}_INPUTS] = {NULL};
  void *outputs[${NAME}_OUTPUTS] = {NULL};
  void *data[COUNT] = {NULL};
  ${name}_context context;
  ${name}_status status;
  int ok = 1;
  size_t i;

  if (argc != 1 + COUNT) {
    fprintf(stderr, "usage: %s INPUT... OUTPUT... (%d and %d files)\\n", argc ? argv[0] : "main",
            ${NAME}_INPUTS, ${NAME}_OUTPUTS);
    return 2;
  }
  for (i = 0; ok && i < COUNT; ++i) {
    data[i] = malloc(tensor(i)->bytes);
    if (data[i] == NULL) {
      fprintf(stderr, "out of memory\\n");
      ok = 0;
    } else if (i < ${NAME}_INPUTS) {
      inputs[i] = data[i];
      ok = read_file(argv[1 + i], data[i], tensor(i)->bytes);
    } else {
      outputs[i - ${NAME}_INPUTS] = data[i];
    }
  }
  if (ok) {
    status = ${name}_init(&context, arena, ${NAME}_ARENA_BYTES);
    if (status == ${NAME}_OK) status = ${name}_run(&context, inputs, outputs);
    ok = status == ${NAME}_OK;
    if (!ok) fprintf(stderr, "$name: %s\\n", ${name}_status_string(status));
  }
  for (i = ${NAME}_INPUTS; ok && i < COUNT; ++i)
    ok = write_file(argv[1 + i], data[i], tensor(i)->bytes);
  for (i = 0; i < COUNT; ++i) free(data[i]);
  return ok ? 0 : 1;
}
""")

_CMAKE_ARCHIVE = Template("""\
# add_subdirectory this folder, then target_link_libraries(your_program PRIVATE $name)
cmake_minimum_required(VERSION 3.13)
project(${name}_library C)

add_library($name STATIC IMPORTED GLOBAL)
set_target_properties($name PROPERTIES
  IMPORTED_LOCATION "$${CMAKE_CURRENT_SOURCE_DIR}/$name.a"
  INTERFACE_INCLUDE_DIRECTORIES "$${CMAKE_CURRENT_SOURCE_DIR}")

if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  add_executable(main main.c)
  target_link_libraries(main PRIVATE $name)
endif()
""")

_CMAKE_SOURCES = Template("""\
# add_subdirectory this folder, then target_link_libraries(your_program PRIVATE $name)
cmake_minimum_required(VERSION 3.13)
project(${name}_library C)

set(${name}_objects objects/kernels.o objects/weights.o)
set_source_files_properties($${${name}_objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
add_library($name STATIC $name.c $${${name}_objects})
target_include_directories($name PUBLIC "$${CMAKE_CURRENT_SOURCE_DIR}")

if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  add_executable(main main.c)
  target_link_libraries(main PRIVATE $name)
endif()
""")

_PKG_CONFIG = Template("""\
# pkg-config --with-path=this/folder --cflags --libs $name
Name: $name
Description: quantized network for $target
Version: $version
Cflags: -I$${pcfiledir}
Libs: $${pcfiledir}/$name.a
""")


def main_source(facts: Facts) -> str:
    """The example program."""
    return _MAIN.substitute(facts.substitutions)


def cmake_source(facts: Facts, linked: bool) -> str:
    """CMakeLists.txt.

    Args:
        facts: Names.
        linked: Whether the static library exists; else CMake makes it from source and objects.
    """
    return (_CMAKE_ARCHIVE if linked else _CMAKE_SOURCES).substitute(facts.substitutions)


def pkg_config_source(facts: Facts) -> str:
    """The .pc file."""
    return _PKG_CONFIG.substitute(facts.substitutions)
