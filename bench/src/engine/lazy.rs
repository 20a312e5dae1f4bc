//! The peer's lazy mode: `criu lazy-pages` waits with the memory, before the
//! clock starts, and `criu restore --lazy-pages` takes it from there.

use super::{After, Back, Criu, Engine, Taken};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const LOG: &str = "lazy-pages.log";

#[derive(Debug)]
pub struct Lazy {
    criu: Criu,
    /// The one that serves the instance of this moment.
    server: Mutex<Option<Child>>,
}

impl Lazy {
    pub fn new(criu: Criu) -> Self {
        Lazy {
            criu,
            server: Mutex::new(None),
        }
    }

    fn serve(&self, source: &Path, work: &Path) -> Result<Child> {
        std::fs::create_dir_all(work)?;
        let socket = work.join("lazy-pages.socket");
        let _ = std::fs::remove_file(&socket);
        let mut command = self.criu.command("lazy-pages", source)?;
        command.arg("-W").arg(work).args(["-v1", "-o", LOG]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start criu lazy-pages")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !listens(&socket)? {
            if let Some(status) = child.try_wait()? {
                bail!("criu lazy-pages: {status}");
            }
            if Instant::now() > deadline {
                stop(Some(child));
                bail!("criu lazy-pages does not listen");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(child)
    }
}

/// Asked of the kernel: who connects to it counts as a restored process.
fn listens(socket: &Path) -> Result<bool> {
    const ACCEPTS: &str = "00010000";
    let name = socket.file_name().and_then(OsStr::to_str).context("no name")?;
    let sockets = std::fs::read_to_string("/proc/net/unix")?;
    let it = |line: &str| line.split_whitespace().nth(3) == Some(ACCEPTS) && line.ends_with(name);
    Ok(socket.exists() && sockets.lines().any(it))
}

fn stop(server: Option<Child>) {
    if let Some(mut server) = server {
        let _ = server.kill();
        let _ = server.wait();
    }
}

impl Engine for Lazy {
    fn name(&self) -> &'static str {
        "criu lazy-pages"
    }

    fn about(&self) -> String {
        "`criu restore -d --lazy-pages` from start to exit; `criu lazy-pages` waits already".to_owned()
    }

    fn missing(&self) -> Option<String> {
        self.criu.missing()
    }

    fn wants_ipc_namespace(&self) -> bool {
        true
    }

    fn snapshot(&self, root: i32, dest: &Path, after: After) -> Result<Taken> {
        self.criu.snapshot(root, dest, after)
    }

    fn restore(&self, source: &Path) -> Result<Back> {
        let work: PathBuf = self.criu.scratch.join("lazy");
        let server = self.serve(source, &work)?;
        *self.server.lock().expect("no panic holds it") = Some(server);
        let options = [OsStr::new("--lazy-pages"), OsStr::new("-W"), work.as_os_str()];
        self.criu.restore_with(source, &options).map_err(|error| {
            stop(self.server.lock().expect("no panic holds it").take());
            let told = std::fs::read_to_string(work.join(LOG)).unwrap_or_default();
            error.context(format!("criu lazy-pages: {}", told.trim().replace('\n', " | ")))
        })
    }

    fn end(&self, back: &Back) -> Result<()> {
        let ended = self.criu.end(back);
        stop(self.server.lock().expect("no panic holds it").take());
        ended
    }
}
