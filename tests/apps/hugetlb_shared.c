/* Huge pages that were set aside and are shared: anonymous, memfds with seals, with holes, System V, also
 * removed, of another user, of odd sizes */
#include "hugetlb.h"
#include <linux/capability.h>
#include <sys/ipc.h>
#include <sys/shm.h>

static long pages_of(int fd)
{
    struct stat st;
    MUST(fstat(fd, &st));
    return st.st_blocks * 512 / HUGE;
}

static void child(volatile int *shared)
{
    while (!shared[1])
        check_pause();
    CHECK_EQ("written by the parent", 42, shared[1]);
    shared[2] = 43;
}

static int sealed_memfd(char **view)
{
    int fd = MUST(memfd_create("sealed", MFD_HUGETLB | MFD_ALLOW_SEALING | MFD_CLOEXEC));
    MUST(ftruncate(fd, 3 * HUGE));
    char *at = MUST(mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0));
    check_fill(at + HUGE, HUGE, 3);
    MUST(munmap(at, 3 * HUGE));
    MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK));
    /* One page is the file's, one is read as a hole, one is the app's own. */
    *view = MUST(mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0));
    check_fill(*view + 2 * HUGE, HUGE, 4);
    return fd;
}

/* shm_group is not asked of who has the right to lock memory. */
static int another_users(size_t bytes)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2];
    MUST(setegid(4321));
    MUST(seteuid(4321));
    MUST(syscall(SYS_capget, &head, caps));
    caps[0].effective |= 1 << CAP_IPC_LOCK;
    if (syscall(SYS_capset, &head, caps))
        SKIP("CAP_IPC_LOCK");
    int id = shmget(IPC_PRIVATE, bytes, SHM_HUGETLB | 0600);
    MUST(seteuid(0));
    MUST(setegid(0));
    return id;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    need_huge_pages();
    int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB;
    char *shared = MUST(mmap(NULL, 4 * HUGE, PROT_READ | PROT_WRITE, flags, -1, 0));
    volatile int *step = (volatile int *)(shared + 2 * HUGE);
    check_fill(shared, HUGE, 1);
    step[0] = 1;
    MUST(munmap(shared + HUGE, HUGE));
    pid_t pid = CHECK_FORK(child(step));

    int memfd = MUST(memfd_create("huge", MFD_HUGETLB | MFD_CLOEXEC));
    MUST(ftruncate(memfd, 4 * HUGE));
    char *half = MUST(mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd, HUGE));
    check_fill(half, HUGE, 2);
    half[HUGE] = 0; /* there, and zero */
    MUST(lseek(memfd, HUGE + 10, SEEK_SET));
    int twin = MUST(dup(memfd));
    char *view;
    int sealed = sealed_memfd(&view);
    int unmapped = MUST(memfd_create("unmapped", MFD_HUGETLB | MFD_CLOEXEC));
    MUST(ftruncate(unmapped, 2 * HUGE));
    MUST(fallocate(unmapped, 0, HUGE, HUGE));

    key_t key = 0x41710000 | (getpid() & 0xffff);
    int segment = MUST(shmget(key, 2 * HUGE, IPC_CREAT | IPC_EXCL | SHM_HUGETLB | 0600));
    char *attached = MUST((char *)shmat(segment, NULL, 0));
    check_fill(attached + HUGE, HUGE, 6);
    int removed = MUST(shmget(key + 1, HUGE, IPC_CREAT | IPC_EXCL | SHM_HUGETLB | 0600));
    char *of_removed = MUST((char *)shmat(removed, NULL, 0));
    check_fill(of_removed, HUGE, 8);
    MUST(shmctl(removed, IPC_RMID, NULL));
    /* Of another user, and of an odd size. */
    int odd = MUST(another_users(HUGE + 5000)), lonely = MUST(another_users(5000));
    char *of_odd = MUST((char *)shmat(odd, NULL, 0));
    check_fill(of_odd, 2 * HUGE, 9);
    int alone = MUST(shmget(IPC_PRIVATE, HUGE, SHM_HUGETLB | 0600));
    char *filled = MUST((char *)shmat(alone, NULL, 0));
    check_fill(filled, HUGE, 7);
    MUST(shmdt(filled));

    check_freeze_here();
    CHECK_EQ("page size", HUGE / 1024, told_of(shared, "KernelPageSize"));
    CHECK_EQ("reserved", 0, has_flag(shared, " nr"));
    CHECK_EQ("not reserved", 1, has_flag(half, " nr"));
    check_filled("shared", shared, HUGE, 1);
    step[1] = 42;
    check_child_ok(pid);
    CHECK_EQ("written by the child", 43, step[2]);
    check_zero("untouched", shared + 3 * HUGE, HUGE);

    struct stat st;
    MUST(fstat(memfd, &st));
    CHECK_EQ("size of the memfd", 4 * HUGE, st.st_size);
    CHECK_EQ("page size of the memfd", HUGE, st.st_blksize);
    CHECK_EQ("pages of the memfd", 2, pages_of(memfd));
    CHECK_EQ("pages of the sealed one", 1, pages_of(sealed));
    CHECK_EQ("pages of the unmapped one", 1, pages_of(unmapped));
    char bytes[100];
    CHECK_EQ("read", 100, MUST(read(twin, bytes, 100)));
    for (int i = 0; i < 100; i++)
        CHECK_EQ("byte", check_byte(2, i + 10), (unsigned char)bytes[i]);
    CHECK_EQ("offset that is shared", HUGE + 110, MUST(lseek(memfd, 0, SEEK_CUR)));
    check_filled("the mapping of the memfd", half, HUGE, 2);
    half[5] ^= 1;
    MUST(pread(twin, bytes, 1, HUGE + 5));
    CHECK_EQ("one object", (unsigned char)half[5], (unsigned char)bytes[0]);

    CHECK_EQ("seals", F_SEAL_WRITE | F_SEAL_SHRINK, MUST(fcntl(sealed, F_GET_SEALS)));
    check_filled("sealed", view + HUGE, HUGE, 3);
    check_filled("the app's own page", view + 2 * HUGE, HUGE, 4);
    check_zero("hole", view, HUGE);
    CHECK_EQ("truncate a sealed one", -1, ftruncate(sealed, HUGE));

    CHECK_EQ("id by key", segment, MUST(shmget(key, 0, 0)));
    struct shmid_ds ds;
    MUST(shmctl(segment, IPC_STAT, &ds));
    CHECK_EQ("size of the segment", 2 * HUGE, ds.shm_segsz);
    CHECK_EQ("page size of the segment", HUGE / 1024, told_of(attached, "KernelPageSize"));
    check_filled("segment", attached + HUGE, HUGE, 6);
    check_zero("hole of the segment", attached, HUGE);
    filled = MUST((char *)shmat(alone, NULL, 0));
    check_filled("segment that nobody had", filled, HUGE, 7);
    MUST(shmctl(removed, IPC_STAT, &ds));
    CHECK_EQ("mode of a removed one", SHM_DEST | 0600, ds.shm_perm.mode & 01777);
    check_filled("removed segment", of_removed, HUGE, 8);
    MUST(shmdt(of_removed));
    CHECK_EQ("removed segment that nobody has", -1, shmctl(removed, IPC_STAT, &ds));
    MUST(shmctl(odd, IPC_STAT, &ds));
    CHECK_EQ("odd size", HUGE + 5000, ds.shm_segsz);
    CHECK_EQ("creator", 4321, ds.shm_perm.cuid);
    check_filled("segment of odd size", of_odd, 2 * HUGE, 9);
    MUST(shmctl(lonely, IPC_STAT, &ds));
    CHECK_EQ("odd size of one that nobody has", 5000, ds.shm_segsz);
    MUST(shmctl(odd, IPC_RMID, NULL));
    MUST(shmctl(lonely, IPC_RMID, NULL));
    MUST(shmctl(segment, IPC_RMID, NULL));
    MUST(shmctl(alone, IPC_RMID, NULL));
    return 0;
}
