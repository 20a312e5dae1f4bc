//! Further real software, of Debian and PyPI: how each is started, filled, used, and what of
//! it must be equal before and after. What it is at when it is frozen stands at its head,
//! from where `docs/fidelity.md` has it.

use crate::app::Place;
use crate::clients::{exchange, free_port, http_get};
use crate::installed;
use crate::judge::open_connections;
use crate::scenario::{Drive, Server};
use crate::servers::{counter, options, path_text, run, servers};
use crate::verdict::{PATIENCE, need_program, poll, skip};
use anyhow::{Context, Result, ensure};
use libsnap::target::RunOptions;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;

// -------------------------------------------------------------------- memcached

fn memcached_ask(port: u16, command: &str) -> Result<String> {
    let answer = exchange(port, format!("{command}\r\nquit\r\n").as_bytes())?;
    Ok(answer.trim_end().to_owned())
}

/// 20,000 items in slabs, worker threads, threads that age and move items.
pub fn memcached(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["memcached"])?);
    let port = free_port()?;
    let port_text = port.to_string();
    let command = [&program, "-u", "root", "-l", "127.0.0.1", "-p", &port_text, "-t", "4"];
    drive(
        place,
        &Server {
            options: options(&command),
            port: Some(port),
            fill: &|_| {
                let value = "v".repeat(1000);
                let items = (0..20_000).map(|n| format!("set key-{n} 0 0 1000 noreply\r\n{value}\r\n"));
                let items: String = items.collect();
                exchange(port, format!("{items}set count 0 0 1\r\n0\r\nquit\r\n").as_bytes())?;
                Ok(())
            },
            state: &|| memcached_ask(port, "gets count key-0 key-19999"),
            use_it: &|| {
                let count: u64 = memcached_ask(port, "incr count 1")?.parse()?;
                let touched = memcached_ask(port, &format!("touch key-{count} 10000"))?;
                ensure!(touched == "TOUCHED", "key-{count}: {touched}");
                Ok(())
            },
            steady: true,
            grows: false,
            finish: None,
            request: Some(|port| {
                let found = memcached_ask(port, "get key-1")?;
                ensure!(found.starts_with("VALUE key-1 0 1000"), "{found}");
                Ok(())
            }),
        },
    )
}

/// Jobs that are ready, delayed, reserved-and-released, buried, in a log that is synced.
pub fn beanstalkd(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["beanstalkd"])?);
    let port = free_port()?;
    let command = [
        &program,
        "-l",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-b",
        &path_text(place.dir()),
    ];
    let ask = |commands: &str| exchange(port, format!("{commands}quit\r\n").as_bytes());
    let put = |priority: u32, delay: u32| format!("put {priority} {delay} 60 5\r\nhello\r\n");
    drive(
        place,
        &Server {
            options: options(&command),
            port: Some(port),
            fill: &|_| {
                let jobs: String = (0..500).map(|n| put(n, n % 2 * 10_000)).collect();
                let done = ask(&(jobs + "reserve\r\nbury 1 7\r\n"))?;
                ensure!(done.contains("BURIED"), "{done}");
                Ok(())
            },
            state: &|| {
                let told = ask("stats\r\npeek-ready\r\npeek-buried\r\n")?;
                let kept = ["current-jobs", "total-jobs", "FOUND", "hello"];
                let kept = told
                    .lines()
                    .filter(|line| kept.iter().any(|kept| line.starts_with(kept)));
                Ok(kept.collect::<Vec<_>>().join(" "))
            },
            use_it: &|| {
                let done = ask(&format!("{}reserve\r\n", put(3, 0)))?;
                ensure!(done.contains("INSERTED") && done.contains("RESERVED"), "{done}");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: Some(|port| {
                let done = exchange(port, b"put 5 20000 60 1\r\nx\r\nquit\r\n")?;
                ensure!(done.starts_with("INSERTED"), "{done}");
                Ok(())
            }),
        },
    )
}

// ------------------------------------------------------- proxies, caches, resolvers

