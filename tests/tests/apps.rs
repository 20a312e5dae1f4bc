//! One small self-checking program per kernel object, each frozen and restored
//! in several ways (`appshot_tests::trial`). `APPSHOT_TEST_NO_SNAPSHOT=1` runs
//! the programs alone, to prove that they are right.
//!
//! `alone`: owns something of which the host has one (a port, a path, a file it
//! changes). `clocked`: is away for a while. `ticking`: its timers tick meanwhile. `restless`, `handlers`: changes by
//! itself. `refused`: is refused by name, as a check foretells. `own_network`: begins in a network
//! of its own, and is restored into the host's; `own_networks`: into another one of its own.

use appshot_tests::{app_test, programs};
use std::collections::BTreeSet;

// Memory.
app_test!(anon_memory);
app_test!(anon_after);
app_test!(maps_equal);
app_test!(huge_pages);
app_test!(madvise_flags);
app_test!(guards);
app_test!(memory_policy);
app_test!(sealed_memory);
app_test!(droppable);
app_test!(pkeys);
app_test!(hugetlb);
app_test!(hugetlb_shared);
app_test!(userfaultfd, refused);
app_test!(lock_future);
app_test!(lock_on_fault);
app_test!(lazy_storm);
app_test!(lazy_watch);
app_test!(private_file);
app_test!(shared_file, alone);
app_test!(shared_anon);
app_test!(memfd);
app_test!(memfd_sealed);
app_test!(stack_growth);
app_test!(memory_churn, restless);
app_test!(forked_memory);
app_test!(forked_pages);
app_test!(sysv_shm);
app_test!(sysv_sem);
app_test!(ipc_settings);
app_test!(sysv_msg);
app_test!(mqueue);
app_test!(mqueue_closed);
app_test!(mqueue_notify);
app_test!(mqueue_blocked);
app_test!(posix_sem);

// Threads and processors.
app_test!(registers);
app_test!(registers_in_syscall);
app_test!(threads100);
app_test!(thread_churn, restless);
app_test!(robust_mutex);
app_test!(rseq);
app_test!(rseq_abort);
app_test!(scheduling);
app_test!(realtime);
app_test!(deadline);
app_test!(steadfast);
app_test!(steadfast_forks, restless);

// Signals.
app_test!(sigactions);
app_test!(sigmask);
app_test!(sigaltstack);
app_test!(sigaltstack_inside);
app_test!(pending_signals);
app_test!(signalfd);
app_test!(sigprof_busy, handlers);

// Time.
app_test!(vdso);
app_test!(vdso_away, clocked);
app_test!(vdso_bridge);
app_test!(itimers, clocked);
app_test!(itimer_fires, clocked);
app_test!(posix_timers, clocked);
app_test!(timerfd, clocked);
app_test!(timers_count, clocked, ticking);

// What a process is.
app_test!(credentials);
app_test!(credentials_thread);
app_test!(no_new_privs);
app_test!(landlock, refused);
app_test!(landlock_thread, refused);
app_test!(seccomp);
app_test!(seccomp_threads);
app_test!(seccomp_strict);
app_test!(rlimits);
app_test!(cwd_umask);
app_test!(chroot, alone);
app_test!(names);
app_test!(names_bytes, alone);
app_test!(environment);
app_test!(personality);
app_test!(dumpable);
app_test!(process_flags);
app_test!(settings);

// How processes belong together.
app_test!(sessions);
app_test!(dead_leaders);
app_test!(zombies);
app_test!(zombie_core, refused);
app_test!(stopped_child);
app_test!(continued_child);
app_test!(pdeathsig);
app_test!(subreaper);
app_test!(tree100);
app_test!(forker, restless);
app_test!(namespace_uts);
app_test!(namespace_first);
app_test!(namespace_fd);
app_test!(namespace_left, refused);
app_test!(namespace_abandoned, refused);
app_test!(namespace_swapped, refused);
app_test!(proc_sysvipc, refused);
app_test!(network_altered, refused);
app_test!(namespace_loopback, refused);
app_test!(namespace_net);
app_test!(mounted, refused);
app_test!(unmounted);
app_test!(namespace_mnt);
app_test!(namespace_root);
app_test!(namespace_mnt_shared, refused);
app_test!(namespace_ipc);
app_test!(namespace_pid, refused);
app_test!(namespace_pid_init, refused);
app_test!(namespace_user, refused);
app_test!(namespace_cgroup);
app_test!(namespace_thread, refused);
app_test!(pidfd);
app_test!(pidfd_thread);
app_test!(pidfd_other_thread, refused);

// Files.
app_test!(regular_files, alone);
app_test!(unlinked_file);
app_test!(unnamed_file);
app_test!(proc_part, refused);
app_test!(proc_sys);
app_test!(shared_offsets);
app_test!(shared_fd_table, alone);
app_test!(shared_by_siblings, refused);
app_test!(thread_table, refused);
app_test!(directories);
app_test!(devices);
app_test!(tun, refused);
app_test!(bpf_map, refused);
app_test!(file_locks, alone);
app_test!(leases, alone);
app_test!(async_signal);
app_test!(inotify, alone);
app_test!(inotify_queue, alone, refused);
app_test!(fanotify, alone, refused);

