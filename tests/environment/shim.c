/* Stands between a program and its C library: the wall clock is what a file says, and calls on files fail
 * where it says so. The file, named by HELIOS_SHIM, is mapped, so that it can be changed while the program
 * runs. What goes past the library, such as io_uring, goes past this too. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* `Shim` in shim.rs: eight words of 64 bits. */
struct orders {
    _Atomic int64_t wall_offset_s;
    /* How many calls are still to fail. */
    _Atomic int64_t syncs_to_fail;
    _Atomic int64_t writes_to_fail;
    _Atomic int64_t reads_to_fail;
    /* How many did, and how many syncs were let through. */
    _Atomic int64_t failed;
    _Atomic int64_t synced;
    _Atomic int64_t unused[2];
};

static struct orders *orders(void) {
    static struct orders *_Atomic mapped;
    struct orders *found = atomic_load(&mapped);
    if (found) return found;
    int fd = open(getenv("HELIOS_SHIM"), O_RDWR | O_CLOEXEC);
    found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || found == MAP_FAILED) abort();
    close(fd);
    atomic_store(&mapped, found);
    return found;
}

/* Whether this call is one of those that fail. */
static int fails(_Atomic int64_t *left) {
    int64_t now = atomic_load(left);
    while (now > 0)
        if (atomic_compare_exchange_weak(left, &now, now - 1)) {
            atomic_fetch_add(&orders()->failed, 1);
            errno = EIO;
            return 1;
        }
    return 0;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *time) {
    static typeof(&clock_gettime) _Atomic real;
    if (!atomic_load(&real)) atomic_store(&real, REAL(clock_gettime));
    int done = atomic_load(&real)(clock, time);
    if (done == 0 && clock == CLOCK_REALTIME) time->tv_sec += atomic_load(&orders()->wall_offset_s);
    return done;
}

int fdatasync(int fd) {
    if (fails(&orders()->syncs_to_fail)) return -1;
    atomic_fetch_add(&orders()->synced, 1);
    return REAL(fdatasync)(fd);
}

/* Half of it is written before it fails. */
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    if (atomic_load(&orders()->writes_to_fail) > 0) {
        REAL(pwrite64)(fd, bytes, count / 2, at);
        if (fails(&orders()->writes_to_fail)) return -1;
    }
    return REAL(pwrite64)(fd, bytes, count, at);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    if (fails(&orders()->reads_to_fail)) return -1;
    return REAL(pread64)(fd, bytes, count, at);
}
