/* The functions by which NumPy allocates the memory of arrays (NEP 49): see array_allocator.py.
 *
 * They call nothing of Python: NumPy frees arrays while an exception is set, and without looking at
 * signals. Any thread may call them at any time. array_functions.py contains their machine code:
 *
 *   gcc -Os -ffreestanding -fPIC -fno-stack-protector -fcf-protection=none \
 *       -fno-asynchronous-unwind-tables -fno-toplevel-reorder -c array_functions.c
 *   objcopy -O binary -j .text array_functions.o array_functions.bin
 */
#include <stddef.h>
#include <stdint.h>

enum { READY = 1, USED };
enum { PAGE_BYTES = 4096, HEADER_BYTES = 64, MAX_SLOTS = 256 };

/* Memory for one array. */
typedef struct {
  char *address;
  size_t capacity;
  long state;
  long was_used;
} Slot;

/* What stands before an array that has a slot: the bytes before it belong to the arena. */
typedef struct {
  char of_arena[24];
  uint64_t mark[2];
  Slot *slot;
  char unused[16];
} Header;

/* NumPy's own functions. */
typedef struct {
  void *context;
  void *(*allocate)(void *, size_t);
  void *(*allocate_zeros)(void *, size_t, size_t);
  void *(*reallocate)(void *, void *, size_t);
  void (*release)(void *, void *, size_t);
} Functions;

typedef struct {
  Functions numpy;
  uint64_t mark[2]; /* random, so that no other memory has it */
  size_t smallest;  /* smaller arrays have no slot */
  long count;
  Slot *slots[MAX_SLOTS];
  long missed_count; /* arrays for which there was no slot */
  size_t missed[MAX_SLOTS];
} Pool;

static inline Slot *slot_of(Pool *pool, char *array) {
  /* Only what begins here in a page can have a slot; so the header is in the same page. */
  if (((uintptr_t)array & (PAGE_BYTES - 1)) != HEADER_BYTES) return NULL;
  Header *header = (Header *)(array - HEADER_BYTES);
  if (header->mark[0] != pool->mark[0] || header->mark[1] != pool->mark[1]) return NULL;
  return header->slot;
}

static inline char *take(Pool *pool, size_t size) {
  if (size < pool->smallest) return NULL;
  for (long n = 0; n < pool->count; n++) {
    Slot *slot = pool->slots[n];
    long ready = READY;
    if (size <= slot->capacity && size >= slot->capacity - slot->capacity / 4 &&
        __atomic_compare_exchange_n(&slot->state, &ready, USED, 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED)) {
      slot->was_used = 1;
      return slot->address;
    }
  }
  long missed = pool->missed_count;
  if (missed < MAX_SLOTS) {
    pool->missed[missed] = size;
    pool->missed_count = missed + 1;
  }
  return NULL;
}

void *allocate(Pool *pool, size_t size) {
  char *found = take(pool, size);
  return found ? found : pool->numpy.allocate(pool->numpy.context, size);
}

void *allocate_zeros(Pool *pool, size_t count, size_t size) {
  size_t left;
  char *found = __builtin_mul_overflow(count, size, &left) ? NULL : take(pool, left);
  if (!found) return pool->numpy.allocate_zeros(pool->numpy.context, count, size);
  void *position = found;
  __asm__ volatile("rep stosb" : "+D"(position), "+c"(left) : "a"(0) : "memory");
  return found;
}

void release(Pool *pool, char *array, size_t size) {
  Slot *slot = slot_of(pool, array);
  if (slot)
    __atomic_store_n(&slot->state, READY, __ATOMIC_RELEASE);
  else
    pool->numpy.release(pool->numpy.context, array, size);
}

void *reallocate(Pool *pool, char *array, size_t size) {
  Slot *slot = slot_of(pool, array);
  if (!slot) return pool->numpy.reallocate(pool->numpy.context, array, size);
  size_t left = slot->capacity;
  if (size <= left) return array;
  char *moved = pool->numpy.allocate(pool->numpy.context, size);
  if (!moved) return NULL;
  void *to = moved, *from = array;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(left) : : "memory");
  __atomic_store_n(&slot->state, READY, __ATOMIC_RELEASE);
  return moved;
}
