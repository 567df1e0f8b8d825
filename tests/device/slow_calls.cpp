// SPDX-License-Identifier: MIT
// For LD_PRELOAD: the calls of a busy program and of a slow disk. SLOW_FSYNC, SLOW_CLOSE and
// SLOW_DISCONNECT name a file each; fsync(), close() of a regular file that can be written, and
// rdma_disconnect() do not return while it exists. They make it one byte long when they are called.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

struct rdma_cm_id;

namespace {

void wait_for(const char* variable) {
    const char* const file = std::getenv(variable);
    if (file == nullptr || ::truncate(file, 1) != 0) return;
    while (::access(file, F_OK) == 0) ::usleep(1000);
}

} // namespace

extern "C" int fsync(int fd) {
    wait_for("SLOW_FSYNC");
    return ::fdatasync(fd);
}

extern "C" int close(int fd) {
    struct stat status{};
    const bool is_file = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    if (is_file && (::fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR) wait_for("SLOW_CLOSE");
    return static_cast<int>(::syscall(SYS_close, fd));
}

extern "C" int rdma_disconnect(rdma_cm_id* id) {
    wait_for("SLOW_DISCONNECT");
    using Function = int(rdma_cm_id*);
    static auto* const real = reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, "rdma_disconnect"));
    return real(id);
}