/// A master and a worker with threads; counters in a table in memory; connections to the
/// server behind it, which is in it too, kept open between requests.
pub fn haproxy(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["haproxy", "/usr/sbin/haproxy"])?);
    let (port, behind) = (free_port()?, free_port()?);
    let file = place.path("haproxy.cfg");
    let text = format!(
        "global\n nbthread 2\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 1h\n http-reuse always\n\
         backend counts\n stick-table type string len 64 size 10k store http_req_cnt\n\
         frontend front\n bind 127.0.0.1:{port}\n http-request track-sc0 path table counts if {{ path_beg /add }}\n \
         default_backend behind\n\
         backend behind\n server one 127.0.0.1:{behind} pool-purge-delay 1h\n\
         frontend answers\n bind 127.0.0.1:{behind}\n timeout http-keep-alive 1h\n \
         http-request return status 200 content-type text/plain \
         lf-string \"%[str(/add-1),table_http_req_cnt(counts)] %[str(/add-2),table_http_req_cnt(counts)]\"\n"
    );
    std::fs::write(&file, text)?;
    drive(
        place,
        &Server {
            options: options(&[&program, "-W", "-f", &path_text(&file)]),
            port: Some(port),
            fill: &|_| (0..50).try_for_each(|n| http_get(port, &format!("/add-{}", n % 2 + 1)).map(drop)),
            state: &|| http_get(port, "/"),
            use_it: &|| {
                let before = http_get(port, "/")?;
                http_get(port, "/add-1")?;
                let after = http_get(port, "/add-2")?;
                ensure!(before != after, "it counts no more: {before}");
                ensure!(open_connections(behind) > 0, "no connection is kept");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: Some(|port| http_get(port, "/").map(drop)),
        },
    )
}

