//! Work beside an app that runs, which comes after all that it does.
//!
//! A low priority is not enough. Where the kernel shares the processors out among groups
//! (sessions by sched_autogroup, services by the cgroup of systemd) it counts within a group
//! only, and what an app does rarely, on a processor that another group has for itself, waits
//! some 70 ms for it (Linux 6.18, measured). So all who do such work leave the processors to
//! others now and then, at once.

use crate::ids::HostPid;
use crate::sys::task;
use std::cell::Cell;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What works beside others takes a tenth of what they get of a processor.
const NICE: i32 = 10;
/// After so much work all rest for so long: a processor that was taken is handed on within.
const WORK: Duration = Duration::from_millis(2);
const REST: Duration = Duration::from_micros(250);

/// Those who work have it together, who rests has it alone.
static WORKING: RwLock<()> = RwLock::new(());
thread_local! {
    /// Whether this thread lets others go first.
    static IS_POLITE: Cell<bool> = const { Cell::new(false) };
}
static RESTED: Mutex<Option<Instant>> = Mutex::new(None);

/// Whether this thread lets others go first: for those that it makes.
pub fn is_polite() -> bool {
    IS_POLITE.get()
}

/// Lets others go first; the threads that `job` makes have the same priority.
pub fn politely<T>(politely: bool, job: impl FnOnce() -> T) -> T {
    let own = HostPid(0);
    let before = task::nice(own).ok().filter(|_| politely);
    let changed = before.filter(|before| task::set_nice(own, NICE.max(*before)).is_ok());
    let was = IS_POLITE.replace(politely || is_polite());
    let done = job();
    IS_POLITE.set(was);
    if let Some(before) = changed {
        task::set_nice(own, before).ok();
    }
    done
}

/// A piece of work, of a millisecond or a few. Who lets others go first rests with all
/// others of that kind when it is time.
pub fn piece<T>(is_polite: bool, job: impl FnOnce() -> T) -> T {
    if !is_polite {
        return job();
    }
    let done = {
        let _working = WORKING.read().unwrap_or_else(PoisonError::into_inner);
        job()
    };
    rest();
    done
}

fn rest() {
    // Another sees to it.
    let Ok(mut rested) = RESTED.try_lock() else { return };
    if rested.is_some_and(|rested| rested.elapsed() < WORK) {
        return;
    }
    let _resting = WORKING.write().unwrap_or_else(PoisonError::into_inner);
    std::thread::sleep(REST);
    *rested = Some(Instant::now());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    /// While one rests nobody works, and all is done.
    #[test]
    fn all_rest_at_once() {
        let (working, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let work = || {
            working.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_micros(300));
            working.fetch_sub(1, Ordering::SeqCst);
            done.fetch_add(1, Ordering::SeqCst);
        };
        let over = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| politely(true, || (0..50).for_each(|_| piece(is_polite(), work)))))
                .collect();
            scope.spawn(|| {
                let mut rests = 0;
                while !over.load(Ordering::SeqCst) {
                    if let Ok(_alone) = WORKING.try_write() {
                        assert_eq!(working.load(Ordering::SeqCst), 0);
                        rests += 1;
                    }
                    thread::yield_now();
                }
                rests
            });
            for worker in workers {
                worker.join().unwrap();
            }
            over.store(true, Ordering::SeqCst);
        });
        assert_eq!(done.load(Ordering::SeqCst), 150);
        assert!(RESTED.lock().unwrap().is_some());
    }

    #[test]
    fn who_is_in_a_hurry_does_not_wait() {
        let _resting = WORKING.write().unwrap();
        assert_eq!(piece(is_polite(), || 7), 7);
    }
}
