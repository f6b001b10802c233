/* Whether all items of a container have the same types: see item_types.py.
 *
 * Called with the interpreter's lock, so that nothing changes the container meanwhile.
 * item_types.py contains the machine code:
 *
 *   gcc -Os -ffreestanding -fPIC -fno-stack-protector -fcf-protection=none \
 *       -fno-asynchronous-unwind-tables -fno-toplevel-reorder -c item_types.c
 *   objcopy -O binary -j .text item_types.o item_types.bin
 */
#include <stddef.h>
#include <stdint.h>

/* How each object of Python begins. */
typedef struct {
  intptr_t references;
  void *type;
} Object;

/* PyDict_Next */
typedef int (*NextItem)(void *dictionary, ptrdiff_t *position, Object **key, Object **value);

/* PyList_GetItem, PyTuple_GetItem */
typedef Object *(*GetItem)(void *sequence, ptrdiff_t position);

long all_in_dictionary(NextItem next, void *dictionary, void *key_type, void *value_type) {
  ptrdiff_t position = 0;
  Object *key, *value;
  while (next(dictionary, &position, &key, &value))
    if (key->type != key_type || value->type != value_type) return 0;
  return 1;
}

long all_in_sequence(GetItem get, void *sequence, ptrdiff_t count, void *type) {
  for (ptrdiff_t position = 0; position < count; position++) {
    Object *item = get(sequence, position);
    if (!item || item->type != type) return 0;
  }
  return 1;
}
