//! Who may ask an app now, and who waits: no more requests at once than its instances may
//! carry, the others in a queue of bounded length.
//!
//! The queue is fair by client: each address has a line of its own, and the lines take
//! turns. When it is full a newcomer takes the place of the last one in the longest line
//! where that line is longer than his own: one client cannot keep the others out.

use super::traffic::Traffic;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Why a request was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// As many wait as may.
    Queue,
    /// It has waited for as long as it may.
    Late,
}

/// The gate of one app.
#[derive(Debug)]
pub struct Gate {
    /// Of one instance; `None` for as many as come.
    requests: Option<u32>,
    queue: usize,
    patience: Duration,
    traffic: Traffic,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: u64,
    /// 1 at least: who comes to a sleeping app is to wake it.
    instances: u64,
    /// Those who wait, by client, and the clients in the order of their turns.
    lines: HashMap<IpAddr, VecDeque<Waiter>>,
    turns: VecDeque<IpAddr>,
    waiting: usize,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    /// Dropped when its place goes to another.
    call: oneshot::Sender<Permit>,
}

/// One request may be in flight as long as this lives.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    /// Somebody had to go first.
    pub waited: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

impl Gate {
    pub fn new(requests: Option<u32>, queue: u32, patience: Duration, traffic: Traffic) -> Arc<Gate> {
        Arc::new(Gate {
            requests,
            queue: usize::try_from(queue).unwrap_or(usize::MAX),
            patience,
            traffic,
            state: Mutex::new(State {
                instances: 1,
                ..State::default()
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, state: &State) -> u64 {
        self.requests
            .map_or(u64::MAX, |one| u64::from(one).saturating_mul(state.instances))
    }

    /// So many instances take requests from now on. Answers whether that is new.
    pub fn instances(self: &Arc<Gate>, count: usize) -> bool {
        let count = count.max(1) as u64;
        let before = std::mem::replace(&mut self.lock().instances, count);
        self.call();
        before != count
    }

    /// Waits for its turn.
    pub async fn enter(self: &Arc<Gate>, client: IpAddr) -> Result<Permit, Full> {
        let client = line_of(client);
        let (call, called) = oneshot::channel();
        let number = {
            let mut state = self.lock();
            if state.waiting == 0 && state.in_flight < self.limit(&state) {
                return Ok(self.admit(&mut state, false));
            }
            let number = state.join(client, call, self.queue).ok_or(Full::Queue)?;
            self.tell(&state);
            number
        };
        // However it ends, its place is free then.
        let _place = Place {
            gate: self,
            client,
            number,
        };
        match tokio::time::timeout(self.patience, called).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Full::Queue),
            Err(_) => Err(Full::Late),
        }
    }

    fn admit(self: &Arc<Gate>, state: &mut State, waited: bool) -> Permit {
        state.in_flight += 1;
        self.tell(state);
        Permit {
            gate: self.clone(),
            waited,
        }
    }

    fn tell(&self, state: &State) {
        self.traffic.in_flight.set(state.in_flight.cast_signed());
        self.traffic
            .queued
            .set(i64::try_from(state.waiting).unwrap_or(i64::MAX));
    }

    fn leave(self: &Arc<Gate>) {
        let nobody_waits = {
            let mut state = self.lock();
            state.in_flight -= 1;
            self.tell(&state);
            state.waiting == 0
        };
        if !nobody_waits {
            self.call();
        }
    }

    /// Lets in who may come in.
    fn call(self: &Arc<Gate>) {
        loop {
            let called = {
                let mut state = self.lock();
                if state.in_flight >= self.limit(&state) {
                    return;
                }
                let Some(waiter) = state.turn() else { return };
                (waiter.call, self.admit(&mut state, true))
            };
            // Who has given up meanwhile gives the permit back, after the lock was let go.
            let (call, permit) = called;
            drop(call.send(permit));
        }
    }
}

impl State {
    fn join(&mut self, client: IpAddr, call: oneshot::Sender<Permit>, most: usize) -> Option<u64> {
        if self.waiting >= most {
            let own = self.lines.get(&client).map_or(0, VecDeque::len);
            let (longest, length) = self
                .lines
                .iter()
                .map(|(who, line)| (*who, line.len()))
                .max_by_key(|(_, n)| *n)?;
            if length <= own + 1 {
                return None;
            }
            let last = self.lines.get(&longest)?.back()?.number;
            self.remove(longest, last);
        }
        let number = self.next;
        self.next += 1;
        let line = self.lines.entry(client).or_default();
        if line.is_empty() {
            self.turns.push_back(client);
        }
        line.push_back(Waiter { number, call });
        self.waiting += 1;
        Some(number)
    }

    /// The first of the client whose turn it is.
    fn turn(&mut self) -> Option<Waiter> {
        let client = self.turns.pop_front()?;
        let line = self.lines.get_mut(&client)?;
        let waiter = line.pop_front();
        match line.is_empty() {
            true => drop(self.lines.remove(&client)),
            false => self.turns.push_back(client),
        }
        self.waiting -= 1;
        waiter
    }

    fn remove(&mut self, client: IpAddr, number: u64) {
        let Some(line) = self.lines.get_mut(&client) else {
            return;
        };
        let before = line.len();
        line.retain(|waiter| waiter.number != number);
        self.waiting -= before - line.len();
        if line.is_empty() {
            self.lines.remove(&client);
            self.turns.retain(|other| *other != client);
        }
    }
}

/// In a line of the queue.
struct Place<'a> {
    gate: &'a Arc<Gate>,
    client: IpAddr,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.remove(self.client, self.number);
        self.gate.tell(&state);
    }
}

