/* A session and a process group whose leaders have ended, with members left. */
#include "check.h"

static volatile int *word;

static void member(int i, pid_t pgid, pid_t sid)
{
    word[i] = 1;
    check_wait();
    CHECK_EQ("process group", pgid, getpgrp());
    CHECK_EQ("session", sid, getsid(0));
    word[i] = 2;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    word = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    /* The session leader ends, its child stays. */
    check_child_ok(CHECK_FORK({
        pid_t sid = MUST(setsid());
        CHECK_FORK({
            while (getppid() == sid)
                check_pause();
            member(0, sid, sid);
        });
    }));
    /* The group leader ends; a brother in its group stays. */
    int gate[2];
    char c;
    MUST(pipe(gate));
    pid_t leader = CHECK_FORK({
        MUST(setpgid(0, 0));
        word[3] = 1;
        close(gate[1]);
        while (read(gate[0], &c, 1) > 0)
            ;
    });
    while (!word[3])
        check_pause();
    pid_t brother = CHECK_FORK({
        close(gate[1]);
        MUST(setpgid(0, leader));
        word[4] = 1;
        member(1, leader, getsid(0));
    });
    while (!word[4])
        check_pause();
    close(gate[0]);
    close(gate[1]);
    check_child_ok(leader);
    while (!word[0] || !word[1])
        check_pause();
    check_freeze_here();
    check_child_ok(brother);
    int64_t deadline = check_now_ms() + 20000;
    while (word[0] != 2)
        CHECK(check_now_ms() < deadline, "member of a leaderless session, expected to be right, got no word");
    return 0;
}
