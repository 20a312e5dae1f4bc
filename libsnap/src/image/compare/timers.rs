//! Timers of an app that stands still go on: those that fell due since have sent a signal or
//! counted it. That is taken back, so far as it can have been they.

use super::{Named, SLACK_NS};
use crate::image::records::{FileKind, PosixTimer, ProcessRecord, SigInfo, TimerValue};

/// `si_code` of a signal that a POSIX timer has sent, and of one by the kernel (sigaction(2)).
const SI_TIMER: u32 = -2i32 as u32;
const SI_KERNEL: u32 = 0x80;

/// Puts what timers of `one` may have done in this time back in `other`.
pub(super) fn take_back(one: &Named, other: &mut Named, passed_ns: u64) {
    for file in &mut other.manifest.files {
        let former = one.manifest.files.iter().find(|former| former.id == file.id);
        let (
            Some(FileKind::Timerfd { ticks, time, .. }),
            FileKind::Timerfd {
                ticks: now, time: left, ..
            },
        ) = (former.map(|former| &former.kind), &mut file.kind)
        else {
            continue;
        };
        let expired = back(*time, left, passed_ns);
        if (*ticks..=ticks.saturating_add(expired)).contains(now) {
            *now = *ticks;
        }
    }
    for image in &mut other.images {
        let mut formers = one.images.iter();
        let Some(former) = formers.find(|former| former.process.pid == image.process.pid) else {
            continue;
        };
        let sent = process(&former.process, &mut image.process, passed_ns);
        take_signals_back(&former.process.pending, &mut image.process.pending, &sent);
        for (thread, former) in image.threads.iter_mut().zip(&former.threads) {
            take_signals_back(&former.record.pending, &mut thread.record.pending, &sent);
        }
    }
}

/// One that was waiting before waits for itself, beside which the next one may look alike.
fn take_signals_back(before: &[SigInfo], pending: &mut Vec<SigInfo>, sent: &[(u32, u32)]) {
    let mut before = before.to_vec();
    pending.retain(|signal| match before.iter().position(|former| former == signal) {
        Some(at) => {
            before.swap_remove(at);
            true
        }
        None => !sent.contains(&sender(signal)),
    });
}

/// Its timers, but for signals: answers what they may have sent.
fn process(one: &ProcessRecord, other: &mut ProcessRecord, passed_ns: u64) -> Vec<(u32, u32)> {
    let mut sent = Vec::new();
    // ITIMER_REAL: the others count CPU time, and there was none.
    if back(one.itimers[0], &mut other.itimers[0], passed_ns) > 0 {
        sent.push((libc::SIGALRM as u32, SI_KERNEL));
    }
    for timer in &mut other.posix_timers {
        let mut formers = one.posix_timers.iter();
        let former: Option<&PosixTimer> = formers.find(|former| former.id == timer.id);
        let Some(former) = former.filter(|former| back(former.time, &mut timer.time, passed_ns) > 0) else {
            continue;
        };
        timer.overrun = former.overrun;
        sent.push((former.signal as u32, SI_TIMER));
    }
    sent
}

/// Puts a timer back that has gone on as it should; answers how often it has fallen due at
/// most.
fn back(one: TimerValue, other: &mut TimerValue, passed_ns: u64) -> u64 {
    let passed_ns = passed_ns.saturating_add(SLACK_NS);
    let due = one.value_ns > 0 && one.value_ns <= passed_ns;
    // Armed for the next period, counted from a freeze before it was read, or not at all.
    let latest = one.interval_ns.max(one.value_ns).saturating_add(passed_ns);
    if !due || other.interval_ns != one.interval_ns || other.value_ns > latest {
        return 0;
    }
    *other = one;
    1 + (passed_ns - one.value_ns)
        .checked_div(one.interval_ns)
        .unwrap_or_default()
}

/// Number and `si_code`.
fn sender(signal: &SigInfo) -> (u32, u32) {
    let word = |at: usize| signal.0.get(at).copied().unwrap_or_default();
    (word(0) as u32, word(1) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(interval_ns: u64, value_ns: u64) -> TimerValue {
        TimerValue { interval_ns, value_ns }
    }

    #[test]
    fn a_timer_may_send_what_waits_already() {
        let signal = |number: u64, code: u32| {
            let mut words = [0; 16];
            words[..2].copy_from_slice(&[number, u64::from(code)]);
            SigInfo(words)
        };
        let (timer, other) = (|| signal(34, SI_TIMER), || signal(10, 0));
        let mut pending = vec![timer(), other(), timer(), timer()];
        take_signals_back(&[timer(), other()], &mut pending, &[(34, SI_TIMER)]);
        assert_eq!(pending, [timer(), other()]);
        let mut pending = vec![timer(), timer()];
        take_signals_back(&[timer()], &mut pending, &[]);
        assert_eq!(pending, [timer(), timer()], "no timer fell due");
    }

    #[test]
    fn a_timer_goes_on_as_far_as_time_has() {
        const MS: u64 = 1_000_000;
        let back = |one: TimerValue, mut other: TimerValue, passed: u64| {
            let times = back(one, &mut other, passed * MS);
            (times, other == one)
        };
        let often = timer(10 * MS, 3 * MS);
        assert_eq!(back(often, timer(10 * MS, 9 * MS), 30), (4, true), "twice or thrice");
        assert_eq!(back(often, timer(10 * MS, 60 * MS), 30), (0, false), "later than ever");
        assert_eq!(back(often, timer(20 * MS, 9 * MS), 30), (0, false), "another period");
        let once = timer(0, 20 * MS);
        assert_eq!(back(once, timer(0, 0), 30), (1, true));
        assert_eq!(back(once, timer(0, 0), 5), (0, false), "it cannot have been due");
        assert_eq!(
            back(timer(10 * MS, 0), timer(10 * MS, 3 * MS), 30),
            (0, false),
            "it was not armed"
        );
    }
}
