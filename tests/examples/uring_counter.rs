//! An HTTP server on tokio-uring whose state lives in memory alone: a counter, a timer, a buffer.
//! It accepts, reads and writes by io_uring; its driver's ring stands in an epoll.
//!
//! Usage: `uring_counter PORT`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio_uring::net::{TcpListener, TcpStream};

const DATA_BYTES: usize = 20 << 20;

#[derive(Default)]
struct State {
    count: Cell<u64>,
    ticks: Cell<u64>,
    data: Vec<u8>,
}

impl State {
    fn answer(&self, path: &str) -> String {
        match path {
            "/add" => {
                self.count.set(self.count.get() + 1);
                self.count.get().to_string()
            }
            "/ticks" => self.ticks.get().to_string(),
            _ => format!("{} {}", self.count.get(), blake3::hash(&self.data).to_hex()),
        }
    }
}

async fn serve(stream: TcpStream, state: Rc<State>) -> std::io::Result<()> {
    let (read, buffer) = stream.read(vec![0; 4096]).await;
    let request = String::from_utf8_lossy(&buffer[..read?]).into_owned();
    let answer = state.answer(request.split(' ').nth(1).unwrap_or_default());
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
    stream.write_all(answer.into_bytes()).await.0
}

fn main() -> anyhow::Result<()> {
    let port = std::env::args().nth(1).unwrap_or_default().parse()?;
    let data = (0..DATA_BYTES).map(|at| (at * 7) as u8).collect();
    let state = Rc::new(State {
        data,
        ..State::default()
    });
    tokio_uring::start(async {
        let listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
        let ticking = Rc::clone(&state);
        tokio_uring::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            loop {
                ticks.tick().await;
                ticking.ticks.set(ticking.ticks.get() + 1);
            }
        });
        loop {
            let (stream, _) = listener.accept().await?;
            tokio_uring::spawn(serve(stream, Rc::clone(&state)));
        }
    })
}