/// One client has one address, or a network of 64 bits of them.
fn line_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(six) => {
            let high = six.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(high).into()
        }
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn gate(requests: u32, queue: u32) -> (Arc<Gate>, Traffic) {
        let traffic = Traffic::default();
        let gate = Gate::new(Some(requests), queue, Duration::from_secs(60), traffic.clone());
        (gate, traffic)
    }

    type Entering<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Permit, Full>> + 'a>>;

    /// In the queue already.
    async fn wait(gate: &Arc<Gate>, client: IpAddr) -> Entering<'_> {
        let mut entering: Entering<'_> = Box::pin(gate.enter(client));
        let now = std::future::poll_fn(|cx| Poll::Ready(entering.as_mut().poll(cx))).await;
        assert!(now.is_pending());
        entering
    }

    #[tokio::test]
    async fn clients_take_turns() {
        let (gate, traffic) = gate(1, 10);
        let first = gate.enter(A).await.unwrap();
        let (a1, a2, a3) = (wait(&gate, A).await, wait(&gate, A).await, wait(&gate, A).await);
        let b = wait(&gate, B).await;
        assert_eq!((traffic.in_flight.get(), traffic.queued.get()), (1, 4));
        drop(first);
        drop(a1.await.unwrap());
        drop(b.await.unwrap());
        drop(a2.await.unwrap());
        drop(a3.await.unwrap());
        assert_eq!((traffic.in_flight.get(), traffic.queued.get()), (0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_is_told_and_nobody_fills_it_alone() {
        let (gate, traffic) = gate(1, 2);
        let held = gate.enter(A).await.unwrap();
        let (a1, a2) = (wait(&gate, A).await, wait(&gate, A).await);
        assert_eq!(gate.enter(A).await.unwrap_err(), Full::Queue);
        let b = wait(&gate, B).await;
        assert_eq!(gate.enter(B).await.unwrap_err(), Full::Queue, "it has its share");
        assert_eq!(a2.await.unwrap_err(), Full::Queue, "the last of the longest line");
        assert_eq!(traffic.queued.get(), 2);
        drop(held);
        drop(a1.await.unwrap());
        drop(b.await.unwrap());
        assert_eq!(traffic.in_flight.get(), 0);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_hole() {
        let (gate, traffic) = gate(1, 2);
        let held = gate.enter(A).await.unwrap();
        let (gone, stays) = (wait(&gate, A).await, wait(&gate, B).await);
        drop(gone);
        assert_eq!(traffic.queued.get(), 1);
        drop(held);
        let permit = stays.await.unwrap();
        assert_eq!((traffic.in_flight.get(), traffic.queued.get()), (1, 0));
        // Called and gone at once.
        let called = wait(&gate, A).await;
        drop(permit);
        drop(called);
        assert_eq!(traffic.in_flight.get(), 0);
        drop(gate.enter(B).await.unwrap());
    }

    #[tokio::test]
    async fn more_instances_take_more() {
        let (gate, traffic) = gate(2, 10);
        let _held = (gate.enter(A).await.unwrap(), gate.enter(A).await.unwrap());
        let (one, two) = (wait(&gate, A).await, wait(&gate, A).await);
        let three = wait(&gate, A).await;
        gate.instances(2);
        let _more = (one.await.unwrap(), two.await.unwrap());
        assert_eq!((traffic.in_flight.get(), traffic.queued.get()), (4, 1));
        drop(three);
        // None runs: one is to be woken.
        gate.instances(0);
        assert_eq!(traffic.queued.get(), 0);
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told() {
        let gate = Gate::new(Some(1), 10, Duration::from_millis(20), Traffic::default());
        let _held = gate.enter(A).await.unwrap();
        assert_eq!(gate.enter(B).await.unwrap_err(), Full::Late);
    }

    #[test]
    fn a_client_of_the_new_protocol_is_a_network() {
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let other: IpAddr = "2001:db8::ffff:2".parse().unwrap();
        assert_eq!(line_of(one), line_of(other));
        assert_eq!(line_of("::ffff:10.0.0.1".parse().unwrap()), A);
    }
}
