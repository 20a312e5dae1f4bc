/* The environment that the app was started with, and what it added. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *given = getenv("APPSHOT_TEST_ENV");
    char *copy = given ? strdup(given) : NULL;
    MUST(setenv("ADDED", "by the app", 1));
    check_freeze_here();
    const char *now = getenv("APPSHOT_TEST_ENV"), *added = getenv("ADDED");
    CHECK(!copy == !now && (!copy || !strcmp(copy, now)), "given variable, expected %s, got %s",
          copy ? copy : "none", now ? now : "none");
    CHECK(added && !strcmp(added, "by the app"), "added variable, expected it, got %s", added ? added : "none");
    return 0;
}