/// A zone with dynamic updates in its journal, over UDP and TCP; a socket of each thread at
/// one port, a socket of the kernel's routes.
pub fn bind9(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["named", "/usr/sbin/named"])?);
    let (dig, update) = (need_program(&["dig"])?, need_program(&["nsupdate"])?);
    let port = free_port()?;
    let (port_text, dir) = (port.to_string(), path_text(place.dir()));
    let (file, zone) = (place.path("named.conf"), place.path("zone"));
    let text = format!(
        "options {{ directory \"{dir}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n\
         recursion no; pid-file none; session-keyfile \"{dir}/key\"; lock-file none; dnssec-validation no; }};\n\
         controls {{ }};\n\
         zone \"app.test\" {{ type primary; file \"{dir}/zone\"; allow-update {{ 127.0.0.1; }}; }};\n"
    );
    std::fs::write(&file, text)?;
    let hosts = (1..200).map(|n| format!("host-{n} A 10.0.0.{n}\n"));
    let hosts: String = hosts.collect();
    std::fs::write(
        &zone,
        format!("$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n{hosts}"),
    )?;
    let ask = |words: &[&str]| {
        let mut dig = Command::new(&dig);
        run(dig
            .args(["@127.0.0.1", "-p", &port_text, "+tries=1", "+short"])
            .args(words))
    };
    let serial = || -> Result<u64> {
        let told = ask(&["SOA", "app.test"])?;
        let serial = told.split(' ').nth(2).with_context(|| format!("SOA {told:?}"))?;
        Ok(serial.parse()?)
    };
    drive(
        place,
        &Server {
            options: options(&[&program, "-g", "-n", "2", "-c", &path_text(&file)]),
            port: Some(port),
            fill: &|_| Ok(()),
            state: &|| {
                let told = ask(&["+tcp", "AXFR", "app.test"])?;
                ensure!(told.contains("10.0.0.199"), "{told}");
                Ok(told)
            },
            use_it: &|| {
                let next = serial()? + 1;
                let words = format!(
                    "server 127.0.0.1 {port}\nzone app.test\nupdate add new-{next}.app.test 60 TXT \"{next}\"\nsend\n"
                );
                let script = place.path("update");
                std::fs::write(&script, words)?;
                run(Command::new(&update).arg(&script))?;
                let told = ask(&["TXT", &format!("new-{next}.app.test")])?;
                ensure!(told == format!("\"{next}\"") && serial()? == next, "{told}");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

/// A page that nobody has any more but its memory, beside the server that it asked for it.
pub fn squid(place: &Place, drive: Drive<'_>) -> Result<()> {
    need_program(&["squid", "/usr/sbin/squid"])?;
    let shell = path_text(&need_program(&["bash"])?);
    let (port, origin) = (free_port()?, free_port()?);
    let (dir, html) = (path_text(place.dir()), place.path("html"));
    std::fs::create_dir(&html)?;
    std::fs::write(html.join("page"), "kept\n".repeat(20_000))?;
    let text = format!(
        "http_port 127.0.0.1:{port}\ncache_mem 16 MB\noffline_mode on\nmaximum_object_size_in_memory 1 MB\n\
         refresh_pattern . 10000 20% 20000\nhttp_access allow all\naccess_log none\ncache_log {dir}/cache.log\n\
         cache_store_log none\npid_filename none\npinger_enable off\nnetdb_filename none\ncoredump_dir {dir}\n\
         shutdown_lifetime 0 seconds\nmax_filedescriptors 1024\n"
    );
    std::fs::write(place.path("squid.conf"), text)?;
    let get = |name: &str| {
        let request = format!("GET http://127.0.0.1:{origin}/{name} HTTP/1.0\r\n\r\n");
        exchange(port, request.as_bytes())
    };
    let is_hit = |answer: &str| answer.contains("X-Cache: HIT");
    let script = path_text(&servers().join("squid.sh"));
    drive(
        place,
        &Server {
            options: options(&[&shell, &script, &dir, &origin.to_string()]),
            port: Some(port),
            fill: &|_| {
                poll("the page to come", PATIENCE, || {
                    let page = get("page")?;
                    Ok((page.contains(" 200 ") && is_hit(&get("page")?)).then_some(()))
                })?;
                Ok(std::fs::remove_file(html.join("page"))?)
            },
            state: &|| {
                let page = get("page")?;
                let body = page.split("\r\n\r\n").nth(1).unwrap_or_default();
                Ok(format!(
                    "{} bytes, hit: {}",
                    body.matches("kept").count(),
                    is_hit(&page)
                ))
            },
            use_it: &|| {
                let name = format!("made-{}", std::fs::read_dir(&html)?.count());
                std::fs::write(html.join(&name), &name)?;
                let (first, second) = (get(&name)?, get(&name)?);
                ensure!(!is_hit(&first) && is_hit(&second), "{first} {second}");
                ensure!(second.ends_with(&name) && is_hit(&get("page")?), "{second}");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

// ------------------------------------------------------------------- application servers

/// A server below `env`, with what it needs in its environment.
fn with_environment<'a>(variables: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["/usr/bin/env"], variables, command].concat()
}

/// A system with 10,000 processes, a table, timers, schedulers, a child at a socket pair.
pub fn erlang(place: &Place, drive: Drive<'_>) -> Result<()> {
    let (compiler, machine) = (need_program(&["erlc"])?, need_program(&["erl"])?);
    let dir = path_text(place.dir());
    run(Command::new(compiler)
        .args(["-o", &dir])
        .arg(servers().join("counter.erl")))?;
    let port = free_port()?;
    let (machine, port_text) = (path_text(&machine), port.to_string());
    let command = [
        machine.as_str(),
        "-noshell",
        "-noinput",
        "-pa",
        &dir,
        "-run",
        "counter",
        "start",
        &port_text,
    ];
    let home = format!("HOME={dir}");
    counter(place, drive, &with_environment(&[&home], &command), port)
}

/// Two workers with threads below a master, which ask each other through pipes; a file with
/// a lock.
pub fn puma(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["puma"])?);
    let port = free_port()?;
    let (dir, bind) = (
        format!("COUNTER_DIR={}", place.dir().display()),
        format!("tcp://127.0.0.1:{port}"),
    );
    let script = path_text(&servers().join("counter.ru"));
    let command = [program.as_str(), "-q", "-w", "2", "-t", "2:2", "-b", &bind, &script];
    counter(
        place,
        &|place, server| once_all_answer(place, drive, server, 2),
        &with_environment(&[&dir], &command),
        port,
    )
}

/// A loop of select, an interval timer with its handler, a child at a socket pair.
pub fn perl(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["perl"])?);
    let port = free_port()?;
    let script = path_text(&servers().join("counter.pl"));
    counter(place, drive, &[&program, &script, &port.to_string()], port)
}

/// A sandbox with mounts of its own around a server in Perl: the root read-only, devices and processes of
/// its own, a directory in memory with a file in it.
pub fn bubblewrap(place: &Place, drive: Drive<'_>) -> Result<()> {
    let [sandbox, program, shell] =
        ["bwrap", "perl", "sh"].map(|name| need_program(&[name]).map(|path| path_text(&path)));
    let (sandbox, program, shell) = (sandbox?, program?, shell?);
    let port = free_port()?;
    let script = path_text(&servers().join("counter.pl"));
    let job = format!("seq 100000 > numbers; exec {program} {script} {port}");
    let mounts = "--ro-bind / / --dev /dev --proc /proc --tmpfs /srv --chdir /srv";
    let command = [&*sandbox].into_iter().chain(mounts.split(' '));
    let command: Vec<&str> = command.chain([&*shell, "-c", &*job]).collect();
    counter(place, drive, &command, port)
}

/// A server in Rust on tokio-uring: an accept that waits in its io_uring, which stands in an epoll;
/// requests that are read and answered by the same, a timer.
pub fn tokio_uring(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = installed::programs()?.join("examples/uring_counter");
    if !program.is_file() {
        return skip("tests/examples, built by `cargo build --workspace --all-targets`");
    }
    let (program, port) = (path_text(&program), free_port()?);
    counter(place, drive, &[&program, &port.to_string()], port)
}

/// Debian's own python, which has Debian's packages.
fn python() -> Result<String> {
    Ok(path_text(&need_program(&["/usr/bin/python3"])?))
}

const NO_CACHE: &str = "PYTHONDONTWRITEBYTECODE=1";

/// The state is put into a server of which so many workers have said who they are.
fn once_all_answer(place: &Place, drive: Drive<'_>, server: &Server<'_>, workers: usize) -> Result<()> {
    let port = server.port.context("it has no port")?;
    let fill = |top| {
        all_have_answered(port, workers)?;
        (server.fill)(top)
    };
    let server = Server {
        fill: &fill,
        ..server.clone()
    };
    drive(place, &server)
}

fn all_have_answered(port: u16, count: usize) -> Result<()> {
    let mut who = BTreeSet::new();
    poll(&format!("{count} workers to answer"), PATIENCE, || {
        who.insert(http_get(port, "/who")?);
        Ok((who.len() == count).then_some(()))
    })
}

/// A master and three workers with threads, which count in memory that they share and say by
/// unlinked files that they live.
pub fn gunicorn(place: &Place, drive: Drive<'_>) -> Result<()> {
    let (program, dir) = (python()?, path_text(&servers()));
    let port = free_port()?;
    let bind = format!("127.0.0.1:{port}");
    let command = [
        program.as_str(),
        "-m",
        "gunicorn",
        "-w",
        "3",
        "--threads",
        "2",
        "--preload",
        "--chdir",
        &dir,
        "-b",
        &bind,
        "counter_wsgi",
    ];
    counter(
        place,
        &|place, server| once_all_answer(place, drive, server, 3),
        &with_environment(&[NO_CACHE], &command),
        port,
    )
}

/// A loop with tasks, threads, a child process at its pipes.
pub fn uvicorn(place: &Place, drive: Drive<'_>) -> Result<()> {
    let (program, dir) = (python()?, path_text(&servers()));
    let port = free_port()?;
    let port_text = port.to_string();
    let command = [
        program.as_str(),
        "-m",
        "uvicorn",
        "--log-level",
        "warning",
        "--app-dir",
        &dir,
        "--port",
        &port_text,
        "counter_asgi:application",
    ];
    counter(place, drive, &with_environment(&[NO_CACHE], &command), port)
}

/// Pools of threads that grow, by schedule, and that steal work; futures, a queue with its
/// consumers, the collector every second.
pub fn java_pools(place: &Place, drive: Drive<'_>) -> Result<()> {
    let (compiler, machine) = (need_program(&["javac"])?, need_program(&["java"])?);
    let dir = path_text(place.dir());
    run(Command::new(compiler)
        .args(["-d", &dir])
        .arg(servers().join("Pools.java")))?;
    let port = free_port()?;
    counter(
        place,
        drive,
        &[&path_text(&machine), "-Xmx64m", "-cp", &dir, "Pools", &port.to_string()],
        port,
    )
}

/// A transaction amid its changes, in WAL mode; two snapshots of other ages beside it.
pub fn sqlite(place: &Place, drive: Drive<'_>) -> Result<()> {
    let port = free_port()?;
    let script = path_text(&servers().join("sqlite.py"));
    counter(
        place,
        drive,
        &[&python()?, &script, &path_text(place.dir()), &port.to_string()],
        port,
    )
}

// --------------------------------------------------------------------------- PHP

/// One request by FastCGI, and the body of its answer.
fn fastcgi(port: u16, script: &str, query: &str) -> Result<String> {
    const KEEP_NOTHING: &[u8] = &[0, 1, 0, 0, 0, 0, 0, 0];
    let record = |kind: u8, body: &[u8]| {
        let [high, low] = u16::try_from(body.len()).unwrap_or(0).to_be_bytes();
        [&[1, kind, 0, 1, high, low, 0, 0], body].concat()
    };
    let pairs = [
        ("SCRIPT_FILENAME", script),
        ("REQUEST_METHOD", "GET"),
        ("QUERY_STRING", query),
    ];
    let pairs = pairs.iter().flat_map(|(name, value)| {
        let lengths = [name.len(), value.len()].map(|length| u8::try_from(length).unwrap_or(0));
        [&lengths[..], name.as_bytes(), value.as_bytes()].concat()
    });
    let pairs: Vec<u8> = pairs.collect();
    let request = [
        record(1, KEEP_NOTHING),
        record(4, &pairs),
        record(4, &[]),
        record(5, &[]),
    ];
    let answer = exchange(port, &request.concat())?;
    let body = answer.split("\r\n\r\n").nth(1);
    let body = body.with_context(|| format!("{script}?{query}: {answer:?}"))?;
    Ok(body.split('\0').next().unwrap_or_default().to_owned())
}

/// A master and three workers of another user, a cache of compiled scripts that they share, a
/// counter in System V memory under a semaphore.
pub fn php_fpm(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["php-fpm8.2", "/usr/sbin/php-fpm8.2"])?);
    let port = free_port()?;
    let (file, script) = (place.path("fpm.conf"), place.path("counter.php"));
    // Where its user can read it.
    std::fs::copy(servers().join("counter.php"), &script)?;
    let text = format!(
        "[global]\nerror_log = {}\ndaemonize = no\n[www]\nuser = www-data\ngroup = www-data\n\
         listen = 127.0.0.1:{port}\npm = static\npm.max_children = 3\nphp_admin_value[opcache.enable] = 1\n",
        place.path("fpm.log").display()
    );
    std::fs::write(&file, text)?;
    let (file, script) = (path_text(&file), path_text(&script));
    let ask = |query: &str| fastcgi(port, &script, query);
    drive(
        place,
        &Server {
            options: options(&[
                &program,
                "-n",
                "-d",
                "zend_extension=opcache",
                "-d",
                "extension=sysvshm",
                "-d",
                "extension=sysvsem",
                "-y",
                &file,
            ]),
            port: Some(port),
            fill: &|_| (0..50).try_for_each(|_| ask("add").map(drop)),
            state: &|| {
                let told = ask("")?;
                ensure!(!told.contains("not cached"), "{told}");
                Ok(told)
            },
            use_it: &|| {
                let number = |told: String| -> Result<u64> { Ok(told.split(' ').next().unwrap_or_default().parse()?) };
                let (first, second) = (number(ask("add")?)?, number(ask("add")?)?);
                ensure!(second == first + 1, "{first}, then {second}");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

// ----------------------------------------------------------------------- MariaDB

/// A database server with a client beside it that is amid a transaction: locks, changes that
/// nobody else sees, a Unix connection, threads that write back, an io_uring (Debian's has it).
pub fn mariadb(place: &Place, drive: Drive<'_>) -> Result<()> {
    let install = need_program(&["mariadb-install-db"])?;
    need_program(&["mariadbd", "/usr/sbin/mariadbd"])?;
    let client = need_program(&["mariadb"])?;
    let shell = path_text(&need_program(&["bash"])?);
    let dir = path_text(place.dir());
    let quick = ["--innodb-log-file-size=8M", "--innodb-use-native-aio=0"];
    run(Command::new(install)
        .args(["--no-defaults", "--user=root", "--skip-test-db"])
        .args(["--auth-root-authentication-method=normal", "--skip-name-resolve"])
        .args(quick)
        .arg(format!("--datadir={dir}/data")))?;
    nix::unistd::mkfifo(&place.path("session"), nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    let port = free_port()?;
    let port_text = port.to_string();
    let ask = |sql: &str| {
        let mut client = Command::new(&client);
        let connected = client.args(["--no-defaults", "-h127.0.0.1", "-uroot", "-nN", "-P", &port_text]);
        run(connected.args(["-e", sql]))
    };
    let session = Session { place };
    let script = path_text(&servers().join("mariadb.sh"));
    drive(
        place,
        &Server {
            options: options(&[&shell, &script, &dir, &port_text, "--innodb-use-native-aio=1"]),
            port: Some(port),
            fill: &|_| {
                ask(
                    "create database d; create table d.t (id int primary key auto_increment, n int, text varchar(200))",
                )?;
                ask("insert into d.t (n, text) select seq, repeat(seq, 20) from seq_1_to_5000")
                    .map(drop)
                    .or_else(|_| {
                        let rows: Vec<String> = (1..2000).map(|n| format!("({n}, repeat({n}, 20))")).collect();
                        ask(&format!("insert into d.t (n, text) values {}", rows.join(","))).map(drop)
                    })?;
                session.ask("begin; update d.t set n = n + 1 where id < 1000;")?;
                Ok(())
            },
            state: &|| {
                if !place.path("answers").exists() || !ask("show databases")?.contains("\nd") {
                    session.ask("")?;
                    return Ok("empty".to_owned());
                }
                let sum = "select sum(n), count(*), md5(group_concat(text)) from d.t";
                let others = ask(sum)?;
                let own = session.ask(&format!("{sum};"))?;
                ensure!(others != own, "all see what is not committed: {own}");
                Ok(format!("{others} {own}"))
            },
            use_it: &|| {
                let sum = "select sum(n) from d.t";
                let own = session.ask(&format!("{sum};"))?;
                session.ask("commit;")?;
                ensure!(ask(sum)? == own, "what was committed is not {own}");
                // Its row is locked until then.
                session.ask("begin; update d.t set n = n + 1 where id < 500;")?;
                let locked = ask("set innodb_lock_wait_timeout = 1; update d.t set n = 0 where id = 7");
                ensure!(locked.is_err(), "a locked row was changed");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

/// The client that stays.
struct Session<'a> {
    place: &'a Place,
}

impl Session<'_> {
    /// What it answers to these statements.
    fn ask(&self, sql: &str) -> Result<String> {
        let answers = || std::fs::read_to_string(self.place.path("answers")).unwrap_or_default();
        let before = answers().len();
        let mut session = std::fs::File::options()
            .read(true)
            .write(true)
            .open(self.place.path("session"))?;
        session.write_all(format!("{sql} select 'answered';\n").as_bytes())?;
        let told = poll("the session to answer", PATIENCE, || {
            let told = answers().get(before..).unwrap_or_default().to_owned();
            Ok(told.ends_with("answered\n").then_some(told))
        })?;
        Ok(told.trim_end_matches("answered\n").trim().to_owned())
    }
}

// --------------------------------------------------- work that is compared at its end

/// What works until the file `go` is there, and then judges itself.
fn at_work(place: &Place, drive: Drive<'_>, command: &[&str], progress: &dyn Fn() -> Result<u64>) -> Result<()> {
    drive(
        place,
        &Server {
            options: options(command),
            port: None,
            fill: &|_| Ok(()),
            state: &|| progress().map(|_| "at work".to_owned()),
            use_it: &|| {
                let start = progress()?;
                poll("progress", PATIENCE, || Ok((progress()? > start).then_some(())))
            },
            steady: false,
            grows: true,
            finish: Some(&|| Ok(std::fs::write(place.path("go"), "")?)),
            request: None,
        },
    )
}

/// An encoder amid a film, with its threads: what comes out must be what comes out
/// undisturbed.
pub fn ffmpeg(place: &Place, drive: Drive<'_>) -> Result<()> {
    let encoder = path_text(&need_program(&["/opt/appshot-tests/encoder"])?);
    let shell = path_text(&need_program(&["bash"])?);
    let script = path_text(&servers().join("encode.sh"));
    let encoded = place.path("encoded");
    let command = [&shell, &script, &path_text(place.dir()), &encoder];
    at_work(place, drive, &command.map(String::as_str), &|| {
        Ok(std::fs::metadata(&encoded)?.len())
    })
}

/// A compiler and its assembler, one after the other again and again: every object must be
/// what comes out undisturbed.
pub fn gcc(place: &Place, drive: Drive<'_>) -> Result<()> {
    need_program(&["gcc"])?;
    let shell = path_text(&need_program(&["bash"])?);
    let script = path_text(&servers().join("compile.sh"));
    let command = [&shell, &script, &path_text(place.dir())];
    at_work(place, drive, &command.map(String::as_str), &|| {
        let compiled = std::fs::read_to_string(place.path("compiled"))?;
        Ok(compiled.lines().count() as u64)
    })
}

/// Forks, futexes, pipes, timers, queued signals, System V IPC of each kind: each checks what it gets.
pub fn stress_ng(place: &Place, drive: Drive<'_>) -> Result<()> {
    // N.B. not mutex: it takes real-time priorities, and both processors from all others.
    const STRESSORS: &[&str] = &["fork", "futex", "msg", "pipe", "sem-sysv", "shm-sysv", "sigq", "timer"];
    need_program(&["stress-ng"])?;
    let shell = path_text(&need_program(&["bash"])?);
    let script = path_text(&servers().join("stress.sh"));
    let mut command = vec![shell, script, path_text(place.dir())];
    for stressor in STRESSORS {
        command.extend([format!("--{stressor}"), "1".to_owned()]);
    }
    command.extend(["--shm-sysv-bytes".to_owned(), "4M".to_owned()]);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let progress = || {
        poll("all of them to be there", PATIENCE, || {
            let (times, log) = (processor_times(place.dir())?, place.log());
            ensure!(!log.contains("fail:"), "{} processes; {log}", times.len());
            Ok((times.len() > STRESSORS.len()).then(|| times.iter().sum()))
        })
    };
    at_work(place, drive, &command, &progress)
}

/// Of the processes that are in this directory, in ticks.
fn processor_times(dir: &Path) -> Result<Vec<u64>> {
    let all = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let here = all.filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == dir));
    let times = here.filter_map(|process| {
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        // The fourteenth and fifteenth field; the name is the second.
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    });
    Ok(times.collect())
}

/// A kernel with arrays in its memory, the threads of its library, sockets of ZeroMQ.
pub fn jupyter_kernel(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = python()?;
    let file = place.path("connection.json");
    let mut ports = Vec::new();
    for _ in 0..5 {
        ports.push(free_port()?);
    }
    let connection = serde_json::json!({
        "transport": "tcp", "ip": "127.0.0.1", "key": "a key of this trial", "signature_scheme": "hmac-sha256",
        "shell_port": ports[0], "iopub_port": ports[1], "stdin_port": ports[2], "control_port": ports[3],
        "hb_port": ports[4],
    });
    std::fs::write(&file, connection.to_string())?;
    let (file, client) = (path_text(&file), path_text(&servers().join("kernel.py")));
    let tell = |code: &str, expression: &str| {
        let mut asking = Command::new(&program);
        let told = run(asking.args([&client, &file]).args([code, expression]))?;
        // Its debugger has one to the same port, both ends of it in the kernel.
        poll("the client's connection to close", PATIENCE, || {
            Ok((open_connections(ports[0]) <= 2).then_some(()))
        })?;
        Ok(told)
    };
    let dir = place.dir().display();
    let (home, ipython) = (format!("HOME={dir}"), format!("IPYTHONDIR={dir}/ipython"));
    let command = [program.as_str(), "-m", "ipykernel_launcher", "-f", &file];
    let sum = "(float(a.sum()), float(b.trace()), str(g.bit_generator.state['state'])) if 'a' in dir() else 0";
    drive(
        place,
        &Server {
            options: options(&with_environment(&[NO_CACHE, &home, &ipython], &command)),
            // Of the heartbeat, at which nobody asks.
            port: Some(ports[4]),
            fill: &|_| {
                let code = "import numpy as n; g = n.random.default_rng(7); a = g.random((1000, 1000)); b = a @ a.T";
                tell(code, sum).map(drop)
            },
            state: &|| tell("", sum),
            use_it: &|| {
                let before = tell("", sum)?;
                let after = tell("a = g.permuted(a); a += 1; b = a @ b / 1000; b /= b.max()", sum)?;
                ensure!(before != after, "nothing was computed: {before}");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

// -------------------------------------------------------------------- on a terminal

/// A program on a pseudo-terminal of its own.
struct Terminal<'a> {
    place: &'a Place,
}

impl<'a> Terminal<'a> {
    fn make(place: &'a Place) -> Result<Terminal<'a>> {
        nix::unistd::mkfifo(&place.path("keys"), nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        Ok(Terminal { place })
    }

    fn options(&self, command: &[&str]) -> Result<RunOptions> {
        let script = path_text(&servers().join("terminal.py"));
        let dir = path_text(self.place.dir());
        Ok(options(&[&[&*python()?, &script, &dir], command].concat()))
    }

    fn press(&self, keys: &str) -> Result<()> {
        // What nobody has open yet keeps nothing.
        ensure!(self.place.path("screen").exists(), "the terminal is not there yet");
        let fifo = self.place.path("keys");
        let mut fifo = std::fs::File::options().read(true).write(true).open(fifo)?;
        Ok(fifo.write_all(keys.as_bytes())?)
    }

    fn screen(&self) -> Result<String> {
        let screen = std::fs::read(self.place.path("screen"))?;
        Ok(String::from_utf8_lossy(&screen).into_owned())
    }

    /// What is written to this file after these keys, up to the end of a line.
    fn written(&self, keys: &str, name: &str) -> Result<String> {
        let file = self.place.path(name);
        let _fresh = std::fs::remove_file(&file);
        self.press(keys)?;
        poll(&format!("{name} after {keys:?}"), PATIENCE, || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            Ok(text.ends_with('\n').then_some(text))
        })
    }
}

/// A text that was never saved, what it was before each change, a register, a place in it.
pub fn vim(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["vim.tiny"])?);
    let terminal = Terminal::make(place)?;
    std::fs::write(place.path("text"), "a line\n")?;
    let saved = |keys: &str| terminal.written(&format!("\u{1b}{keys}:w! saved\r"), "saved");
    drive(
        place,
        &Server {
            options: terminal.options(&[&program, "-u", "NONE", "-N", "-n", "-i", "NONE", "text"])?,
            port: None,
            fill: &|_| {
                let lines: String = (0..40).map(|n| format!("oline {n} of a text\u{1b}")).collect();
                saved(&format!("{lines}gg20Gma\"ayy")).map(drop)
            },
            state: &|| {
                let [now, before, again] = [saved("")?, saved("u")?, saved("\u{12}")?];
                ensure!(now == again, "done again it is {again}, was {now}");
                Ok(format!("{} lines: {now} before: {before}", now.lines().count()))
            },
            use_it: &|| {
                let before = saved("")?;
                let after = saved("'a\"apAmore\u{1b}")?;
                ensure!(after.lines().count() == before.lines().count() + 1, "{after}");
                Ok(())
            },
            steady: true,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

/// A list of processes that it draws twice a second, with one chosen.
pub fn htop(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["htop"])?);
    let terminal = Terminal::make(place)?;
    drive(
        place,
        &Server {
            options: terminal.options(&[&program, "-d", "5", "-C"])?,
            port: None,
            fill: &|_| terminal.press("/terminal.py\r"),
            state: &|| {
                // The environment of the one that is chosen, and back.
                let before = terminal.screen()?.len();
                terminal.press("e")?;
                let told = poll("the chosen process", PATIENCE, || {
                    let screen = terminal.screen()?;
                    let drawn = screen.get(before..).unwrap_or_default();
                    let told = drawn.split_once("Environment of process ");
                    Ok(told.and_then(|(_, rest)| Some(rest.split_once(' ')?.0.to_owned())))
                })?;
                terminal.press("q")?;
                Ok(told)
            },
            use_it: &|| {
                let drawn = terminal.screen()?.len();
                poll("it to draw", PATIENCE, || {
                    Ok((terminal.screen()?.len() > drawn).then_some(()))
                })
            },
            steady: true,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

/// A server that has gone to the background, a client on a terminal, shells in two windows on
/// terminals of the server's.
pub fn tmux(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["tmux"])?);
    let terminal = Terminal::make(place)?;
    let socket = path_text(&place.path("socket"));
    let command = [
        &program,
        "-S",
        &socket,
        "-f",
        "/dev/null",
        "new",
        "bash --norc --noprofile",
    ];
    let told = |line: &str| terminal.written(&format!("{line} >told.part; mv told.part told\r"), "told");
    let state = "echo $secret:$(tty):$(jobs -r | wc -l):$(tmux list-windows | wc -l):$(tmux show-buffer | cksum)";
    drive(
        place,
        &Server {
            options: terminal.options(&command)?,
            port: None,
            fill: &|_| {
                told("secret=kept; sleep 1000 & tmux new-window -d 'sleep 1000'; tmux set-buffer kept; echo").map(drop)
            },
            state: &|| told(state),
            use_it: &|| {
                // ^C ends what stands in the foreground, and nothing else; told by what is to end.
                terminal.press("sh -c 'echo begun >begun; exec sleep 500'\r")?;
                poll("the command to begin", PATIENCE, || {
                    Ok(place.path("begun").exists().then_some(()))
                })?;
                std::fs::remove_file(place.path("begun"))?;
                terminal.press("\u{3}")?;
                let line = "secret+=x; tmux set-buffer -a more; tmux capture-pane -p | wc -l";
                let lines = told(line)?;
                ensure!(lines.trim().parse::<u32>()? >= 10, "{lines} lines");
                Ok(())
            },
            steady: false,
            grows: true,
            finish: None,
            request: None,
        },
    )
}