// Pipes, sockets, terminals, events.
app_test!(pipes);
app_test!(fifos, alone);
app_test!(unix_pairs);
app_test!(unix_rights);
app_test!(unix_rights_many);
app_test!(unix_listen, alone);
app_test!(unix_accepted, alone);
app_test!(unix_backlog, alone, refused);
app_test!(unix_backlog_empty, alone);
app_test!(tcp_listener, alone);
app_test!(tcp_inside, alone);
app_test!(tcp_half_closed, alone);
app_test!(tcp_full_queues, alone);
app_test!(tcp_epoll, alone);
app_test!(tcp_streams, alone);
app_test!(tcp_options, alone);
app_test!(tcp_unscaled, alone, own_network);
app_test!(tcp_urgent, alone, refused);
app_test!(tcp_urgent_read, alone, refused);
app_test!(tcp_zerocopy, alone, refused);
app_test!(tcp_signed, alone, refused);
app_test!(tcp_keys, alone, refused);
app_test!(tcp_ended, alone, refused);
app_test!(mptcp_listener, alone);
app_test!(udp, alone);
app_test!(multicast, alone);
app_test!(socket_options);
app_test!(ipv6_options, alone);
app_test!(packet);
app_test!(packet_ring, refused);
app_test!(raw);
app_test!(netlink, alone);
app_test!(netlink_queue, alone, refused);
app_test!(network_settings, own_networks);
app_test!(network_device, own_networks, refused);
app_test!(socket_filters, alone);
app_test!(vsock, alone, refused);
app_test!(pty);
app_test!(ctty);
app_test!(epoll);
app_test!(epoll_shared);
app_test!(eventfd);
app_test!(uring);
app_test!(uring_registered);
app_test!(uring_shared);
app_test!(uring_waiting, alone);
app_test!(uring_waiting_single);
app_test!(uring_in_flight, refused);
app_test!(uring_timeout, refused);
app_test!(uring_overflow, refused);
app_test!(uring_direct, refused);
app_test!(uring_moved, refused);
app_test!(uring_provided, refused);
app_test!(uring_other_thread, refused);
app_test!(uring_sqpoll, refused);

// In the middle of a blocking system call.
app_test!(block_nanosleep, clocked);
app_test!(block_clock_nanosleep, clocked);
app_test!(block_poll);
app_test!(block_poll_timeout, clocked);
app_test!(block_ppoll);
app_test!(block_select, clocked);
app_test!(block_pselect);
app_test!(block_futex);
app_test!(block_futex_timeout, clocked);
app_test!(block_cond);
app_test!(block_accept, alone);
app_test!(block_pipe_read);
app_test!(block_pipe_write);
app_test!(block_epoll_wait);
app_test!(block_epoll_timeout, clocked);
app_test!(block_uring);
app_test!(block_waitpid);
app_test!(block_sigsuspend);
app_test!(block_pause);
app_test!(block_sigtimedwait);
app_test!(block_recv);
app_test!(block_msgrcv);
app_test!(block_semop);
app_test!(block_flock, alone);
app_test!(block_handler);

// The same pids on the host.
mod host_pids {
    use appshot_tests::host_pids_test;

    host_pids_test!(threads100);
    host_pids_test!(sessions);
    host_pids_test!(zombies);
    host_pids_test!(pending_signals);
    host_pids_test!(posix_timers, clocked);
    host_pids_test!(tree100);
    host_pids_test!(shared_fd_table);
    host_pids_test!(pkeys);
    host_pids_test!(pty);
    host_pids_test!(ctty);
    host_pids_test!(namespace_uts);
    host_pids_test!(namespace_net);
}

// Another vdso than the app's.
mod bridged {
    use appshot_tests::bridged_test;

    bridged_test!(vdso, clocked);
    bridged_test!(vdso_away, clocked);
    bridged_test!(vdso_bridge);
    bridged_test!(posix_timers, clocked);
    bridged_test!(registers_in_syscall);
    bridged_test!(block_nanosleep, clocked);
    bridged_test!(threads100);
    bridged_test!(tree100);
    bridged_test!(forker, restless);
}

/// A program that no test runs proves nothing. One that cannot be stopped is for
/// the faults, one that is told what to do for the reverts.
#[test]
fn every_program_is_tested() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps.rs"))?;
    let faults = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults.rs"))?
        + &std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/revert.rs"))?;
    let named: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("app_test!("))
        .filter_map(|rest| rest.split([',', ')']).next())
        .map(str::to_owned)
        .collect();
    let mut there: BTreeSet<String> = programs::all()?.into_iter().collect();
    there.retain(|name| named.contains(name) || !faults.contains(&format!("\"{name}\"")));
    assert_eq!(named, there);
    Ok(())
}
