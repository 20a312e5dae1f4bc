//! Cycle after cycle of real software with the programs as they are installed: no
//! process, descriptor, mapping, file, cgroup, mount or memory may be left by any
//! of them, neither in the app nor in the daemons that stay.
//!
//! ```text
//! cargo build --workspace
//! cargo test -p appshot-tests --test soak                      3 cycles of the light ones
//! APPSHOT_CYCLES=50 cargo test -p appshot-tests --test soak -- --include-ignored --nocapture
//! ```
//!
//! What is counted at the end of the first cycle, when everything is warm, is held
//! against every later one. One line a trial tells it all.

use anyhow::Result;
use appshot_tests::app::Place;
use appshot_tests::applications;
use appshot_tests::installed::Installed;
use appshot_tests::scenario::{self, Server};
use appshot_tests::servers;
use appshot_tests::verdict::{need_root, on_own_thread, skip, switched_on};
use std::sync::{Mutex, PoisonError};

static ALONE: Mutex<()> = Mutex::new(());

type SetUp = fn(&Place, scenario::Drive<'_>) -> Result<()>;

fn soak(name: &'static str, set_up: SetUp, daemons: bool) {
    let test = format!("{name} by {}", if daemons { "daemons" } else { "commands" });
    on_own_thread(&test.clone(), move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        need_root()?;
        if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
            return skip("snapshots, which APPSHOT_TEST_NO_SNAPSHOT turns off");
        }
        let drive = |place: &Place, server: &Server<'_>| {
            let mut installed = Installed::new(place, daemons)?;
            scenario::drive(place, server, &mut installed, |installed| {
                installed.judge(server, &test)
            })
        };
        set_up(&Place::new(name)?, &drive)
    });
}

macro_rules! soaked {
    ($name:ident, light) => {
        mod $name {
            #[test]
            fn by_commands() {
                super::soak(stringify!($name), super::servers::$name, false);
            }
            #[test]
            fn by_daemons() {
                super::soak(stringify!($name), super::servers::$name, true);
            }
        }
    };
    ($name:ident, heavy) => {
        mod $name {
            #[test]
            #[ignore = "a long run"]
            fn by_commands() {
                super::soak(stringify!($name), super::servers::$name, false);
            }
            #[test]
            #[ignore = "a long run"]
            fn by_daemons() {
                super::soak(stringify!($name), super::servers::$name, true);
            }
        }
    };
}
appshot_tests::each_scenario!(soaked);

macro_rules! application {
    ($name:ident, $state:ident) => {
        mod $name {
            #[test]
            #[ignore = "a long run"]
            fn by_commands() {
                super::soak(stringify!($name), super::applications::$name, false);
            }
            #[test]
            #[ignore = "a long run"]
            fn by_daemons() {
                super::soak(stringify!($name), super::applications::$name, true);
            }
        }
    };
}
appshot_tests::each_application!(application);
