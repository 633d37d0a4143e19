//! The service on a loopback address: the kernel's TCP in front of the agent's own HTTP and meaning.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use imds_agent::{
    http::{Connection, Service},
    now::Now,
};

/// How long a closed connection waits for the peer to close too, so that no reset overtakes the last reply.
const LINGER: Duration = Duration::from_secs(1);

/// A server that ends when it is dropped.
pub struct Served {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl Served {
    /// Serves `service` on a port of the kernel's choice.
    pub fn start(service: impl Service + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let is_over = Arc::new(AtomicBool::new(false));
        let service = Arc::new(Mutex::new(service));
        let acceptor = thread::spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                let began = Instant::now();
                for stream in listener.incoming() {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let service = Arc::clone(&service);
                    if let Ok(stream) = stream {
                        thread::spawn(move || converse(stream, &service, began));
                    }
                }
            }
        });
        Self {
            address,
            is_over,
            acceptor: Some(acceptor),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the acceptor.
        _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            _ = acceptor.join();
        }
    }
}

/// One connection, as a worker drives it.
fn converse(mut stream: TcpStream, service: &Mutex<impl Service>, began: Instant) {
    let now = || Now {
        monotonic: began.elapsed(),
        unix: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
    };
    _ = stream.set_nodelay(true);
    let mut connection = Connection::new(now());
    let mut buffer = [0; 4096];
    loop {
        while let Some(transmit) = connection.poll_transmit() {
            let Ok(count) = stream.write(transmit.bytes) else {
                return;
            };
            let mut service = service.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            connection.handle_transmitted(now(), count, &mut *service);
        }
        if connection.is_last() {
            break;
        }
        let left = connection
            .poll_timeout()
            .map(|at| at.saturating_sub(began.elapsed()));
        _ = stream.set_read_timeout(left.map(|left| left.max(Duration::from_millis(1))));
        match stream.read(&mut buffer) {
            Ok(0) => connection.handle_end(now()),
            Ok(count) => {
                let mut service = service.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                connection.handle_bytes(now(), &buffer[..count], &mut *service);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                connection.handle_timeout(now());
            }
            Err(_) => return,
        }
    }
    _ = stream.shutdown(Shutdown::Write);
    _ = stream.set_read_timeout(Some(LINGER));
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}
