/* Simulates a full disk for chosen files. It is preloaded (LD_PRELOAD) into the process under test, because the writes
   of libraries in any language end in these calls.

   FULL_DISK: writes to files whose path matches this pattern (fnmatch) fail with ENOSPC.
   FULL_DISK_LOG: the path of every regular file written to is appended to this file. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *path) {
    static __thread char last[PATH_MAX];
    const char *log = getenv("FULL_DISK_LOG");
    if (!log || !*log || !strcmp(path, last) || !strcmp(path, log)) return;
    strncpy(last, path, sizeof last - 1);
    int fd = open(log, O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (fd < 0) return;
    char line[PATH_MAX + 1];
    int length = snprintf(line, sizeof line, "%s\n", path);
    REAL(write)(fd, line, length);
    close(fd);
}

static int refused(int fd) {
    struct stat status;
    int kept = errno;
    char name[32], path[PATH_MAX];
    if (fstat(fd, &status) || !S_ISREG(status.st_mode)) { errno = kept; return 0; }
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    note(path);
    const char *pattern = getenv("FULL_DISK");
    if (!pattern || !*pattern || fnmatch(pattern, path, 0)) { errno = kept; return 0; }
    errno = ENOSPC;
    return 1;
}

#define WRITER(type, name, params, args) \
    type name params { return refused(fd) ? -1 : REAL(name) args; }

WRITER(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
WRITER(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
WRITER(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITER(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRITER(ssize_t, sendfile, (int fd, int from, off_t *at, size_t size), (fd, from, at, size))
WRITER(ssize_t, sendfile64, (int fd, int from, off64_t *at, size_t size), (fd, from, at, size))
WRITER(int, ftruncate, (int fd, off_t size), (fd, size))
WRITER(int, ftruncate64, (int fd, off64_t size), (fd, size))
WRITER(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
WRITER(int, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))

int posix_fallocate(int fd, off_t at, off_t size) {
    return refused(fd) ? ENOSPC : REAL(posix_fallocate)(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size) {
    return refused(fd) ? ENOSPC : REAL(posix_fallocate64)(fd, at, size);
}

ssize_t copy_file_range(int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags) {
    return refused(fd) ? -1 : REAL(copy_file_range)(from, at, fd, to, size, flags);
}
