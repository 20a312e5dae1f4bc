//! One small self-checking program per kernel object, each frozen and restored
//! in several ways (`appshot_tests::trial`). `APPSHOT_TEST_NO_SNAPSHOT=1` runs
//! the programs alone, to prove that they are right.

use appshot_tests::app_test;

app_test!(anon_memory);
app_test!(anon_after);
app_test!(maps_equal);
