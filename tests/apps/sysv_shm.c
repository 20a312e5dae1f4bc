/* System V shared memory, attached by two processes or none: content, id, key, owner, creator, mode; removed
 * while attached (IPC_RMID), kept in memory (SHM_LOCK). */
#include "check.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { LEN = 5 * 4096 };

static void named(const char *what, const void *at, key_t key)
{
    char want[64], line[512];
    snprintf(want, sizeof want, "/SYSV%08x (deleted)", (unsigned)key);
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps, "maps");
    int found = 0;
    while (!found && fgets(line, sizeof line, maps)) {
        unsigned long from;
        found = sscanf(line, "%lx-", &from) == 1 && from == (unsigned long)at && strstr(line, want);
    }
    fclose(maps);
    CHECK(found, "%s, expected to be named %s, got %s", what, want, line);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    key_t key = 0x41500000 | (getpid() & 0xffff);
    /* Some ids used up and given back, so that the id is not the first. */
    for (int i = 0; i < 3; i++)
        MUST(shmctl(MUST(shmget(IPC_PRIVATE, 4096, 0600)), IPC_RMID, NULL));
    int id = MUST(shmget(key, LEN, IPC_CREAT | IPC_EXCL | 0640));
    int doomed = MUST(shmget(IPC_PRIVATE, LEN, 0600));
    int lonely = MUST(shmget(key + 1, LEN, IPC_CREAT | 0604));
    char *then = MUST(shmat(lonely, NULL, 0));
    check_fill(then, LEN - 4096, 4); /* its last page is never touched */
    MUST(shmdt(then));
    int foreign = -1;
    if (geteuid() == 0) {
        MUST(seteuid(4321));
        foreign = MUST(shmget(IPC_PRIVATE, 100, 0600));
        MUST(seteuid(0));
    }
    char *map = MUST(shmat(id, NULL, 0)), *view = MUST(shmat(id, NULL, SHM_RDONLY));
    char *last = MUST(shmat(doomed, NULL, 0));
    MUST(shmctl(doomed, IPC_RMID, NULL)); /* lives on while attached */
    /* Two that were removed, and one that is not, all made with one key. */
    int former[2];
    char *of_former[2];
    for (int i = 0; i < 2; i++) {
        former[i] = MUST(shmget(key + 2, LEN, IPC_CREAT | IPC_EXCL | 0606));
        of_former[i] = MUST(shmat(former[i], NULL, 0));
        check_fill(of_former[i], LEN, 5 + i);
        MUST(shmctl(former[i], IPC_RMID, NULL));
    }
    int successor = MUST(shmget(key + 2, 4096, IPC_CREAT | IPC_EXCL | 0600));
    int kept = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    MUST(shmctl(kept, SHM_LOCK, NULL));
    /* Kept apart by what was done to their parts, one with parts that are gone, of which
     * another mapping has the place. */
    char *apart = MUST(shmat(id, NULL, 0)), *partly = MUST(shmat(id, NULL, 0));
    MUST(madvise(apart, 4096, MADV_DONTFORK));
    MUST(mprotect(apart + 2 * 4096, 4096, PROT_READ));
    MUST(munmap(partly, 4096));
    MUST(munmap(partly + 3 * 4096, 4096));
    char *between = MUST(mmap(partly + 3 * 4096, 4096, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    *between = 'b';
    check_fill(map, LEN - 4096, 1);
    check_fill(last, LEN, 2);
    volatile char *turn = map + LEN - 1;
    pid_t pid = CHECK_FORK({
        MUST(shmdt(of_former[1]));
        *turn = 2;
        while (*turn != 1)
            check_pause();
        check_filled("in the child", map, 4096, 1);
        check_filled("removed, in the child", of_former[0], LEN, 5);
        check_fill(map, 4096, 3);
    });
    while (*turn != 2)
        check_pause();
    struct shmid_ds ds;
    MUST(shmctl(id, IPC_STAT, &ds));
    const unsigned long attached = ds.shm_nattch;
    check_freeze_here();
    MUST(shmctl(id, IPC_STAT, &ds));
    CHECK_EQ("key", key, ds.shm_perm.__key);
    CHECK_EQ("mode", 0640, ds.shm_perm.mode & 0777);
    CHECK_EQ("size", LEN, ds.shm_segsz);
    CHECK_EQ("attached", attached, ds.shm_nattch);
    CHECK_EQ("owner", geteuid(), ds.shm_perm.uid);
    CHECK_EQ("id by key", id, MUST(shmget(key, LEN, 0)));
    for (int i = 0; i < 2; i++) {
        MUST(shmctl(former[i], IPC_STAT, &ds));
        CHECK_EQ("mode of a removed one", SHM_DEST | 0606, ds.shm_perm.mode);
        CHECK_EQ("key of a removed one", IPC_PRIVATE, ds.shm_perm.__key);
        CHECK_EQ("attachments of a removed one", i ? 1 : 2, ds.shm_nattch);
        named("a removed one", of_former[i], key + 2);
        check_filled("a removed one", of_former[i], LEN, 5 + i);
    }
    MUST(shmdt(of_former[1]));
    CHECK_EQ("a removed one that was detached", -1, shmctl(former[1], IPC_STAT, &ds));
    CHECK_EQ("who has its key", successor, MUST(shmget(key + 2, 0, 0)));
    MUST(shmctl(successor, IPC_RMID, NULL));
    MUST(shmctl(kept, IPC_STAT, &ds));
    CHECK_EQ("mode of one that stays in memory", SHM_LOCKED | 0600, ds.shm_perm.mode);
    MUST(shmctl(kept, IPC_RMID, NULL));
    MUST(shmctl(lonely, IPC_STAT, &ds));
    CHECK_EQ("mode of the one nobody has attached", 0604, ds.shm_perm.mode & 0777);
    CHECK_EQ("its size", LEN, ds.shm_segsz);
    CHECK_EQ("its attachments", 0, ds.shm_nattch);
    CHECK_EQ("its id by key", lonely, MUST(shmget(key + 1, LEN, 0)));
    then = MUST(shmat(lonely, NULL, 0));
    check_filled("the one nobody has attached", then, LEN - 4096, 4);
    CHECK_EQ("its untouched end", 0, then[LEN - 1]);
    MUST(shmdt(then));
    MUST(shmctl(lonely, IPC_RMID, NULL));
    if (foreign >= 0) {
        MUST(shmctl(foreign, IPC_STAT, &ds));
        CHECK_EQ("creator", 4321, ds.shm_perm.cuid);
        MUST(shmctl(foreign, IPC_RMID, NULL));
    }
    *turn = 1;
    check_child_ok(pid);
    MUST(shmdt(of_former[0]));
    CHECK_EQ("a removed one that nobody has", -1, shmctl(former[0], IPC_STAT, &ds));
    check_filled("written by the child", map, 4096, 3);
    check_filled("kept apart", apart, 4096, 3);
    CHECK(!memcmp(partly + 4096, map + 4096, 2 * 4096), "what is left of a view, expected the segment's bytes");
    CHECK_EQ("in the place of a part", 'b', *between);
    apart[4096] = partly[2 * 4096];
    CHECK_EQ("through another view", partly[2 * 4096], map[4096]);
    CHECK_EQ("unmapped part", -1, msync(partly, 4096, MS_ASYNC));
    MUST(shmdt(apart));
    CHECK_EQ("unmapped with the rest", -1, msync(apart + 4 * 4096, 4096, MS_ASYNC));
    check_filled("read-only view", view, 4096, 3);
    check_filled("segment without a name", last, LEN, 2);
    MUST(shmctl(doomed, IPC_STAT, &ds));
    CHECK_EQ("its mode", SHM_DEST | 0600, ds.shm_perm.mode);
    MUST(shmdt(last));
    CHECK_EQ("detached", -1, shmctl(doomed, IPC_STAT, &ds));
    MUST(shmdt(view));
    CHECK_EQ("detach twice", -1, shmdt(view));
    MUST(shmctl(id, IPC_RMID, NULL));
    return 0;
}
